//! Who may have what: every kind of user, every spelling of a path, every verb, and an oracle that says what comes of it.
//!
//! The oracle knows what a cell spells, because it spelled it, and looks it up in the table of grants. It shares no code with the
//! server, and parses nothing. `real_matrix` asks the same of a real cluster's RBAC.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use audit_stream::Config;
use audit_stream_testplane::front_proxy::{Client, request};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use crate::ALONE;
use crate::stage::{Stage, many_reviews};

/// Requests under way at a time.
const AT_ONCE: usize = 32;

/// Namespaces; three of them are called like a word of a path.
pub const NAMESPACES: [&str; 12] = [
    "team-0",
    "team-1",
    "team-2",
    "team-3",
    "team-4",
    "team-5",
    "team-6",
    "team-7",
    "status",
    "watch",
    "namespaces",
    "kube-system",
];

const RESOURCES: [&str; 2] = ["events", "namespacedevents"];

/// The last is nobody's.
const VERSIONS: [&str; 4] = ["v1", "v1beta1", "v1alpha1", "v2"];

const GROUP: &str = "audit.k8s.io";

/// A sentence of the table: who may do what, where.
#[derive(Clone, Copy)]
pub struct Grant {
    /// A user's name, or a group's.
    pub subject: Subject,
    pub verbs: &'static [&'static str],
    /// Of this API group.
    pub group: &'static str,
    /// `RESOURCE[/SUBRESOURCE]`, or `*`.
    pub resource: &'static str,
    /// `None`: everywhere.
    pub namespace: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    User(&'static str),
    Group(&'static str),
}

use Subject::{Group, User};

const fn grant(subject: Subject, verbs: &'static [&'static str], resource: &'static str) -> Grant {
    Grant { subject, verbs, group: GROUP, resource, namespace: None }
}

const fn within(namespace: &'static str, grant: Grant) -> Grant {
    Grant { namespace: Some(namespace), ..grant }
}

/// All that anybody may do, but for `system:masters`, who may do everything.
pub const GRANTS: [Grant; 15] = [
    within("team-0", grant(User("watcher"), &["watch"], "namespacedevents")),
    within("team-1", grant(User("of-three"), &["watch"], "namespacedevents")),
    within("status", grant(User("of-three"), &["watch"], "namespacedevents")),
    within("namespaces", grant(User("of-three"), &["watch"], "namespacedevents")),
    grant(User("events-watcher"), &["watch"], "events"),
    grant(User("cluster-watcher"), &["watch"], "namespacedevents"),
    Grant { group: "*", ..grant(User("wildcard"), &["*"], "*") },
    within("team-3", grant(Group("auditors"), &["watch"], "namespacedevents")),
    grant(Group("auditors"), &["list"], "events"),
    // Must not open the cluster's stream.
    within("team-4", grant(User("events-in-a-namespace"), &["watch"], "events")),
    grant(User("lister"), &["list", "get"], "namespacedevents"),
    grant(User("lister"), &["list", "get"], "events"),
    within("team-5", grant(User("owner"), &["*"], "namespacedevents")),
    grant(User("of-a-subresource"), &["watch", "get"], "namespacedevents/status"),
    Grant { group: "", ..grant(User("of-core-events"), &["watch", "list", "get"], "events") },
];

/// Users and the groups that they are in.
const USERS: [(&str, &str); 13] = [
    ("nobody", "strangers"),
    ("watcher", "strangers"),
    ("of-three", "strangers"),
    ("events-watcher", "strangers"),
    ("cluster-watcher", "strangers"),
    ("wildcard", "strangers"),
    ("in-a-group", "auditors"),
    ("root", "system:masters"),
    ("events-in-a-namespace", "strangers"),
    ("lister", "strangers"),
    ("owner", "strangers"),
    ("of-a-subresource", "strangers"),
    ("of-core-events", "strangers"),
];

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Watch,
    List,
    Get,
    /// A name and `?watch`: the name wins.
    GetWatching,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    HeadWatching,
    /// `?watch` of something below an object.
    Subresource,
}

impl Verb {
    const OTHERS: [Self; 10] = [
        Self::List,
        Self::Get,
        Self::GetWatching,
        Self::Create,
        Self::Update,
        Self::Patch,
        Self::Delete,
        Self::DeleteCollection,
        Self::HeadWatching,
        Self::Subresource,
    ];

    /// The method, what is behind the resource, and the query.
    fn request(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Watch => ("GET", "", "?watch=true"),
            Self::List => ("GET", "", ""),
            Self::Get => ("GET", "/e", ""),
            Self::GetWatching => ("GET", "/e", "?watch=true"),
            Self::Create => ("POST", "", ""),
            Self::Update => ("PUT", "/e", ""),
            Self::Patch => ("PATCH", "/e", ""),
            Self::Delete => ("DELETE", "/e", ""),
            Self::DeleteCollection => ("DELETE", "", ""),
            Self::HeadWatching => ("HEAD", "", "?watch=true"),
            Self::Subresource => ("GET", "/e/status", "?watch=true"),
        }
    }

    /// What it is called in a grant.
    fn name(self) -> &'static str {
        match self {
            Self::Watch | Self::HeadWatching => "watch",
            Self::List => "list",
            Self::Get | Self::GetWatching | Self::Subresource => "get",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// The same of something that has a name.
    fn name_of_named(self) -> &'static str {
        match self {
            Self::Watch | Self::HeadWatching | Self::List => "get",
            Self::DeleteCollection => "delete",
            other => other.name(),
        }
    }
}

/// How a path is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spelling {
    Plain,
    TrailingSlash,
    EncodedLetters,
    EncodedSlashes,
    /// The percent sign of a letter is itself encoded.
    EncodedTwice,
    WatchPrefix,
    ProxyPrefix,
    DoubleSlash,
    LeadingSlashes,
    EmptyNamespace,
    UpperCase,
    AllNamespaces,
    AllNamespacesByPrefix,
}

use Spelling::{
    AllNamespaces, AllNamespacesByPrefix, DoubleSlash, EmptyNamespace, EncodedLetters, EncodedSlashes, EncodedTwice,
    LeadingSlashes, Plain, ProxyPrefix, TrailingSlash, UpperCase, WatchPrefix,
};

const SPELLINGS: [Spelling; 13] = [
    Plain,
    TrailingSlash,
    EncodedLetters,
    EncodedSlashes,
    EncodedTwice,
    WatchPrefix,
    ProxyPrefix,
    DoubleSlash,
    LeadingSlashes,
    EmptyNamespace,
    UpperCase,
    AllNamespaces,
    AllNamespacesByPrefix,
];

/// One request of one user.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    user: (&'static str, &'static str),
    verb: Verb,
    spelling: Spelling,
    version: &'static str,
    namespace: &'static str,
    resource: &'static str,
}

/// What a cell asks for, in a grant's words.
struct Asked {
    verb: &'static str,
    resource: String,
    subresource: &'static str,
    namespace: Option<String>,
}

/// Each watch in each spelling and, plainly, in each version; each other verb in some spelling, and all spellings of it together.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for user in USERS {
        for (namespace, resource) in
            NAMESPACES.into_iter().flat_map(|namespace| RESOURCES.map(|resource| (namespace, resource)))
        {
            let of = |verb, spelling, version| Cell { user, verb, spelling, version, namespace, resource };
            cells.extend(VERSIONS.map(|version| of(Verb::Watch, Plain, version)));
            for spelling in SPELLINGS {
                // Mostly the first version, because the last hides everything.
                let version = [0, 0, 1, 0, 2, 0, 3][cells.len() % 7];
                cells.push(of(Verb::Watch, spelling, VERSIONS[version]));
            }
            for verb in Verb::OTHERS {
                // 27 cells are made here each time, and 13 spellings have no factor in common with that.
                let (spelling, version) = (SPELLINGS[cells.len() % 13], [0, 1, 0, 2, 0, 0, 3][cells.len() % 7]);
                cells.push(of(verb, spelling, VERSIONS[version]));
            }
        }
    }
    cells
}

impl Cell {
    fn path(&self) -> String {
        let Self { version, namespace, resource, .. } = *self;
        let (_, below, query) = self.verb.request();
        let encoded = |text: &str| format!("%{:02x}{}", text.as_bytes()[0], &text[1..]);
        let root = format!("/apis/{GROUP}/{version}");
        let path = match self.spelling {
            Plain => format!("{root}/namespaces/{namespace}/{resource}{below}"),
            TrailingSlash => format!("{root}/namespaces/{namespace}/{resource}{below}/"),
            EncodedLetters => {
                format!("{root}/{}/{}/{}{below}", encoded("namespaces"), encoded(namespace), encoded(resource))
            }
            EncodedSlashes => format!("{root}/namespaces%2F{namespace}%2f{resource}{below}"),
            EncodedTwice => format!("{root}/namespaces/%25{}/{resource}{below}", &encoded(namespace)[1..]),
            WatchPrefix => format!("{root}/watch/namespaces/{namespace}/{resource}{below}"),
            ProxyPrefix => format!("{root}/proxy/namespaces/{namespace}/{resource}{below}"),
            DoubleSlash => format!("{root}//namespaces/{namespace}/{resource}{below}"),
            LeadingSlashes => format!("/{root}/namespaces/{namespace}/{resource}{below}"),
            EmptyNamespace => format!("{root}/namespaces//{resource}{below}"),
            UpperCase => format!("{root}/namespaces/{namespace}/{}{below}", resource.to_uppercase()),
            AllNamespaces => format!("{root}/{resource}{below}"),
            AllNamespacesByPrefix => format!("{root}/watch/{resource}{below}"),
        };
        path + query
    }

    fn asked(&self) -> Asked {
        let plain = Asked {
            verb: self.verb.name(),
            resource: self.resource.to_owned(),
            subresource: if self.verb == Verb::Subresource { "status" } else { "" },
            namespace: Some(self.namespace.to_owned()),
        };
        match self.spelling {
            Plain | TrailingSlash | EncodedLetters | EncodedSlashes | LeadingSlashes => plain,
            EncodedTwice => {
                let first = self.namespace.as_bytes()[0];
                Asked { namespace: Some(format!("%{first:02x}{}", &self.namespace[1..])), ..plain }
            }
            WatchPrefix => Asked { verb: "watch", ..plain },
            ProxyPrefix => Asked { verb: "proxy", subresource: "", ..plain },
            // Of the resource without a name, the one that is called `namespaces`.
            DoubleSlash => Asked {
                verb: self.verb.name_of_named(),
                resource: String::new(),
                subresource: self.namespace,
                namespace: None,
            },
            UpperCase => Asked { resource: self.resource.to_uppercase(), ..plain },
            EmptyNamespace | AllNamespaces => Asked { namespace: None, ..plain },
            AllNamespacesByPrefix => Asked { verb: "watch", namespace: None, ..plain },
        }
    }

    /// The oracle: the code of the answer.
    fn expected(&self, grants: &[Grant]) -> u16 {
        let asked = self.asked();
        let allowed = self.user.1 == "system:masters" || grants.iter().any(|grant| grant.covers(self.user, &asked));
        if !allowed {
            return 403;
        }
        let by_prefix = matches!(self.spelling, WatchPrefix | AllNamespacesByPrefix);
        let everywhere = matches!(self.spelling, AllNamespaces | AllNamespacesByPrefix);
        let in_one = matches!(self.spelling, Plain | TrailingSlash | EncodedLetters | EncodedSlashes | WatchPrefix);
        let exists = self.version != "v2"
            && self.verb != Verb::Subresource
            && (everywhere || (in_one && self.resource == "namespacedevents"));
        let watches = self.verb == Verb::Watch || (by_prefix && self.verb.request().0 == "GET");
        match (exists, watches) {
            (false, _) => 404,
            (true, true) => 200,
            (true, false) => 405,
        }
    }
}

impl Grant {
    fn covers(&self, (user, group): (&str, &str), asked: &Asked) -> bool {
        let whom = match self.subject {
            User(name) => name == user,
            Group(name) => name == group,
        };
        let slash = if asked.subresource.is_empty() { "" } else { "/" };
        let what = format!("{}{slash}{}", asked.resource, asked.subresource);
        whom && (self.verbs == ["*"] || self.verbs.contains(&asked.verb))
            && (self.group == "*" || self.group == GROUP)
            && (self.resource == "*" || self.resource == what)
            && (self.namespace.is_none() || self.namespace == asked.namespace.as_deref())
    }
}

/// Where the server and the oracle differ.
#[derive(Debug, Default)]
pub struct Difference {
    /// Something else than 403 to who must not ask.
    pub leaks: Vec<String>,
    /// 403 to who may.
    pub denials: Vec<String>,
    /// Who may ask is told something wrong.
    pub others: Vec<String>,
    /// How many answers of each code were expected.
    pub expected: BTreeMap<u16, usize>,
}

impl Difference {
    pub fn is_none(&self) -> bool {
        self.leaks.is_empty() && self.denials.is_empty() && self.others.is_empty()
    }

    fn note(&mut self, cell: &Cell, expected: u16, answered: u16) {
        *self.expected.entry(expected).or_default() += 1;
        let told = || format!("{answered} and not {expected}: {cell:?} {}", cell.path());
        match (expected, answered) {
            (expected, answered) if expected == answered => {}
            (403, _) => self.leaks.push(told()),
            (_, 403) => self.denials.push(told()),
            _ => self.others.push(told()),
        }
    }
}

/// Asks for every cell, and closes at once what is opened.
pub async fn compare(front_proxies: &[Client], cells: &[Cell], grants: &[Grant]) -> Result<Difference> {
    let clients = front_proxies.iter().cycle();
    let answers = stream::iter(cells.iter().zip(clients)).map(|(cell, client)| async move {
        let ((user, group), (method, ..)) = (cell.user, cell.verb.request());
        let headers = [("X-Remote-User", user), ("X-Remote-Group", group)];
        let answer = client.open(request(method, &cell.path(), &headers, "")?).await;
        let answer = answer.with_context(|| format!("{cell:?}"))?;
        let status = answer.status().as_u16();
        if status != 200 {
            // A refusal has an end. h2 ends a connection on which it had to reset a thousand that were not read.
            answer.into_body().collect().await.with_context(|| format!("{cell:?}"))?;
        }
        anyhow::Ok((cell, status))
    });
    let mut difference = Difference::default();
    let mut answers = answers.buffer_unordered(AT_ONCE);
    while let Some((cell, answered)) = answers.try_next().await? {
        difference.note(cell, cell.expected(grants), answered);
    }
    Ok(difference)
}

/// Nothing is refused for want of room.
fn roomy(config: &mut Config) {
    many_reviews(config);
    let limits = &mut config.watch.limits;
    limits.per_user = limits.watches;
    limits.per_namespace = limits.watches;
    limits.classes_per_user = limits.watches;
}

async fn stage() -> Result<(Stage, Vec<Client>)> {
    let stage = Stage::with(roomy).await?;
    for grant in GRANTS {
        for verb in grant.verbs {
            let who = match grant.subject {
                User(name) => stage.reviewer.allow(name),
                Group(name) => stage.reviewer.allow_group(name),
            };
            let on = who.to(verb).on(grant.resource).in_group(grant.group);
            match grant.namespace {
                Some(namespace) => on.in_namespace(namespace),
                None => on.cluster_wide(),
            }
        }
    }
    let identity = stage.front_proxy_ca.client("front-proxy-client", &[]);
    let connect = || Client::connect(stage.api().identity(&identity));
    let clients = vec![connect().await?, connect().await?, connect().await?, connect().await?];
    Ok((stage, clients))
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_has_what_is_theirs_and_nothing_else_however_they_spell_it() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (stage, clients) = stage().await?;
    let (cells, from) = (cells(), Instant::now());
    let difference = compare(&clients, &cells, &GRANTS).await?;
    println!("{} cells in {:?}: {:?}", cells.len(), from.elapsed(), difference.expected);
    println!("{} reviews", stage.reviewer.reviews().len());
    ensure!(difference.is_none(), "{difference:#?}");
    ensure!(cells.len() >= 3840 && difference.expected.len() == 4, "too little is shown");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_and_a_false_denial_would_be_noticed() -> Result<()> {
    let (stage, clients) = stage().await?;
    let cells: Vec<_> = cells().into_iter().filter(|cell| ["nobody", "watcher"].contains(&cell.user.0)).collect();
    stage.reviewer.allow("nobody").to("watch").on("namespacedevents").in_namespace("team-7");
    stage.reviewer.revoke("watcher").to("watch").on("namespacedevents").in_namespace("team-0");
    let difference = compare(&clients, &cells, &GRANTS).await?;
    ensure!(difference.others.is_empty(), "{difference:#?}");
    for (found, user, namespace) in
        [(&difference.leaks, "nobody", "team-7"), (&difference.denials, "watcher", "team-0")]
    {
        ensure!(found.len() >= 5, "{found:#?}");
        for told in found {
            ensure!(told.contains(&format!("\"{user}\"")) && told.contains(&format!("\"{namespace}\"")), "{told}");
        }
    }
    Ok(())
}
