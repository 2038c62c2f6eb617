//! `/livez`, `/readyz`, `/healthz`: open to everybody, answered from memory.
//!
//! Source: `k8s.io/apiserver/pkg/server/healthz/healthz.go`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};

use crate::authn::Authenticator;
use crate::wire::{self, Body};

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
    /// The front proxy's CA is loaded; before that every request would be anonymous.
    FrontProxyCa,
    /// The server is not on its way out.
    Shutdown,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::FrontProxyCa => "requestheader-client-ca",
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
            Some((endpoint, one)) => (endpoint, Some(one).filter(|one| !one.is_empty())),
            None => (&path[1..], None),
        };
        let checks: &[Check] = match endpoint {
            "livez" => &[Check::Ping],
            "readyz" | "healthz" => &[Check::Ping, Check::FrontProxyCa, Check::Shutdown],
            _ => return None,
        };
        match one {
            None => Some(self.report(endpoint, checks, query)),
            Some(name) => {
                let check = checks.iter().find(|check| check.name() == name)?;
                Some(self.report(endpoint, std::slice::from_ref(check), query))
            }
        }
    }

    fn report(&self, endpoint: &str, checks: &[Check], query: &str) -> Response<Body> {
        let parameters = || form_urlencoded::parse(query.as_bytes());
        let excluded = |check: &&Check| !parameters().any(|(key, value)| key == "exclude" && value == check.name());
        let verbose = parameters().any(|(key, _)| key == "verbose");
        let mut lines = String::new();
        let mut healthy = true;
        for check in checks.iter().filter(excluded) {
            let passed = self.passes(*check);
            healthy &= passed;
            let (sign, word) = if passed { ('+', "ok") } else { ('-', "failed: reason withheld") };
            lines.push_str(&format!("[{sign}]{} {word}\n", check.name()));
        }
        let text = match (healthy, verbose) {
            (true, false) => "ok".to_owned(),
            (true, true) => format!("{lines}{endpoint} check passed\n"),
            (false, _) => format!("{lines}{endpoint} check failed\n"),
        };
        let mut response = Response::new(wire::whole(text));
        if !healthy {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    fn passes(&self, check: Check) -> bool {
        match check {
            Check::Ping => true,
            Check::FrontProxyCa => self.authenticator.ready(),
            Check::Shutdown => !self.shutting_down.load(Ordering::Relaxed),
        }
    }
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
        assert_eq!(get(&health, "/readyz/shutdown", "").await.unwrap().0, 500);
        assert_eq!(get(&health, "/livez", "").await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn other_paths_are_not_health() {
        let health = Health::new(Arc::default());
        for path in ["", "/", "/livezz", "/readyz/nonesuch", "/apis", "livez"] {
            assert_eq!(get(&health, path, "").await, None, "{path}");
        }
    }
}
