//! One user's requests, as they leave kube-apiserver for an aggregated server.

use bytes::Bytes;

use anyhow::{Context as _, Result, anyhow};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::Full;

use super::client::{Client, Response};
use super::go_url;
use super::watch::Watch;
use crate::events::fresh_audit_id;

/// Requests of one user through the front proxy. Cheap to clone; a clone can be somebody slightly different.
#[derive(Clone)]
pub struct ProxiedUser {
    client: Client,
    name: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: Vec<(String, Vec<String>)>,
    audit_id: Option<String>,
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Add(String, Vec<u8>),
    Replace(String, Vec<u8>),
    Remove(String),
}

impl ProxiedUser {
    pub(super) fn new(client: Client, name: &str, groups: &[&str]) -> Self {
        Self {
            client,
            name: name.to_owned(),
            uid: None,
            groups: groups.iter().map(ToString::to_string).collect(),
            extra: Vec::new(),
            audit_id: None,
            changes: Vec::new(),
        }
    }

    /// Puts the user into these groups, before the ones that kube-apiserver itself adds.
    #[must_use]
    pub fn groups<G: Into<String>>(mut self, groups: impl IntoIterator<Item = G>) -> Self {
        self.groups.splice(0..0, groups.into_iter().map(Into::into));
        self
    }

    /// Sends `X-Remote-Uid`.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// Sends `X-Remote-Extra-KEY`, escaped, once for each value.
    #[must_use]
    pub fn extra(mut self, key: &str, values: &[&str]) -> Self {
        self.extra.push((key.to_owned(), values.iter().map(ToString::to_string).collect()));
        self
    }

    /// Sends this `Audit-ID` instead of a fresh one.
    #[must_use]
    pub fn audit_id(mut self, audit_id: &str) -> Self {
        self.audit_id = Some(audit_id.to_owned());
        self
    }

    /// Sends a header besides those that are there, also one of the same name.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.changes.push(Change::Add(name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Sends a header in the place of all of that name.
    #[must_use]
    pub fn replacing(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.changes.push(Change::Replace(name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Sends no header of that name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.changes.push(Change::Remove(name.to_owned()));
        self
    }

    /// GETs a path and query, encoded anew as kube-aggregator does.
    ///
    /// # Errors
    /// If no complete answer came within a minute.
    pub async fn get(&self, path_and_query: &str) -> Result<Response> {
        self.send(Method::GET, path_and_query, Bytes::new()).await
    }

    /// Sends any method; a body that is not empty goes as JSON.
    ///
    /// # Errors
    /// If no complete answer came within a minute.
    pub async fn send(&self, method: Method, path_and_query: &str, body: impl Into<Bytes>) -> Result<Response> {
        self.client.send(self.request(method, path_and_query, body.into())?).await
    }

    /// Opens a watch.
    ///
    /// # Errors
    /// If the answer is not 200, or none came within a minute.
    pub async fn watch(&self, path_and_query: &str) -> Result<Watch> {
        self.try_watch(path_and_query).await?.map_err(|refusal| {
            anyhow!("{} may not watch {path_and_query}: {} {}", self.name, refusal.status, refusal.body)
        })
    }

    /// Opens a watch, or returns the refusal: any answer but 200.
    ///
    /// # Errors
    /// If no answer came within a minute.
    pub async fn try_watch(&self, path_and_query: &str) -> Result<Result<Watch, Response>> {
        self.client.watch(self.request(Method::GET, path_and_query, Bytes::new())?).await
    }

    fn request(&self, method: Method, path_and_query: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        let forwarded = go_url::forwarded(path_and_query)?;
        let mut headers = self.headers(path_and_query)?;
        if !body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for change in &self.changes {
            change.apply(&mut headers)?;
        }
        let mut request = Request::builder().method(method).uri(&forwarded).body(Full::new(body))?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    // What the client sent (as kubectl get --raw), then what the proxy adds: `pkg/util/proxy/transport.go` of
    // apimachinery and `transport/round_trippers.go` of client-go.
    fn headers(&self, path_and_query: &str) -> Result<HeaderMap> {
        let path = path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(USER_AGENT, HeaderValue::from_static("kubectl/v1.37.1 (linux/amd64) kubernetes/testplane"));
        let mut add = |name: &str, value: &str| append(&mut headers, name, value.as_bytes());
        add("Audit-ID", &self.audit_id.clone().unwrap_or_else(fresh_audit_id))?;
        add("X-Forwarded-For", "127.0.0.1")?;
        // The proxy names the backend here, not the host that its client asked for.
        add("X-Forwarded-Host", &self.client.address().to_string())?;
        add("X-Forwarded-Proto", "https")?;
        add("X-Forwarded-Uri", &go_url::escaped_path(path)?)?;
        add("X-Remote-User", &self.name)?;
        if let Some(uid) = self.uid.as_deref().filter(|uid| !uid.is_empty()) {
            add("X-Remote-Uid", uid)?;
        }
        for group in &self.groups {
            add("X-Remote-Group", group)?;
        }
        for (key, values) in &self.extra {
            for value in values {
                add(&format!("X-Remote-Extra-{}", go_url::escaped_header_key(key)), value)?;
            }
        }
        Ok(headers)
    }
}

impl Change {
    fn apply(&self, headers: &mut HeaderMap) -> Result<()> {
        match self {
            Self::Add(name, value) => append(headers, name, value),
            Self::Replace(name, value) => {
                headers.remove(name);
                append(headers, name, value)
            }
            Self::Remove(name) => {
                headers.remove(name);
                Ok(())
            }
        }
    }
}

fn append(headers: &mut HeaderMap, name: &str, value: &[u8]) -> Result<()> {
    let header = HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("{name:?} is not a header name"))?;
    let value = HeaderValue::from_bytes(value).with_context(|| format!("not a value of the header {name}"))?;
    headers.append(header, value);
    Ok(())
}
