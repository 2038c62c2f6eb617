//! The static documents of an aggregated API server: discovery, OpenAPI and `/version`.
//!
//! They are made once at start and answered from memory without asking anybody, because a discovery that fails or hangs
//! blocks every namespace deletion in the cluster (`NamespaceDeletionDiscoveryFailure`). The router calls this room after
//! authorization and passes its refusals on to `rejection`; nothing here knows users or builds an error.
//!
//! ```text
//! /apis                                   APIGroupList, or aggregated discovery v2 or v2beta1   groups
//! /apis/audit.k8s.io                      APIGroup                                              groups
//! /apis/audit.k8s.io/{version}            APIResourceList                                       groups
//! /openapi/v2                             swagger of all versions                               openapi
//! /openapi/v3                             where the next ones are, and their hashes             openapi
//! /openapi/v3/apis/audit.k8s.io/{version} OpenAPI of one version                                openapi
//! /version                                version.Info                                          version
//! ```
//!
//! Read against: kube-aggregator `pkg/apiserver/handler_discovery.go`, kube-openapi `pkg/handler` and `pkg/handler3`.

use std::collections::HashMap;

use audit_stream_api::{GROUP, Version};
use bytes::Bytes;
use http::{HeaderMap, Response};

use self::document::Document;
use crate::negotiation::{JSON, accepts_json, negotiate};

mod document;
mod groups;
mod openapi;
mod parameters;
#[cfg(test)]
mod tests;
mod version;

/// Every static document, by path.
pub struct Documents {
    by_path: HashMap<String, Place>,
}

/// What [`Documents`] has to say to a request for one of its paths.
#[derive(Debug)]
pub enum Answer {
    /// The document, or 304 to a client that holds it already. `HEAD` differs only in that the body is not sent.
    Response(Response<Bytes>),
    /// A document is here, but not in a form that the client accepts: 406, naming these media types.
    NotAcceptable(&'static [&'static str]),
}

/// What lives at a path.
enum Place {
    /// `/apis`, where `Accept` chooses between the plain list and the versions of aggregated discovery.
    Groups { list: Document, aggregated: Vec<(&'static str, Document)> },
    /// JSON for those who accept JSON.
    Negotiated(Document),
    /// JSON whatever `Accept` says: upstream does not look there on these paths.
    Unconditional(Document),
    /// As [`Place::Negotiated`], and never to change under a URL that names its hash.
    Hashed(Document),
}

impl Documents {
    /// Makes all documents.
    #[must_use]
    pub fn new() -> Self {
        let mut by_path = HashMap::from([
            ("/apis".to_owned(), groups_place()),
            (format!("/apis/{GROUP}"), Place::Negotiated(Document::json(&groups::group()))),
            ("/openapi/v2".to_owned(), Place::Negotiated(Document::json(&openapi::v2()).with_etag())),
            ("/version".to_owned(), Place::Unconditional(Document::pretty(&version::info()))),
        ]);
        let mut hashes = Vec::new();
        for version in Version::ALL {
            // No ETag: kube-aggregator sends the one of `/apis` along when it falls back to this document, and takes
            // nothing but a 200 (handler_discovery.go, fetchFreshDiscoveryForService).
            let resources = Document::json(&groups::resources(version));
            let path = format!("apis/{GROUP}/{}", version.as_str());
            by_path.insert(format!("/{path}"), Place::Negotiated(resources));

            let document = Document::json(&openapi::v3(version)).with_etag();
            by_path.insert(format!("/openapi/v3/{path}"), Place::Hashed(document.clone()));
            hashes.push((path, document));
        }
        let root = Document::json(&openapi::v3_root(hashes.iter().map(|(path, document)| (&**path, document.hash()))));
        by_path.insert("/openapi/v3".to_owned(), Place::Unconditional(root.with_etag()));
        Self { by_path }
    }

    /// Answers a `GET` or `HEAD` of a percent-decoded `path`; `None` if no document lives there.
    #[must_use]
    pub fn answer(&self, path: &str, query: Option<&str>, headers: &HeaderMap) -> Option<Answer> {
        let answered = match self.place(path)? {
            Place::Groups { list, aggregated } => {
                // Aggregated discovery wins over a plain clause wherever both stand, as in upstream's WrappedHandler.
                let wanted = negotiate(headers, |target| {
                    let target = target?;
                    aggregated.iter().find(|(version, _)| target == groups::discovery_target(version))
                });
                let chosen = wanted.map(|(_, document)| document).or_else(|| accepts_json(headers).then_some(list));
                chosen.map(|document| document.answer(headers))
            }
            Place::Negotiated(document) => accepts_json(headers).then(|| document.answer(headers)),
            Place::Unconditional(document) => Some(document.answer(headers)),
            Place::Hashed(document) => accepts_json(headers).then(|| document.answer_hashed(query, headers)),
        };
        Some(answered.map_or(Answer::NotAcceptable(JSON), Answer::Response))
    }

    fn place(&self, path: &str) -> Option<&Place> {
        self.by_path.get(path).or_else(|| {
            // go-restful serves these with one slash more; the OpenAPI handlers are registered for the exact path.
            let path = path.strip_suffix('/').filter(|path| !path.starts_with("/openapi/"))?;
            self.by_path.get(path)
        })
    }
}

impl Default for Documents {
    fn default() -> Self {
        Self::new()
    }
}

fn groups_place() -> Place {
    // kube-apiserver 1.27 to 1.29 asks for v2beta1 only, and clients may have either.
    let aggregated = ["v2", "v2beta1"].map(|version| {
        let document = Document::json(&groups::discovery(version)).with_etag();
        (version, document.typed(groups::discovery_content_type(version)).cacheable())
    });
    // What is asked for in `Accept` decides what comes, of the plain list too.
    Place::Groups { list: Document::json(&groups::list()).varying(), aggregated: aggregated.into() }
}
