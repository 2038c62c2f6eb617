//! Who is asking.
//!
//! The chain is upstream's (`k8s.io/apiserver/pkg/authentication/authenticatorfactory/delegating.go`), as far as it is
//! built: the front proxy first, else anonymous. A credential that was presented and cannot be vouched for is never ignored:
//! a bearer token and a certificate of any other CA are answered 401.

pub mod config_map;
pub mod front_proxy;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::listener::Peer;
use front_proxy::{FrontProxyTrust, NoIdentity};

const ANONYMOUS: &str = "system:anonymous";
const AUTHENTICATED_GROUP: &str = "system:authenticated";
const UNAUTHENTICATED_GROUP: &str = "system:unauthenticated";

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

/// A credential was presented and is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unauthorized;

/// Finds out who is asking.
#[derive(Debug, Default)]
pub struct Authenticator {
    front_proxy: ArcSwapOption<FrontProxyTrust>,
}

impl Authenticator {
    /// Replaces what the front proxy is known by.
    pub fn trust_front_proxy(&self, trust: FrontProxyTrust) {
        self.front_proxy.store(Some(Arc::new(trust)));
    }

    /// Whether anything is known of the front proxy yet. Until then nobody but anonymous can be told apart.
    pub fn ready(&self) -> bool {
        self.front_proxy.load().is_some()
    }

    /// Who is asking.
    ///
    /// # Errors
    /// If a credential was presented and is not good.
    pub fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<User, Unauthorized> {
        let trust = self.front_proxy.load();
        let mut refused = headers.contains_key(AUTHORIZATION);
        if let (Some(trust), [leaf, intermediates @ ..]) = (trust.as_deref(), &*peer.certificates) {
            match trust.identify(leaf, intermediates, headers) {
                Ok(user) => return Ok(user.with_implied_groups()),
                // A front proxy that names nobody, or another client's certificate: no other authenticator vouches for it.
                Err(NoIdentity) => refused = true,
            }
        }
        if refused { Err(Unauthorized) } else { Ok(User::anonymous()) }
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
}

#[cfg(test)]
mod tests;
