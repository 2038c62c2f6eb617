//! A fake of the kube-apiserver endpoints that audit-stream calls as a client: reviews of access and tokens, and the
//! `ConfigMap` that says which front proxies to trust.
//!
//! It denies what a test did not allow, remembers what it was asked, and can fail, hang or cut connections. It is no
//! apiserver: nothing else exists in it, and its RBAC knows no roles, only sentences. Imitates
//! `k8s.io/apiserver`'s delegated authentication and authorization from the far end.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::pki::Authority;
use crate::tasks::{Executor, Tasks};
use crate::tls;

mod config_map;
mod config_map_watch;
mod endpoints;
mod rules;
mod state;
#[cfg(test)]
mod tests;

pub use config_map::AuthenticationConfig;
pub use rules::{Grant, GrantOn, GrantVerb};
use state::{Health, State, lock};

/// The bearer token in the kubeconfig; any other is 401.
pub const TOKEN: &str = "the-service-account-token-of-audit-stream";
/// The user whom [`TOKEN`] stands for.
pub const OWN_USER: &str = "system:serviceaccount:audit-stream:audit-stream";

/// A running reviewer; dropping it closes its listener and connections.
pub struct Reviewer {
    address: SocketAddr,
    ca_pem: String,
    state: Arc<State>,
    _tasks: Tasks,
}

impl Reviewer {
    /// Listens on a port of loopback. There is no `ConfigMap` and no permission yet.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn start() -> Result<Self> {
        let authority = Authority::new("reviewer-ca");
        let identity = authority.server("kube-apiserver", &["127.0.0.1", "localhost"]);
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&identity)?));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on loopback")?;
        let address = listener.local_addr().context("a bound listener has an address")?;
        let state = Arc::new(State::new());
        let tasks = Tasks::new();
        tasks.executor().spawn(accept(listener, acceptor, state.clone(), tasks.executor()));
        Ok(Self { address, ca_pem: authority.certificate_pem().to_owned(), state, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CA of its serving certificate, which is for `127.0.0.1` and `localhost`.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A kubeconfig for it, complete in itself.
    pub fn kubeconfig(&self) -> String {
        let (address, ca) = (self.address, STANDARD.encode(&self.ca_pem));
        let cluster = format!("{{server: \"https://{address}\", certificate-authority-data: {ca}}}");
        format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: reviewer, cluster: {cluster}}}]\n\
             users: [{{name: audit-stream, user: {{token: {TOKEN}}}}}]\n\
             contexts: [{{name: reviewer, context: {{cluster: reviewer, user: audit-stream}}}}]\n\
             current-context: reviewer\n"
        )
    }

    /// Writes the kubeconfig into `directory`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_kubeconfig(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join("reviewer.kubeconfig");
        std::fs::write(&path, self.kubeconfig()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Permissions and tokens.
impl Reviewer {
    /// Begins a permission: `allow("alice").to("watch").on("namespacedevents").in_namespace("shop")`.
    pub fn allow(&self, user: &str) -> Grant<'_> {
        self.state.rules.allow_user(user)
    }

    /// Begins a permission for a group.
    pub fn allow_group(&self, group: &str) -> Grant<'_> {
        self.state.rules.allow_group(group)
    }

    /// Begins the withdrawal of a permission that was given in the same words.
    pub fn revoke(&self, user: &str) -> Grant<'_> {
        self.state.rules.revoke_user(user)
    }

    /// Begins the withdrawal of a group's permission.
    pub fn revoke_group(&self, group: &str) -> Grant<'_> {
        self.state.rules.revoke_group(group)
    }

    /// Makes `token` the bearer token of a user.
    pub fn accept_token(&self, token: &str, user: &str, groups: &[&str]) {
        let user = json!({"username": user, "uid": format!("uid-of-{user}"), "groups": groups});
        lock(&self.state.tokens).insert(token.to_owned(), user);
    }

    /// Makes `token` nobody's.
    pub fn revoke_token(&self, token: &str) {
        lock(&self.state.tokens).remove(token);
    }
}

/// The `ConfigMap` `kube-system/extension-apiserver-authentication`.
impl Reviewer {
    /// Creates or changes it; open watches are told.
    pub fn set_config_map(&self, config: &AuthenticationConfig) {
        self.state.config_map.set(config);
    }

    /// Deletes it; open watches are told.
    pub fn delete_config_map(&self) {
        self.state.config_map.delete();
    }

    /// Forgets its history: a watch from an older resourceVersion gets an `ERROR` 410.
    pub fn compact_config_map(&self) {
        self.state.config_map.compact();
    }
}

/// What goes wrong.
impl Reviewer {
    /// Answers every new request with this status code. Open watches go on.
    pub fn fail_with(&self, code: u16) {
        self.state.health.send_replace(Health::Failing(code));
    }

    /// Answers no new request until it recovers. Open watches go on.
    pub fn hang(&self) {
        self.state.health.send_replace(Health::Hanging);
    }

    /// Answers again, also those that hang.
    pub fn recover(&self) {
        self.state.health.send_replace(Health::Serving);
    }

    /// Takes this long for each answer.
    pub fn answer_after(&self, latency: Duration) {
        *lock(&self.state.latency) = latency;
    }

    /// Cuts every open connection; new ones are accepted.
    pub fn disconnect(&self) {
        std::mem::take(&mut *lock(&self.state.connections)).cancel();
    }
}

/// What it was asked.
impl Reviewer {
    /// The `spec` of every `SubjectAccessReview` so far, also of those that were not answered.
    pub fn reviews(&self) -> Vec<Value> {
        self.state.record().access_reviews
    }

    /// When each of them came, in that order.
    pub fn review_times(&self) -> Vec<Instant> {
        self.state.record().access_review_times
    }

    /// How many `TokenReview`s came so far.
    pub fn token_reviews(&self) -> usize {
        self.state.record().token_reviews
    }

    /// Method, path and query of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.record().requests
    }

    /// How many of the requests contain `part`.
    pub fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.contains(part)).count()
    }

    /// Waits for a `SubjectAccessReview`, past or future, whose `spec` is `wanted`.
    ///
    /// # Errors
    /// If none came in time.
    pub async fn reviewed(&self, within: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut record = self.state.watch_record();
        let found = record.wait_for(|record| record.access_reviews.iter().any(&wanted));
        let found = timeout(within, found).await.with_context(|| format!("no such review within {within:?}"))?;
        let record = found.context("the reviewer is gone")?;
        record.access_reviews.iter().rfind(|spec| wanted(spec)).cloned().context("it was there a moment ago")
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>, executor: Executor) {
    loop {
        // An error here is one connection's, or a shortage that passes.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let cut = lock(&state.connections).clone();
        executor.spawn(serve(stream, acceptor.clone(), state.clone(), executor.clone(), cut));
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    state: Arc<State>,
    executor: Executor,
    cut: CancellationToken,
) {
    // Whoever fails the handshake or breaks the connection sees it at their own end.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request| {
        let answer = endpoints::answer(state.clone(), request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let builder = auto::Builder::new(executor);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    cut.run_until_cancelled(connection).await;
}
