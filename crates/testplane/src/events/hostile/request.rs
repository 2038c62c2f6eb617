//! The forms: for each a request as kube-apiserver records it, and beside it where the event belongs.
//!
//! What `objectRef` says in each case is what kube-apiserver makes of such a path, and not what an honest client would
//! have meant by it. Where a path is served in a namespace and `objectRef` agrees, the event is that namespace's however
//! odd the path looks; in every other case it is nobody's.

use fastrand::Rng;

use super::Form;

/// What was asked.
pub(super) struct Request {
    pub(super) verb: &'static str,
    pub(super) uri: String,
    pub(super) reference: Option<Reference>,
    pub(super) code: u16,
    /// Where the event belongs.
    pub(super) namespace: Option<String>,
}

/// `objectRef`; what is empty is absent.
#[derive(Default)]
pub(super) struct Reference {
    pub(super) resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) group: String,
    pub(super) version: String,
    pub(super) subresource: String,
}

/// A request of this form in the namespace `own`, or not in it after all. `victim` is another one.
pub(super) fn request(form: Form, random: &mut Rng, own: &str, victim: &str) -> Request {
    match form {
        Form::Plain | Form::HugeAuditId | Form::EqualAuditIds => plain(random, own),
        Form::ClusterScoped => cluster_scoped(random),
        Form::Refused => refused(random, own),
        Form::ForgedNamespace => forged_namespace(random, own, victim),
        Form::ForgedReview => forged_review(random, victim),
        Form::EncodedLetters => encoded(random, own, |byte| byte.is_ascii_alphanumeric()),
        Form::EncodedSlashes => encoded(random, own, |byte| byte == b'/'),
        Form::EncodedTwice => encoded_twice(random, own),
        Form::DotSegments => dot_segments(random, own, victim),
        Form::EmptySegments => empty_segments(random, own),
        Form::ProxyTail => proxy_tail(random, own, victim),
        Form::DeprecatedPrefix => deprecated_prefix(random, own, victim),
        Form::NoLabel => no_label(random, own),
        Form::OtherResource => other_resource(random, own),
        Form::NamespaceInQuery => namespace_in_query(random, own, victim),
        Form::NamespaceObject => namespace_object(random, own, victim),
        Form::Namesake => namesake(random, victim),
        Form::NoObjectRef => Request { reference: None, namespace: None, ..plain(random, own) },
        Form::NonResource => non_resource(random, victim),
        Form::NotAPath => not_a_path(random, own),
    }
}

/// The audit ID that fits the form. A client sends what it likes in a header, without quotes or control characters.
pub(super) fn audit_id(form: Form, random: &mut Rng) -> String {
    match form {
        Form::HugeAuditId => {
            format!("{}{:016x}", "<&'A-client-may-write-anything!>".repeat(random.usize(64..192)), random.u64(..))
        }
        Form::EqualAuditIds => "00000000-0000-4000-8000-000000000000".to_owned(),
        _ => {
            let digits = format!("{:032x}", random.u128(..));
            format!("{}-{}-4{}-8{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..])
        }
    }
}

// === Ordinary requests ===

/// Group, prefix of the path, and a resource.
const KINDS: [(&str, &str, &str); 8] = [
    ("", "/api/v1", "pods"),
    ("", "/api/v1", "configmaps"),
    ("", "/api/v1", "secrets"),
    ("", "/api/v1", "services"),
    ("apps", "/apis/apps/v1", "deployments"),
    ("batch", "/apis/batch/v1", "jobs"),
    ("rbac.authorization.k8s.io", "/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    // Not the namesake of `Form::Namesake`, but an object in a namespace.
    ("example.com", "/apis/example.com/v1", "widgets"),
];

/// Verb, whether the path has a name, the usual query, the usual code.
const VERBS: [(&str, bool, &str, u16); 7] = [
    ("get", true, "", 200),
    ("list", false, "?limit=500", 200),
    ("watch", false, "?allowWatchBookmarks=true&watch=true", 200),
    ("create", false, "?fieldManager=kubectl-create&fieldValidation=Strict", 201),
    ("update", true, "?fieldManager=kubectl-edit", 200),
    ("patch", true, "?fieldManager=kubectl-patch", 200),
    ("delete", true, "", 200),
];

fn plain(random: &mut Rng, own: &str) -> Request {
    let (group, prefix, resource) = KINDS[random.usize(..KINDS.len())];
    let (verb, has_name, query, code) = VERBS[random.usize(..VERBS.len())];
    let name = object_name(random);
    let named = if has_name { format!("/{name}") } else { String::new() };
    // A create's name is in its body.
    let known = if has_name || verb == "create" { &*name } else { "" };
    Request {
        verb,
        uri: format!("{prefix}/namespaces/{own}/{resource}{named}{query}"),
        reference: Some(Reference { group: group.to_owned(), ..reference(resource, own, known, "") }),
        code,
        namespace: Some(own.to_owned()),
    }
}

fn cluster_scoped(random: &mut Rng) -> Request {
    match random.u8(..4) {
        0 => nobodys("/api/v1/pods?limit=500", reference("pods", "", "", "")).verb("list"),
        1 => nobodys("/api/v1/namespaces?limit=500", reference("namespaces", "", "", "")).verb("list"),
        2 => nobodys("/api/v1/nodes/node-1/status", reference("nodes", "", "node-1", "status")).verb("patch"),
        _ => nobodys("/apis/apps/v1/deployments?watch=true", reference("deployments", "", "", ""))
            .group("apps")
            .verb("watch"),
    }
}

fn refused(random: &mut Rng, own: &str) -> Request {
    let mut request = plain(random, own);
    // It was refused before its body was read.
    if let Some(reference) = request.reference.as_mut().filter(|_| request.verb == "create") {
        reference.name.clear();
    }
    request.code = 403;
    request
}

fn object_name(random: &mut Rng) -> String {
    format!("web-5d4c7b9f6d-{:05x}", random.u32(..1 << 20))
}

// === Attacks by the body ===

fn forged_namespace(random: &mut Rng, own: &str, victim: &str) -> Request {
    let mut request = plain(random, own);
    let claimed = if random.u8(..4) == 0 { "" } else { victim };
    if let Some(reference) = &mut request.reference {
        claimed.clone_into(&mut reference.namespace);
    }
    Request { namespace: None, ..request }
}

fn forged_review(random: &mut Rng, victim: &str) -> Request {
    let resource = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"][random.usize(..2)];
    let path = format!("/apis/authorization.k8s.io/v1/{resource}");
    let forged = reference(resource, victim, "forged", "");
    Request { code: 201, ..nobodys(&path, forged).group("authorization.k8s.io").verb("create") }
}

fn other_resource(random: &mut Rng, own: &str) -> Request {
    let mut request = plain(random, own);
    if let Some(reference) = &mut request.reference {
        let claim = if random.bool() { &mut reference.resource } else { &mut reference.group };
        "gateways.example.org".clone_into(claim);
    }
    Request { namespace: None, ..request }
}

// === Attacks by the path ===

/// Encodes some of the path's bytes that are `fit`, at least one, and never the slash at its beginning.
fn encoded(random: &mut Rng, own: &str, fit: fn(u8) -> bool) -> Request {
    let request = plain(random, own);
    let (path, query) = split_query(&request.uri);
    let fitting = path.bytes().skip(1).filter(|byte| fit(*byte)).count();
    let (chosen, more) = (random.usize(..fitting), random.u8(..8));
    let mut count = 0;
    let mut uri = "/".to_owned();
    for byte in path.bytes().skip(1) {
        let is_chosen = fit(byte) && (count == chosen || count % 8 == usize::from(more));
        count += usize::from(fit(byte));
        match (is_chosen, chosen % 2) {
            (false, _) => uri.push(char::from(byte)),
            (true, 0) => uri.push_str(&format!("%{byte:02X}")),
            (true, _) => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str(query);
    Request { uri, ..request }
}

/// `n%2573-001` is served as the namespace `n%73-001`, which there cannot be.
fn encoded_twice(random: &mut Rng, own: &str) -> Request {
    let mut request = plain(random, own);
    let at = random.usize(..own.len());
    let (before, byte, after) = (&own[..at], own.as_bytes()[at], &own[at + 1..]);
    let twice = format!("{before}%25{byte:02x}{after}");
    request.uri = request.uri.replacen(own, &twice, 1);
    // Half are honest, the others claim the namespace that the path would be in if it were decoded twice.
    if let Some(reference) = request.reference.as_mut().filter(|_| random.bool()) {
        reference.namespace = format!("{before}%{byte:02x}{after}");
    }
    Request { namespace: None, ..request }
}

/// kube-apiserver cleans no path: `..` is a resource, a name or a namespace like any other.
fn dot_segments(random: &mut Rng, own: &str, victim: &str) -> Request {
    match random.u8(..5) {
        0 => in_namespace(
            own,
            &format!("/api/v1/namespaces/{own}/../{victim}/pods"),
            reference("..", own, victim, "pods"),
        ),
        1 => in_namespace(own, &format!("/api/v1/namespaces/{own}/./pods/web"), reference(".", own, "pods", "web")),
        2 => without_reference(&format!("/x/../api/v1/namespaces/{victim}/pods/web")),
        3 => nobodys("/api/v1/namespaces/../pods/web", reference("pods", "..", "web", "")),
        _ => nobodys(&format!("/api/v1/../v1/namespaces/{victim}/pods"), reference("..", "", "v1", "namespaces")),
    }
}

fn empty_segments(random: &mut Rng, own: &str) -> Request {
    match random.u8(..5) {
        0 => in_namespace(own, &format!("//api/v1/namespaces/{own}/pods/web"), reference("pods", own, "web", "")),
        1 => in_namespace(own, &format!("/api/v1/namespaces/{own}//web"), reference("", own, "web", "")),
        // An empty namespace is none: these are the pods of all.
        2 => nobodys("/api/v1/namespaces//pods", reference("pods", "", "", "")).verb("list"),
        3 => nobodys(&format!("/api/v1//namespaces/{own}/pods"), reference("", "", "namespaces", own)),
        _ => nobodys(
            &format!("/api//v1/namespaces/{own}/pods"),
            Reference { version: String::new(), ..reference("v1", "", "namespaces", own) },
        ),
    }
}

/// What is proxied belongs to where the proxying object is.
fn proxy_tail(random: &mut Rng, own: &str, victim: &str) -> Request {
    let tail = format!("api/v1/namespaces/{victim}/secrets/s");
    let pod = reference("pods", own, "web", "proxy");
    match random.u8(..4) {
        0 => in_namespace(own, &format!("/api/v1/namespaces/{own}/pods/web/proxy/{tail}"), pod),
        // Not even text has to follow.
        1 => in_namespace(own, &format!("/api/v1/namespaces/{own}/pods/web/proxy/%ff/{tail}"), pod),
        2 => in_namespace(
            own,
            &format!("/api/v1/namespaces/{own}/services/https:web:443/proxy/../../../{victim}"),
            reference("services", own, "https:web:443", "proxy"),
        ),
        _ => nobodys(&format!("/api/v1/nodes/node-1/proxy/{tail}"), reference("nodes", "", "node-1", "proxy")),
    }
}

fn deprecated_prefix(random: &mut Rng, own: &str, victim: &str) -> Request {
    match random.u8(..5) {
        0 => in_namespace(own, &format!("/api/v1/watch/namespaces/{own}/pods"), reference("pods", own, "", ""))
            .verb("watch"),
        1 => in_namespace(own, &format!("/api/v1/watch/namespaces/{own}"), reference("namespaces", own, own, ""))
            .verb("watch"),
        2 => in_namespace(
            own,
            &format!("/api/v1/proxy/namespaces/{own}/pods/web/namespaces/{victim}/pods"),
            reference("pods", own, "web", ""),
        )
        .verb("proxy"),
        3 => nobodys("/api/v1/watch/pods", reference("pods", "", "", "")).verb("watch"),
        // The prefix counts once.
        _ => nobodys(
            &format!("/api/v1/watch/watch/namespaces/{victim}/pods"),
            reference("watch", "", "namespaces", victim),
        )
        .verb("watch"),
    }
}

/// kube-apiserver serves a path in any namespace, and finds nothing there.
fn no_label(random: &mut Rng, own: &str) -> Request {
    let name = match random.u8(..10) {
        0 => own.to_uppercase(),
        1 => own.replace('n', "ñ"),
        2 => format!("{own}-{}", "x".repeat(63)),
        3 => format!("-{own}"),
        4 => format!("{own}-"),
        5 => format!("{own}.web"),
        6 => format!("{own} "),
        7 => format!("{own}\0"),
        8 => format!("{own}>"),
        _ => "*".to_owned(),
    };
    let in_path: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let path = format!("/api/v1/namespaces/{in_path}/pods/web");
    Request { code: 404, ..nobodys(&path, reference("pods", &name, "web", "")) }
}

fn namespace_in_query(random: &mut Rng, own: &str, victim: &str) -> Request {
    let query = format!("namespace={victim}&fieldSelector=metadata.namespace%3D{victim}&x=/namespaces/{victim}/pods");
    if random.bool() {
        return nobodys(&format!("/api/v1/pods?{query}"), reference("pods", "", "", "")).verb("list");
    }
    let path = format!("/api/v1/namespaces/{own}/pods?{query}?/api/v1/namespaces/{victim}/pods");
    in_namespace(own, &path, reference("pods", own, "", "")).verb("list")
}

/// A Namespace lies in itself. Its creation names it in the body alone, and no other namespace's name counts there.
fn namespace_object(random: &mut Rng, own: &str, victim: &str) -> Request {
    let object = format!("/api/v1/namespaces/{own}");
    let create = |named: Reference| nobodys("/api/v1/namespaces", named).verb("create");
    let created = |named| Request { namespace: Some(own.to_owned()), code: 201, ..create(named) };
    match random.u8(..8) {
        0 => in_namespace(own, &object, reference("namespaces", own, own, "")),
        1 => in_namespace(own, &object, reference("namespaces", own, own, "")).verb("delete"),
        2 => in_namespace(own, &format!("{object}/status"), reference("namespaces", own, own, "status")).verb("update"),
        3 => in_namespace(own, &format!("{object}/finalize"), reference("namespaces", own, own, "finalize"))
            .verb("update"),
        4 => created(reference("namespaces", "", own, "")),
        5 => created(reference("namespaces", victim, own, "")),
        // Its name comes from `generateName`, and kube-apiserver does not record which.
        6 => Request { code: 201, ..create(reference("namespaces", "", "", "")) },
        _ => Request { code: 403, ..create(reference("namespaces", "", "", "")) },
    }
}

fn namesake(random: &mut Rng, victim: &str) -> Request {
    let subresource = ["", "status", "finalize"][random.usize(..3)];
    let separator = if subresource.is_empty() { "" } else { "/" };
    let path = format!("/apis/example.com/v1/namespaces/{victim}{separator}{subresource}");
    nobodys(&path, reference("namespaces", victim, victim, subresource)).group("example.com").verb("update")
}

fn non_resource(random: &mut Rng, victim: &str) -> Request {
    match random.u8(..6) {
        0 => without_reference(&format!("/healthz/namespaces/{victim}/pods/web")),
        1 => without_reference(&format!("/v1/namespaces/{victim}/pods/web")),
        2 => without_reference(&format!("/API/v1/namespaces/{victim}/pods/web")),
        3 => without_reference(&format!("/metrics?x=/api/v1/namespaces/{victim}/pods")),
        4 => without_reference("/openapi/v2?timeout=32s"),
        // Group `v1`, version `namespaces`, and a list of whatever the victim is called.
        _ => {
            let odd = Reference { group: "v1".to_owned(), ..reference(victim, "", "", "") };
            nobodys(&format!("/apis/v1/namespaces/{victim}"), Reference { version: "namespaces".to_owned(), ..odd })
        }
    }
}

/// Nothing that kube-apiserver serves: where it is on record, it proves nothing.
fn not_a_path(random: &mut Rng, own: &str) -> Request {
    let uri = match random.u8(..3) {
        0 => format!("https://kubernetes.default/api/v1/namespaces/{own}/pods/web"),
        1 => format!("api/v1/namespaces/{own}/pods/web"),
        _ => format!("/api/v1/namespaces/{own}/pods/web%zz"),
    };
    Request { code: 400, ..nobodys(&uri, reference("pods", own, "web", "")) }
}

// === The pieces ===

fn in_namespace(namespace: &str, uri: &str, reference: Reference) -> Request {
    Request { namespace: Some(namespace.to_owned()), ..nobodys(uri, reference) }
}

fn nobodys(uri: &str, reference: Reference) -> Request {
    Request { reference: Some(reference), ..without_reference(uri) }
}

fn without_reference(uri: &str) -> Request {
    Request { verb: "get", uri: uri.to_owned(), reference: None, code: 200, namespace: None }
}

fn reference(resource: &str, namespace: &str, name: &str, subresource: &str) -> Reference {
    Reference {
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        group: String::new(),
        version: "v1".to_owned(),
        subresource: subresource.to_owned(),
    }
}

fn split_query(uri: &str) -> (&str, &str) {
    uri.split_at(uri.find('?').unwrap_or(uri.len()))
}

impl Request {
    fn verb(self, verb: &'static str) -> Self {
        Self { verb, ..self }
    }

    fn group(mut self, group: &str) -> Self {
        if let Some(reference) = &mut self.reference {
            group.clone_into(&mut reference.group);
        }
        self
    }
}
