//! Hostile events by the million: every way known to make kube-apiserver record a request so that it seems to belong to
//! another namespace, among ordinary requests.
//!
//! Each event knows where it really belongs, because whoever writes a form writes that beside it. No path is ever parsed
//! here, so that what reads paths can be tested with it. The texts are written piece by piece and not serialized: a
//! builder of JSON values would take minutes for what a test wants in seconds.

use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;

mod json;
mod request;
#[cfg(test)]
mod tests;

use json::Recorded;

/// What an event tries, or that it tries nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Form {
    /// An ordinary request in a namespace.
    Plain,
    /// An ordinary request of the cluster scope, lists across namespaces included.
    ClusterScoped,
    /// A request in a namespace that is answered with 403, which any user can send to any namespace.
    Refused,
    /// The path is in one namespace, `objectRef` in another or in none.
    ForgedNamespace,
    /// A review of one's own access, which has no namespace, with the victim's name in its body.
    ForgedReview,
    /// Letters of the path are percent-encoded.
    EncodedLetters,
    /// Slashes of the path are percent-encoded.
    EncodedSlashes,
    /// The percent-encoding is itself percent-encoded.
    EncodedTwice,
    /// `.` and `..` between the slashes.
    DotSegments,
    /// Nothing between two slashes.
    EmptySegments,
    /// A path behind `proxy`, which looks like a path of another namespace.
    ProxyTail,
    /// The deprecated prefixes `watch` and `proxy`.
    DeprecatedPrefix,
    /// A namespace whose name cannot be one: upper case, not ASCII, too long, empty.
    NoLabel,
    /// `objectRef` has another resource or API group than the path.
    OtherResource,
    /// An audit ID of kilobytes.
    HugeAuditId,
    /// One audit ID for many requests.
    EqualAuditIds,
    /// Namespaces in the query.
    NamespaceInQuery,
    /// A Namespace, its subresources, and its creation.
    NamespaceObject,
    /// A resource of another API group that is called `namespaces`, too.
    Namesake,
    /// A path in a namespace, without `objectRef`.
    NoObjectRef,
    /// A URL that is no resource's, with a namespace in it.
    NonResource,
    /// A URI that does not begin with a slash, or whose percent-encoding is broken.
    NotAPath,
}

impl Form {
    /// The forms that try something.
    pub const ATTACKS: [Self; 20] = [
        Self::Refused,
        Self::ForgedNamespace,
        Self::ForgedReview,
        Self::EncodedLetters,
        Self::EncodedSlashes,
        Self::EncodedTwice,
        Self::DotSegments,
        Self::EmptySegments,
        Self::ProxyTail,
        Self::DeprecatedPrefix,
        Self::NoLabel,
        Self::OtherResource,
        Self::HugeAuditId,
        Self::EqualAuditIds,
        Self::NamespaceInQuery,
        Self::NamespaceObject,
        Self::Namesake,
        Self::NoObjectRef,
        Self::NonResource,
        Self::NotAPath,
    ];

    // A third of the events is plain and a tenth is the cluster's. That leaves nearly three in a hundred for each attack.
    fn any(random: &mut Rng) -> Self {
        match random.u8(..100) {
            0..33 => Self::Plain,
            33..43 => Self::ClusterScoped,
            _ => Self::ATTACKS[random.usize(..Self::ATTACKS.len())],
        }
    }
}

/// One event, and the truth about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The event as JSON text, as an item of a batch.
    pub json: String,
    /// What it tries.
    pub form: Form,
    /// The namespace whose readers see it. `None`: no namespace's stream may show it, the cluster's stream does.
    pub namespace: Option<String>,
    /// Its audit ID: kilobytes, or that of other events, where the form says so.
    pub audit_id: String,
}

/// An endless stream of events, the same for the same seed.
pub struct Hostile {
    random: Rng,
    namespaces: Vec<String>,
    number: u64,
}

impl Hostile {
    /// Events in this many namespaces. From the same seed come the same events.
    ///
    /// # Panics
    /// If there are fewer than two namespaces: each attacker needs a victim.
    pub fn new(seed: u64, namespaces: usize) -> Self {
        assert!(namespaces >= 2, "an attacker without a victim");
        let namespaces = (0..namespaces).map(|number| format!("ns-{number:03}")).collect();
        Self { random: Rng::with_seed(seed), namespaces, number: 0 }
    }

    /// The namespaces, by name.
    pub fn namespaces(&self) -> &[String] {
        &self.namespaces
    }

    /// The users who send the requests.
    pub fn users() -> impl Iterator<Item = String> {
        (0..json::USERS).map(json::username)
    }

    fn event(&mut self) -> Generated {
        self.number += 1;
        let form = Form::any(&mut self.random);
        let own = self.random.usize(..self.namespaces.len());
        let others = self.random.usize(1..self.namespaces.len());
        let victim = (own + others) % self.namespaces.len();
        let request = request::request(form, &mut self.random, &self.namespaces[own], &self.namespaces[victim]);
        let audit_id = request::audit_id(form, &mut self.random);
        let json = json::write(&Recorded {
            request: &request,
            audit_id: &audit_id,
            user: self.random.u8(..json::USERS),
            agent: &agent(request.namespace.as_deref(), self.number),
            // A thousand requests a second, from a moment on that never changes.
            received: UNIX_EPOCH + Duration::from_secs(1_795_186_800) + Duration::from_millis(self.number),
        });
        Generated { json, form, namespace: request.namespace, audit_id }
    }
}

impl Iterator for Hostile {
    type Item = Generated;

    fn next(&mut self) -> Option<Generated> {
        Some(self.event())
    }
}

/// What the text of each event of this namespace, or of none, contains, and the text of no other event.
///
/// It is the beginning of the user agent, as it is written on `events` and on `namespacedevents` alike. Who checks a
/// million events looks for this instead of parsing them.
pub fn mark(namespace: Option<&str>) -> String {
    format!("\"userAgent\":\"{}/", namespace.unwrap_or("-"))
}

fn agent(namespace: Option<&str>, number: u64) -> String {
    let namespace = namespace.unwrap_or("-");
    format!("{namespace}/{number:07} kubectl/v1.37.1 (linux/amd64) kubernetes/0123456789abcdef0123456789abcdef01234567")
}
