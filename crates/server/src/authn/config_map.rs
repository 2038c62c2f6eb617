//! Keeps the front proxy's trust in step with `kube-system/extension-apiserver-authentication`.
//!
//! kube-apiserver writes that ConfigMap and merges into it while CAs rotate. A version that cannot be read, and a ConfigMap
//! that disappears, leave the last good one in force, as upstream does: kube-apiserver puts it back within a minute.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tracing::{info, warn};

use super::Authenticator;
use super::front_proxy::FrontProxyTrust;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";

/// Watches until cancelled by being dropped. Errors are retried with a growing pause.
pub async fn watch(client: Client, authenticator: Arc<Authenticator>) {
    let config_maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    // RBAC grants this one object by name, and that grant matches a list or watch with this selector alone.
    let this_one = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut changes = watcher(config_maps, this_one).default_backoff().applied_objects().into_stream().boxed();
    loop {
        match changes.try_next().await {
            Ok(Some(config_map)) => adopt(&config_map, &authenticator),
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

fn adopt(config_map: &ConfigMap, authenticator: &Authenticator) {
    match FrontProxyTrust::from_config_map(config_map) {
        Ok(trust) => {
            info!("loaded the front proxy's CA from configmap {NAMESPACE}/{NAME}");
            authenticator.trust_front_proxy(trust);
        }
        Err(error) => {
            warn!(error = format!("{error:#}"), "configmap {NAMESPACE}/{NAME} is not usable, the last good one stays");
        }
    }
}
