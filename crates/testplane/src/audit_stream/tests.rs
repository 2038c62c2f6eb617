//! A stand-in takes the server's place: what is tested is that the plane, the manifests and the flags fit together.

mod stand_in;

use serde_json::Value;

use self::stand_in::StandIn;
use super::*;
use crate::control_plane::{AuditPolicy, Options};
use crate::manifests;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn extra_arguments_take_the_place_of_defaults() {
    let defaults = || ["--shutdown-delay-duration=0s".to_owned(), "--webhook-port=1".to_owned()];
    let arguments = override_defaults(defaults(), &["--shutdown-delay-duration=5s", "-v=4"]);
    assert_eq!(arguments, ["--webhook-port=1", "--shutdown-delay-duration=5s", "-v=4"]);
    assert_eq!(override_defaults(defaults(), &[]), defaults());
}

#[tokio::test]
async fn the_plane_finds_what_is_announced() {
    let options =
        Options { audit_policy: AuditPolicy::Everything { config_map_bodies_in: vec![] }, ..Options::default() };
    let plane = ControlPlane::start(options).await.unwrap();
    let base = manifests::directory().join("base").display().to_string();
    // Its objects are valid; those that need the namespace have to wait until it exists.
    manifests::apply(&plane).await.unwrap();
    let dry_run = plane.admin().run(&["apply", "--dry-run=server", "--kustomize", &base]).await.unwrap();
    assert_eq!(dry_run.clone().success().unwrap().lines().count(), 12, "{dry_run:?}");
    assert_eq!(dry_run.stderr, "");

    let mut stand_in = StandIn::start(&plane).await.unwrap();
    let server = AuditStream::start_command(patient_shell(), &plane, &["-v=4"]).await.unwrap();
    manifests::wait_until_available(&plane).await.unwrap();
    a_user_arrives_with_name_and_groups(&plane, &mut stand_in).await;
    batches_arrive(&mut stand_in).await;

    // By now it has had the time to print its arguments.
    let log = server.log();
    assert!(log.contains("serve --bind-address=127.0.0.1") && log.contains(" -v=4"), "{log}");
    assert!(!server.terminate().await.unwrap().success(), "sleep does not exit 0 on SIGTERM");
    manifests::delete(&plane).await.unwrap();
}

#[tokio::test]
async fn says_what_is_wrong() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let error = AuditStream::start_command(patient_shell(), &plane, &[]).await.unwrap_err();
    assert!(format!("{error:#}").contains("apply the manifests first"), "{error:#}");

    manifests::apply(&plane).await.unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo bad flag; exit 2"]);
    let error = AuditStream::start_command(command, &plane, &[]).await.unwrap_err();
    assert!(format!("{error:#}").contains("bad flag"), "{error:#}");
}

async fn a_user_arrives_with_name_and_groups(plane: &ControlPlane, stand_in: &mut StandIn) {
    let user = plane.user_kubeconfig("jane", &["dev", "ops"]).unwrap();
    let path = "/apis/audit.k8s.io/v1/namespaces/default/namespacedevents?watch=true";
    let refused = plane.kubectl(&user).run(&["get", "--raw", path]).await.unwrap();
    assert!(refused.stderr.contains(r#"User "jane" cannot watch resource "namespacedevents""#), "{refused:?}");

    let binding = ["create", "rolebinding", "jane", "--clusterrole=audit-stream-namespace-watcher", "--user=jane"];
    plane.admin().run(&binding).await.unwrap().success().unwrap();
    let mut stream = plane.kubectl(&user).stream(&["get", "--raw", path]).unwrap();
    assert_eq!(stream.line_within(SOON).await.unwrap(), "{}");
    let (status, complaint) = stream.finish().await.unwrap();
    assert!(status.success(), "{complaint}");
    let request = stand_in.next(|request| request.user == "jane").await;
    assert_eq!(request.groups, ["dev", "ops", "system:authenticated"]);
    assert_eq!(request.path, path);
    assert!(request.has_certificate);
}

async fn batches_arrive(stand_in: &mut StandIn) {
    let request = stand_in.next(|request| request.path.starts_with("/webhook")).await;
    assert!(request.has_certificate);
    let batch: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(batch["kind"], "EventList");
    assert!(!batch["items"].as_array().unwrap().is_empty());
}

fn patient_shell() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"echo "$@"; exec sleep 60"#, "sh"]);
    command
}
