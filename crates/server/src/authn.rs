//! Who is asking.
//!
//! The chain is upstream's (`k8s.io/apiserver/pkg/authentication/authenticatorfactory/delegating.go`): the front proxy's
//! headers, a client certificate, a bearer token, and anonymous where nothing was presented. The first that knows somebody
//! wins, even where one before it was shown something bad; a credential that nobody vouches for is 401 and never ignored.
//! What is stricter than upstream stands in `docs/decisions/0013-who-is-asking.md`.

pub mod certificate;
pub mod config_map;
pub mod files;
pub mod front_proxy;
pub mod tokens;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use kube::Client;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::timeout;
use tracing::error;

use crate::certs::CaBundle;
use crate::listener::Peer;
use files::TrustFiles;
use front_proxy::FrontProxyTrust;
use tokens::Tokens;

const ANONYMOUS: &str = "system:anonymous";
const AUTHENTICATED_GROUP: &str = "system:authenticated";
const UNAUTHENTICATED_GROUP: &str = "system:unauthenticated";

/// Requests that wait at a time and of which no certificate says whose they are. Any stranger's can be one, and each holds its headers,
/// of 64 KiB as they are counted on the wire and up to 150 KiB as they are kept: 38 MiB.
const MAX_WAITING: usize = 256;

/// How long a certificate waits to be judged while no CA is known yet.
const TRUST_TIMEOUT: Duration = Duration::from_secs(3);

/// Who is asking, as a `SubjectAccessReview` wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user name.
    pub name: String,
    /// Unique over time, where known.
    pub uid: Option<String>,
    /// In the order received.
    pub groups: Vec<String>,
    /// Keys in lower case.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Who is asking, and how that is known.
#[derive(Debug)]
pub struct Caller<'a> {
    /// Who.
    pub user: User,
    /// How.
    pub way: Way,
    /// Of those whom no certificate vouches for, until they are answered.
    pub waiting: Option<SemaphorePermit<'a>>,
}

/// How it is known who is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The front proxy says it.
    FrontProxy,
    /// They have shown it themselves.
    Credential,
    /// They have shown nothing.
    None,
}

/// Why it is not known who is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A credential was presented and is not good.
    Unauthorized,
    /// A certificate was shown, and nothing is known yet to judge it by.
    TrustNotLoaded,
    /// There is no room now to ask whose a token is, or for one more who waits and whom no certificate vouches for.
    Exhausted,
}

/// What one authenticator makes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Opinion {
    /// It is they.
    User(User),
    /// It is they, as the front proxy says.
    Proxied(User),
    /// It was shown nothing that concerns it.
    None,
    /// It was shown something that is not good. Another may know better.
    Bad,
    /// The front proxy's headers name more than one user, or one that cannot be read. No other authenticator is asked.
    Ambiguous,
}

/// Finds out who is asking.
#[derive(Debug)]
pub struct Authenticator {
    trust: watch::Sender<Arc<Trust>>,
    tokens: Tokens,
    /// One for each request that waits, for kube-apiserver mostly, and of which no certificate says whose it is.
    waiting: Semaphore,
}

/// By what certificates are judged.
#[derive(Debug, Clone, Default)]
struct Trust {
    /// Every source was read once.
    loaded: bool,
    clients: Option<Arc<CaBundle>>,
    front_proxy: Option<Arc<FrontProxyTrust>>,
    /// The front proxy is not trusted: see [`FrontProxyTrust::is_anybody_of`].
    anybody: bool,
}

/// Keeps `authenticator`'s trust in step with the ConfigMap, for what `files` do not say, until cancelled by being dropped.
pub async fn keep_in_step(client: Client, authenticator: Arc<Authenticator>, files: TrustFiles) {
    if files.are_complete() {
        return pending().await;
    }
    config_map::watch(client, authenticator, files).await;
}

// === impl Authenticator ===

impl Authenticator {
    /// Trusts no certificate yet.
    pub fn new(tokens: Tokens) -> Self {
        Self { trust: watch::Sender::default(), tokens, waiting: Semaphore::new(MAX_WAITING) }
    }

    /// Whether it was read once what certificates are judged by. Until then only tokens and anonymous can be told apart.
    pub fn ready(&self) -> bool {
        self.trust.borrow().loaded
    }

    /// Who is asking. Dropping the future abandons the question.
    ///
    /// # Errors
    /// If a credential was presented and is not good, or cannot be judged now.
    pub async fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller<'_>, Refused> {
        let by_certificate = match &*peer.certificates {
            [] => Opinion::None,
            chain => self.trust().await?.identify(chain, headers),
        };
        let known = |user: User, way, waiting| Ok(Caller { user: user.with_implied_groups(), way, waiting });
        let is_bad = match by_certificate {
            Opinion::Proxied(user) => return known(user, Way::FrontProxy, None),
            Opinion::User(user) => return known(user, Way::Credential, None),
            Opinion::Ambiguous => return Err(Refused::Unauthorized),
            Opinion::Bad => true,
            Opinion::None => false,
        };
        let waiting = Some(self.waiting.try_acquire().map_err(|_| Refused::Exhausted)?);
        match self.tokens.identify(headers, peer.address.ip()).await? {
            Opinion::User(user) => known(user, Way::Credential, waiting),
            Opinion::None if !is_bad => known(User::anonymous(), Way::None, waiting),
            _ => Err(Refused::Unauthorized),
        }
    }

    /// What is trusted now, or as soon as it is known.
    async fn trust(&self) -> Result<Arc<Trust>, Refused> {
        if self.ready() {
            return Ok(Arc::clone(&self.trust.borrow()));
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| Refused::TrustNotLoaded)?;
        let mut trust = self.trust.subscribe();
        match timeout(TRUST_TIMEOUT, trust.wait_for(|trust| trust.loaded)).await {
            Ok(Ok(trust)) => Ok(Arc::clone(&trust)),
            Ok(Err(_)) | Err(_) => Err(Refused::TrustNotLoaded),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Trust)) {
        self.trust.send_modify(|trust| {
            let trust = Arc::make_mut(trust);
            change(trust);
            let before = trust.anybody;
            trust.anybody = match (&trust.front_proxy, &trust.clients) {
                (Some(front_proxy), Some(clients)) => front_proxy.is_anybody_of(clients),
                _ => false,
            };
            if trust.anybody && !before {
                error!(
                    "no front proxy is trusted: its CA is one of clients too, and every client could pass for it; set \
                     --requestheader-allowed-names of kube-apiserver (or here, with --requestheader-client-ca-file) to the \
                     front proxy's common name, or give the front proxy a CA of its own"
                );
            }
        });
    }
}

impl Trust {
    fn identify(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap) -> Opinion {
        let front_proxy = self.front_proxy.as_ref().filter(|_| !self.anybody);
        let first = front_proxy.map_or(Opinion::None, |front_proxy| front_proxy.identify(chain, headers));
        if let Opinion::Proxied(_) | Opinion::Ambiguous = first {
            return first;
        }
        match self.clients.as_ref().map_or(Opinion::None, |clients| certificate::identify(clients, chain)) {
            Opinion::None => first,
            second => second,
        }
    }
}

impl User {
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            uid: None,
            groups: vec![UNAUTHENTICATED_GROUP.to_owned()],
            extra: BTreeMap::new(),
        }
    }

    /// Upstream's `AuthenticatedGroupAdder`: whoever is somebody is in `system:authenticated`. kube-aggregator's own
    /// requests come without any group.
    fn with_implied_groups(mut self) -> Self {
        let implied = [AUTHENTICATED_GROUP, UNAUTHENTICATED_GROUP];
        if self.name != ANONYMOUS && !self.groups.iter().any(|group| implied.contains(&group.as_str())) {
            self.groups.push(AUTHENTICATED_GROUP.to_owned());
        }
        self
    }

    /// What it takes in memory, with what each text costs besides its bytes.
    fn bytes(&self) -> u64 {
        let extra = self.extra.iter().flat_map(|(key, values)| values.iter().chain([key]));
        let texts = self.groups.iter().chain(&self.uid).chain([&self.name]).chain(extra);
        texts.map(|text| (text.len() + size_of::<String>()) as u64).sum()
    }
}

#[cfg(test)]
mod tests;
