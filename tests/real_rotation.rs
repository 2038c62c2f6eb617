//! CAs and certificates are replaced while people read, as an operator does it: the new one is trusted beside the old one,
//! then used, then trusted alone.
//!
//! Each new CA has the old one's name, so that nothing but its key tells them apart. audit-stream itself is never restarted.

use std::fs;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::control_plane::{FRONT_PROXY, SERVING_NAME, WEBHOOK_CLIENT};
use audit_stream_testplane::events::{event, event_list, fresh_audit_id};
use audit_stream_testplane::front_proxy::{Client, FrontProxy, Protocol, Response, Target, request};
use audit_stream_testplane::pki::{Authority, Identity};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};

use crate::real_cluster::{ARRIVAL, Cluster, watch_path};
use crate::real_readers::Record;
use crate::real_restarts::Story;

/// kube-apiserver hears of a file that changed at once, and looks once a minute in case it did not.
const HEARD: Duration = Duration::from_secs(75);

/// Who trusts kube-apiserver's front proxy, and client certificates: it merges its own CAs into it, and takes none away.
const TRUST: &str = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_serving_certificate_breaks_no_watch() -> Result<()> {
    let story = Story::begin().await?;
    let plane = &story.cluster.plane;
    let (old, new) = (plane.trust().serving.certificate_pem(), Authority::new("audit-stream-serving-ca"));
    let both = [old, new.certificate_pem()].concat();

    // Trusted beside the old one, by the aggregator and by the audit webhook, which reads its kubeconfig at start alone.
    set_ca_bundle(&story.cluster, &both).await?;
    restart_apiserver(&story.cluster, &plane.trust().webhook_client, &both).await?;
    story.write(20).await?;

    // Used: whoever connects from now on sees it.
    let pair = new.server("audit-stream", &[SERVING_NAME, "localhost", "127.0.0.1"]);
    pair.write(&plane.directory().join("pki"), "audit-stream")?;
    eventually(ARRIVAL, "the new certificate", async || Ok(serves(&story.cluster, new.certificate_pem()).await))
        .await?;
    ensure!(!serves(&story.cluster, old).await, "the old certificate is still served");
    story.write(20).await?;

    // Trusted alone.
    set_ca_bundle(&story.cluster, new.certificate_pem()).await?;
    restart_apiserver(&story.cluster, &plane.trust().webhook_client, new.certificate_pem()).await?;
    story.write(20).await?;
    end(story, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_ca_of_the_webhooks_clients_loses_no_event_and_lets_nobody_else_in() -> Result<()> {
    let story = Story::begin().await?;
    let plane = &story.cluster.plane;
    let (old, new) = (&plane.trust().webhook, Authority::new("audit-webhook-ca"));
    let stranger = Authority::new("audit-webhook-ca");
    let posts = async |authority: &Authority| {
        let client = webhook(&story.cluster, authority).await;
        Ok::<_, anyhow::Error>(client.is_some_and(|status| status == 200))
    };
    // A connection of the old one's that stays open.
    let open = story.cluster.webhook().await?;
    ensure!(post(&open).await?.status == 200, "the old one is not believed to begin with");
    ensure!(!posts(&new).await?, "the new one is believed before it was told of");

    let file = &plane.trust().files.webhook_ca;
    replace(file, &[old.certificate_pem(), new.certificate_pem()].concat())?;
    eventually(ARRIVAL, "the new CA", async || posts(&new).await).await?;
    ensure!(posts(old).await?, "the old one is not believed beside the new one");

    restart_apiserver(&story.cluster, &new.client(WEBHOOK_CLIENT, &[]), plane.trust().serving.certificate_pem())
        .await?;
    story.write(20).await?;

    replace(file, new.certificate_pem())?;
    eventually(ARRIVAL, "the end of the old CA", async || Ok(!posts(old).await?)).await?;
    // Also where its certificate was verified while it was good.
    let refused = post(&open).await;
    ensure!(refused.as_ref().is_ok_and(|answer| answer.status != 200) || refused.is_err(), "the open one is believed");
    ensure!(posts(&new).await?, "the new one is not believed alone");
    ensure!(!posts(&stranger).await?, "anybody of that name is believed");
    story.write(20).await?;
    end(story, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_ca_of_the_front_proxy_breaks_no_watch_and_lets_nobody_else_in() -> Result<()> {
    let story = Story::begin().await?;
    let (cluster, plane) = (&story.cluster, &story.cluster.plane);
    let admin = cluster.client("root", &["system:masters"]).await?;
    let (old, new) = (&plane.trust().front_proxy, Authority::new("front-proxy-ca"));
    let stranger = Authority::new("front-proxy-ca");
    let is_believed = async |authority: &Authority| {
        let proxy = front_proxy(cluster, authority).await?;
        asks_as_somebody(&proxy).await
    };
    // A connection of the old one's that stays open.
    let open = front_proxy(cluster, old).await?;
    ensure!(asks_as_somebody(&open).await?, "the old one is not believed to begin with");
    ensure!(!is_believed(&new).await?, "the new one is believed before it was told of");

    let file = &plane.trust().files.front_proxy_ca;
    replace(file, &[old.certificate_pem(), new.certificate_pem()].concat())?;
    eventually(HEARD, "the new CA", async || is_believed(&new).await).await?;
    ensure!(is_believed(old).await?, "the old one is not believed beside the new one");

    new.client(FRONT_PROXY, &[]).write(&plane.directory().join("pki"), FRONT_PROXY)?;
    plane.stop_apiserver().await?;
    plane.start_apiserver().await?;
    story.write(20).await?;

    // kube-apiserver forgets no CA that the ConfigMap has: somebody has to.
    replace(file, new.certificate_pem())?;
    plane.stop_apiserver().await?;
    plane.start_apiserver().await?;
    story.write(20).await?;
    let trusts = async |pem: &str| {
        let config_map = admin.get(TRUST, &[]).await?;
        Ok::<_, anyhow::Error>(config_map.status == 200 && holds(&config_map, "requestheader-client-ca-file", pem)?)
    };
    ensure!(trusts(old.certificate_pem()).await?, "kube-apiserver has taken the old CA out of the ConfigMap by itself");
    ensure!(admin.send(request("DELETE", TRUST, &[], "")?).await?.status == 200, "the ConfigMap stays");
    eventually(HEARD, "the ConfigMap", async || trusts(new.certificate_pem()).await).await?;
    ensure!(!trusts(old.certificate_pem()).await?, "the old CA came back");
    eventually(ARRIVAL, "the end of the old CA", async || Ok(!is_believed(old).await?)).await?;
    ensure!(!asks_as_somebody(&open).await?, "the old one is believed where it was verified while it was good");
    ensure!(is_believed(&new).await?, "the new one is not believed alone");
    ensure!(!is_believed(&stranger).await?, "anybody of that name is believed");
    story.write(20).await?;
    end(story, 2).await
}

/// Those who come to audit-stream themselves, past kube-apiserver.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_client_ca_lets_its_users_in_and_then_nobody_of_the_old_one() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.namespace("shop").await?;
    let admin = cluster.client("root", &["system:masters"]).await?;
    cluster.allow(&admin, "dora", "shop").await?;
    let (old, new) = (&cluster.plane.trust().cluster, Authority::new("cluster-ca"));
    let stranger = Authority::new("cluster-ca");
    let watches = async |authority: &Authority| watches_directly(&cluster, authority).await;
    ensure!(watches(old).await?, "the old one is not believed to begin with");
    ensure!(!watches(&new).await?, "the new one is believed before it was told of");

    let file = &cluster.plane.trust().files.cluster_ca;
    replace(file, &[old.certificate_pem(), new.certificate_pem()].concat())?;
    eventually(HEARD, "the new CA", async || watches(&new).await).await?;
    ensure!(watches(old).await?, "the old one is not believed beside the new one");

    replace(file, new.certificate_pem())?;
    let root = new.client("root", &["system:masters"]);
    let root = Client::connect(cluster.apiserver("root", &[]).identity(&root)).await?;
    let is_heard = async || Ok(admin.get(TRUST, &[]).await?.status == 401 && root.get(TRUST, &[]).await?.status == 200);
    eventually(HEARD, "kube-apiserver to believe the new CA alone", is_heard).await?;
    ensure!(root.send(request("DELETE", TRUST, &[], "")?).await?.status == 200, "the ConfigMap stays");
    eventually(HEARD, "the end of the old CA", async || Ok(!watches(old).await?)).await?;
    ensure!(watches(&new).await?, "the new one is not believed alone");
    ensure!(!watches(&stranger).await?, "anybody of that name is believed");
    Ok(())
}

/// All that was written has arrived, and no watch was broken but by kube-apiserver's own restarts.
async fn end(story: Story, restarts: usize) -> Result<()> {
    for (name, Record { sessions, .. }) in story.end_whole().await? {
        ensure!(sessions.len() <= 1 + restarts, "{name}: {} watches, and {restarts} restarts", sessions.len());
    }
    Ok(())
}

async fn eventually(within: Duration, what: &str, is_so: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + within;
    while !is_so().await? {
        ensure!(Instant::now() < deadline, "{what}: not within {within:?}");
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// In one step, as a Secret's volume does it: nobody reads half a file.
fn replace(file: &std::path::Path, content: &str) -> Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, content)?;
    fs::rename(&next, file).with_context(|| format!("cannot replace {}", file.display()))
}

async fn restart_apiserver(cluster: &Cluster, webhook_client: &Identity, serving_ca_pem: &str) -> Result<()> {
    cluster.plane.set_webhook_peers(webhook_client, serving_ca_pem)?;
    cluster.plane.stop_apiserver().await?;
    cluster.plane.start_apiserver().await
}

async fn set_ca_bundle(cluster: &Cluster, pem: &str) -> Result<()> {
    let patch = json!({ "spec": { "caBundle": STANDARD.encode(pem) } }).to_string();
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let name = format!("{version}.audit.k8s.io");
        let arguments = ["patch", "apiservice", &name, "--type=merge", "--patch", &patch];
        cluster.plane.admin().run(&arguments).await?.success()?;
    }
    Ok(())
}

fn secure(cluster: &Cluster, serving_ca_pem: &str) -> Target {
    Target::new(([127, 0, 0, 1], cluster.plane.ports().secure).into(), serving_ca_pem, SERVING_NAME)
}

/// Whether a new connection is served with a certificate of this CA, on both ports.
async fn serves(cluster: &Cluster, ca_pem: &str) -> bool {
    let api = Client::connect(secure(cluster, ca_pem)).await;
    let webhook = ([127, 0, 0, 1], cluster.plane.ports().webhook).into();
    let identity = &cluster.plane.trust().webhook_client;
    let webhook = Client::connect(Target::new(webhook, ca_pem, SERVING_NAME).identity(identity)).await;
    api.is_ok() && webhook.is_ok()
}

/// What a new connection with a certificate of this CA is answered, if it is answered at all.
async fn webhook(cluster: &Cluster, authority: &Authority) -> Option<u16> {
    let address = ([127, 0, 0, 1], cluster.plane.ports().webhook).into();
    let target = Target::new(address, cluster.plane.trust().serving.certificate_pem(), SERVING_NAME);
    let client = Client::connect(target.identity(&authority.client(WEBHOOK_CLIENT, &[]))).await.ok()?;
    Some(post(&client).await.ok()?.status)
}

async fn post(client: &Client) -> Result<Response> {
    let body = event_list(&[event().audit_id(&fresh_audit_id()).build()]);
    client.send(request("POST", "/webhook/test", &[("content-type", "application/json")], body)?).await
}

async fn front_proxy(cluster: &Cluster, authority: &Authority) -> Result<FrontProxy> {
    let identity = authority.client(FRONT_PROXY, &[]);
    let target = secure(cluster, cluster.plane.trust().serving.certificate_pem());
    FrontProxy::through(target.identity(&identity).protocol(Protocol::Http2)).await
}

/// Whether somebody in whose name it asks is believed to be asking.
async fn asks_as_somebody(proxy: &FrontProxy) -> Result<bool> {
    let answer = proxy.user("root").groups(["system:masters"]).try_watch(&watch_path("shop")).await?;
    match answer {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.status == 401 => Ok(false),
        Err(refusal) => anyhow::bail!("{}: {}", refusal.status, refusal.body),
    }
}

/// Whether a user of this CA may open the watch that is theirs.
async fn watches_directly(cluster: &Cluster, authority: &Authority) -> Result<bool> {
    let target = secure(cluster, cluster.plane.trust().serving.certificate_pem());
    let client = Client::connect(target.identity(&authority.client("dora", &[]))).await?;
    match client.watch(request("GET", &watch_path("shop"), &[], "")?).await? {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.status == 401 => Ok(false),
        Err(refusal) => anyhow::bail!("{}: {}", refusal.status, refusal.body),
    }
}

/// Whether a bundle of the ConfigMap has a certificate, however its lines are broken.
fn holds(config_map: &Response, key: &str, pem: &str) -> Result<bool> {
    let config_map = config_map.json()?;
    let bundle = config_map["data"][key].as_str().unwrap_or_default();
    let joined = |text: &str| text.split_whitespace().collect::<String>();
    Ok(joined(bundle).contains(&joined(pem)))
}
