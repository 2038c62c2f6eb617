//! Keeps trust in step with `kube-system/extension-apiserver-authentication`.
//!
//! kube-apiserver writes that ConfigMap and merges into it while CAs rotate. Each part of it is judged alone: one that cannot
//! be read or is gone leaves the last good one in force, as upstream does, and so does a ConfigMap that disappears:
//! kube-apiserver puts it back within a minute.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tracing::{info, warn};

use super::Authenticator;
use super::files::TrustFiles;
use super::front_proxy::FrontProxyTrust;
use crate::certs::CaBundle;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
const CLIENT_CA: &str = "client-ca-file";

/// Watches until cancelled by being dropped, for what does not come from `files`. Errors are retried with a growing pause.
pub async fn watch(client: Client, authenticator: Arc<Authenticator>, files: TrustFiles) {
    let config_maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    // RBAC grants this one object by name, and that grant matches a list or watch with this selector alone.
    let this_one = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut changes = watcher(config_maps, this_one).default_backoff().applied_objects().into_stream().boxed();
    let mut last = None;
    loop {
        match changes.try_next().await {
            // The same again, after a watch began anew, says nothing new, and what is wrong with it was told.
            Ok(Some(config_map)) if last.as_ref() == Some(&config_map.data) => {}
            Ok(Some(config_map)) => {
                adopt(config_map.data.as_ref().unwrap_or(&BTreeMap::new()), &authenticator, &files);
                last = Some(config_map.data);
            }
            // The watcher never ends by itself.
            Ok(None) => return,
            Err(error) => warn!(
                %error,
                "cannot watch configmap {NAMESPACE}/{NAME}; usually fixed by `kubectl create rolebinding -n {NAMESPACE} \
                 ROLEBINDING_NAME --role=extension-apiserver-authentication-reader --serviceaccount=YOUR_NS:YOUR_SA`"
            ),
        }
    }
}

/// What the ConfigMap says of one thing.
enum Said<T> {
    This(T),
    Nothing,
    /// It says something that is not usable.
    Unusable,
}

/// Takes over what the ConfigMap says now, in one step, so that no request sees half of it.
pub(super) fn adopt(data: &BTreeMap<String, String>, authenticator: &Authenticator, files: &TrustFiles) {
    // Read before the change, for which every request waits.
    let clients = if files.client_ca.is_none() { client_ca(data) } else { Said::Nothing };
    let front_proxy = if files.front_proxy.is_none() { front_proxy(data) } else { Said::Nothing };
    authenticator.change(|trust| {
        // Not ready with a part that cannot be read, as long as there is no good one: whom it is about would be refused.
        trust.loaded |= !matches!(clients, Said::Unusable) && !matches!(front_proxy, Said::Unusable);
        if let Said::This(clients) = clients {
            trust.clients = Some(Arc::new(clients));
        }
        if let Said::This(front_proxy) = front_proxy {
            trust.front_proxy = Some(Arc::new(front_proxy));
        }
    });
}

fn client_ca(data: &BTreeMap<String, String>) -> Said<CaBundle> {
    match data.get(CLIENT_CA).map(|pem| CaBundle::parse(pem.as_bytes())) {
        Some(Ok(clients)) => {
            info!("loaded the CA of clients from configmap {NAMESPACE}/{NAME}");
            Said::This(clients)
        }
        Some(Err(error)) => {
            let error = format!("{error:#}");
            warn!(error, "{CLIENT_CA} of configmap {NAMESPACE}/{NAME} is not usable, the last good one stays");
            Said::Unusable
        }
        // Some clusters have none (kubernetes/kubernetes#65724).
        None => {
            info!("configmap {NAMESPACE}/{NAME} has no {CLIENT_CA}, what was known before stays");
            Said::Nothing
        }
    }
}

fn front_proxy(data: &BTreeMap<String, String>) -> Said<FrontProxyTrust> {
    match FrontProxyTrust::from_config_map(data) {
        Ok(Some(front_proxy)) => {
            info!("loaded the front proxy's CA from configmap {NAMESPACE}/{NAME}");
            Said::This(front_proxy)
        }
        Ok(None) => {
            warn!(
                "configmap {NAMESPACE}/{NAME} has no requestheader-client-ca-file, because kube-apiserver runs without the flag of \
                 that name: no front proxy is trusted but one that was known before"
            );
            Said::Nothing
        }
        Err(error) => {
            let error = format!("{error:#}");
            warn!(error, "the front proxy of configmap {NAMESPACE}/{NAME} is not usable, the last good one stays");
            Said::Unusable
        }
    }
}
