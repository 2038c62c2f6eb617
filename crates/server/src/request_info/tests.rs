use super::*;

fn resource(path: &str) -> ResourcePath<'_> {
    match RequestPath::of(path) {
        RequestPath::Resource(resource) => resource,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn paths_are_read_as_in_upstreams_own_cases() {
    // The rows of `requestinfo_test.go`: namespace, resource, subresource, name, and what GET means there.
    for (path, expected, verb) in [
        ("/api/v1/namespaces", ["", "namespaces", "", ""], "list"),
        ("/api/v1/namespaces/other", ["other", "namespaces", "", "other"], "get"),
        ("/api/v1/namespaces/other/pods", ["other", "pods", "", ""], "list"),
        ("/api/v1/namespaces/other/pods/foo", ["other", "pods", "", "foo"], "get"),
        ("/api/v1/pods", ["", "pods", "", ""], "list"),
        ("/api/v1/proxy/namespaces/other/pods/foo", ["other", "pods", "", "foo"], "proxy"),
        ("/api/v1/proxy/namespaces/other/pods/foo/subpath/not/a/subresource", ["other", "pods", "", "foo"], "proxy"),
        ("/api/v1/watch/pods", ["", "pods", "", ""], "watch"),
        ("/api/v1/watch/namespaces/other/pods", ["other", "pods", "", ""], "watch"),
        ("/api/v1/namespaces/other/pods/foo/status", ["other", "pods", "status", "foo"], "get"),
        ("/api/v1/namespaces/other/pods/foo/proxy/subpath", ["other", "pods", "proxy", "foo"], "get"),
        ("/api/v1/namespaces/other/finalize", ["other", "namespaces", "finalize", "other"], "get"),
        ("/api/v1/namespaces/other/status", ["other", "namespaces", "status", "other"], "get"),
        ("/apis/extensions/v1/namespaces/other/pods", ["other", "pods", "", ""], "list"),
        ("/apis/group/version/resource/name/subresource", ["", "resource", "subresource", "name"], "get"),
        // Not among them.
        ("/apis/g/v/namespaces//pods", ["", "pods", "", ""], "list"),
        ("/apis/g/v/pods//log", ["", "pods", "log", ""], "list"),
        ("/apis/g/v//pods", ["", "", "", "pods"], "get"),
        ("/apis/g/v/namespaces/a/namespaces/b/pods", ["a", "namespaces", "pods", "b"], "get"),
        ("/apis/g/v/watch/watch/namespaces/a", ["", "watch", "a", "namespaces"], "watch"),
        ("/apis/g/v/watch/namespaces/a/pods/p/log/x/y", ["a", "pods", "log", "p"], "watch"),
        ("//apis/g/v/namespaces/../pods//", ["..", "pods", "", ""], "list"),
    ] {
        let read = resource(path);
        assert_eq!([read.namespace, read.resource, read.subresource, read.name], expected, "{path}");
        assert_eq!(read.verb(&Method::GET, false), verb, "{path}");
    }
    let read = resource("/apis/g/v/pods");
    assert_eq!((read.group, read.version, resource("/api/v/pods").group), (Some("g"), "v", None));
    assert_eq!(resource("/apis//v/pods").group, Some(""));
}

#[test]
fn what_is_no_resource() {
    for path in ["", "/", "*", "/api", "/api/v1/", "/apis/g/v/", "/bad/v/resource/x", "/API/v1/pods", "/apis/g/v"] {
        assert_eq!(RequestPath::of(path), RequestPath::NonResource, "{path}");
    }
    for path in ["/api/v1/watch", "/apis/g/v/proxy/", "/apis/g/v/watch"] {
        assert_eq!(RequestPath::of(path), RequestPath::BarePrefix, "{path}");
    }
}

#[test]
fn how_deep_a_path_goes() {
    for (path, depth, inside) in [
        ("/apis/g/v/pods", 1, false),
        ("/apis/g/v/pods/p", 2, false),
        ("/apis/g/v/pods/p/log", 3, false),
        ("/apis/g/v/pods/p/log/x", 4, false),
        ("/apis/g/v/pods/p/log/x/y/z", 4, false),
        ("/apis/g/v/namespaces/a", 2, false),
        ("/apis/g/v/namespaces/a/status/x", 4, false),
        ("/apis/g/v/namespaces/a/pods", 1, true),
        ("/apis/g/v/watch/namespaces/a/pods/p/log", 3, true),
        ("/apis/g/v/watch/namespaces/a/pods/p/log/x", 4, true),
        ("/apis/g/v/proxy/namespaces/a/pods/p/log", 3, true),
    ] {
        let read = resource(path);
        assert_eq!((read.depth, read.inside), (depth, inside), "{path}");
    }
}

#[test]
fn the_verb_is_the_methods_unless_the_path_says_it() {
    for (method, watches, collection, object) in [
        ("GET", false, "list", "get"),
        ("GET", true, "watch", "get"),
        ("HEAD", false, "list", "get"),
        ("HEAD", true, "watch", "get"),
        ("POST", true, "create", "create"),
        ("PUT", false, "update", "update"),
        ("PATCH", false, "patch", "patch"),
        ("DELETE", true, "deletecollection", "delete"),
        ("OPTIONS", true, "", ""),
        ("get", true, "", ""),
    ] {
        let method: Method = method.parse().unwrap();
        for (path, verb) in [
            ("/apis/g/v/pods", collection),
            ("/apis/g/v/pods//log", collection),
            ("/apis/g/v/pods/p", object),
            ("/apis/g/v/namespaces/a/pods/p/log", object),
            ("/apis/g/v/watch/pods", "watch"),
            ("/apis/g/v/watch/pods/p", "watch"),
            ("/apis/g/v/proxy/pods", "proxy"),
        ] {
            assert_eq!(resource(path).verb(&method, watches), verb, "{method} {path} {watches}");
        }
    }
}

#[test]
fn a_path_is_decoded_once_or_refused() {
    for (written, expected) in [
        ("/a%2Fb%2fc+d", Some("/a/b/c+d")),
        ("/%2561", Some("/%61")),
        ("/%ff", Some("/\u{fffd}")),
        ("/caf%C3%A9", Some("/café")),
        ("/%", None),
        ("/%4", None),
        ("/%zz", None),
        ("/%+1", None),
    ] {
        assert_eq!(decoded(written).as_deref(), expected, "{written}");
    }
}
