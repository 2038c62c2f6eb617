//! `/livez`, `/readyz`, `/healthz`, answered from memory. Each as a whole is open to everybody; its checks one by one are not.
//!
//! Source: `k8s.io/apiserver/pkg/server/healthz/healthz.go`, and of which check belongs where `pkg/server/healthz.go`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};

use crate::authn::Authenticator;
use crate::wire::{self, Body};

/// What upstream allows without asking anybody (`alwaysAllowPaths` of `pkg/server/options/authorization.go`), spelled just so: a
/// probe has no name, and must not depend on kube-apiserver.
pub const OPEN: [&str; 3] = ["/healthz", "/readyz", "/livez"];

/// What the checks look at.
#[derive(Debug)]
pub struct Health {
    authenticator: Arc<Authenticator>,
    shutting_down: AtomicBool,
}

/// One named condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// The process answers.
    Ping,
    /// It was read once what certificates are judged by.
    Trust,
    /// The server is not on its way out.
    Shutdown,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Trust => "requestheader-client-ca",
            Self::Shutdown => "shutdown",
        }
    }
}

impl Health {
    /// Not ready before `authenticator` is.
    pub fn new(authenticator: Arc<Authenticator>) -> Self {
        Self { authenticator, shutting_down: AtomicBool::new(false) }
    }

    /// From now on not ready.
    pub fn shut_down(&self) {
        self.shutting_down.store(true, Ordering::Relaxed);
    }

    /// The answer for a health path, or `None` if it is none.
    pub fn answer(&self, path: &str, query: &str) -> Option<Response<Body>> {
        let (endpoint, one) = match path.strip_prefix('/')?.split_once('/') {
            Some((endpoint, one)) => (endpoint, Some(one)),
            None => (&path[1..], None),
        };
        let checks: &[Check] = match endpoint {
            "livez" => &[Check::Ping],
            "healthz" => &[Check::Ping, Check::Trust],
            "readyz" => &[Check::Ping, Check::Trust, Check::Shutdown],
            _ => return None,
        };
        match one {
            None => Some(self.report(endpoint, checks, query)),
            Some(name) => checks.iter().find(|check| check.name() == name).map(|check| self.report_one(*check)),
        }
    }

    fn report(&self, endpoint: &str, checks: &[Check], query: &str) -> Response<Body> {
        let parameters = || form_urlencoded::parse(query.as_bytes());
        let mut excluded: BTreeSet<_> =
            parameters().filter(|(key, _)| key == "exclude").map(|(_, value)| value).collect();
        let mut lines = String::new();
        let mut healthy = true;
        for check in checks {
            let name = check.name();
            if excluded.remove(name) {
                lines.push_str(&format!("[+]{name} excluded: ok\n"));
                continue;
            }
            let passed = self.failure(*check).is_none();
            healthy &= passed;
            let (sign, word) = if passed { ('+', "ok") } else { ('-', "failed: reason withheld") };
            lines.push_str(&format!("[{sign}]{name} {word}\n"));
        }
        if !excluded.is_empty() {
            let names: Vec<_> = excluded.iter().map(|name| format!("{name:?}")).collect();
            let names = names.join(",");
            lines.push_str(&format!("warn: some health checks cannot be excluded: no matches for {names}\n"));
        }
        match (healthy, parameters().any(|(key, _)| key == "verbose")) {
            (true, false) => text(StatusCode::OK, "ok".to_owned()),
            (true, true) => text(StatusCode::OK, format!("{lines}{endpoint} check passed\n")),
            (false, _) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{endpoint} check failed\n")),
        }
    }

    /// Who may ask for one check is told why it fails.
    fn report_one(&self, check: Check) -> Response<Body> {
        match self.failure(check) {
            None => text(StatusCode::OK, "ok".to_owned()),
            Some(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
        }
    }

    /// Why a check does not pass, if it does not.
    fn failure(&self, check: Check) -> Option<&'static str> {
        match check {
            Check::Ping => None,
            Check::Trust => {
                (!self.authenticator.ready()).then_some("it is not known yet what certificates are judged by")
            }
            Check::Shutdown => self.shutting_down.load(Ordering::Relaxed).then_some("process is shutting down"),
        }
    }
}

fn text(code: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(wire::whole(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn get(health: &Health, path: &str, query: &str) -> Option<(u16, String)> {
        let response = health.answer(path, query)?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Some((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    #[tokio::test]
    async fn alive_and_not_ready_before_the_front_proxy_is_known() {
        let health = Health::new(Arc::default());
        assert_eq!(get(&health, "/livez", "").await.unwrap(), (200, "ok".to_owned()));
        assert_eq!(
            get(&health, "/readyz", "").await.unwrap(),
            (
                500,
                "[+]ping ok\n[-]requestheader-client-ca failed: reason withheld\n[+]shutdown ok\nreadyz check failed\n"
                    .to_owned()
            )
        );
        assert_eq!(get(&health, "/readyz/ping", "").await.unwrap(), (200, "ok".to_owned()));
        assert_eq!(get(&health, "/readyz/requestheader-client-ca", "").await.unwrap().0, 500);
        assert_eq!(get(&health, "/readyz", "exclude=requestheader-client-ca").await.unwrap(), (200, "ok".to_owned()));
        assert_eq!(get(&health, "/livez", "verbose").await.unwrap().1, "[+]ping ok\nlivez check passed\n");
    }

    #[tokio::test]
    async fn not_ready_on_the_way_out_but_alive() {
        let health = Health::new(Arc::default());
        health.shut_down();
        let failed = "internal server error: process is shutting down\n".to_owned();
        assert_eq!(get(&health, "/readyz/shutdown", "").await.unwrap(), (500, failed));
        assert_eq!(get(&health, "/readyz", "exclude=requestheader-client-ca").await.unwrap().0, 500);
        assert_eq!(get(&health, "/livez", "").await.unwrap().0, 200);
        // Upstream's `/healthz` does not know of it.
        assert_eq!(get(&health, "/healthz", "exclude=requestheader-client-ca").await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn what_is_excluded_is_said_and_what_cannot_be_too() {
        let health = Health::new(Arc::default());
        let query = "exclude=requestheader-client-ca&exclude=b&exclude=%22&exclude=b&verbose";
        let text = "[+]ping ok\n[+]requestheader-client-ca excluded: ok\nwarn: some health checks cannot be excluded: no \
                    matches for \"\\\"\",\"b\"\nhealthz check passed\n";
        assert_eq!(get(&health, "/healthz", query).await.unwrap(), (200, text.to_owned()));
        assert_eq!(get(&health, "/healthz", "exclude=requestheader-client-ca&exclude=b").await.unwrap().1, "ok");
    }

    #[tokio::test]
    async fn other_paths_are_not_health() {
        let health = Health::new(Arc::default());
        for path in [
            "",
            "/",
            "/livezz",
            "/livez/",
            "//livez",
            "/readyz/nonesuch",
            "/readyz/ping/",
            "/healthz/shutdown",
            "/apis",
            "livez",
        ] {
            assert_eq!(get(&health, path, "").await, None, "{path}");
        }
    }
}
