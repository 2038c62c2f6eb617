//! Applies the project's own manifests to a plane: `overlays/local`, with the plane's port and CA on top.
//!
//! The manifests are copied first, so that the checkout is only read, and `KEEP_PLANE=1` shows what was applied.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;

/// What every object of ours is labelled with.
const SELECTOR: &str = "app.kubernetes.io/name=audit-stream";

/// The `manifests` directory of this checkout.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests")
}

/// Announces audit-stream to the plane. Until it runs, the `APIServices` are not available.
///
/// # Errors
/// If the manifests cannot be copied, or kube-apiserver does not accept them.
pub async fn apply(plane: &ControlPlane) -> Result<()> {
    let overlay = render(plane)?.display().to_string();
    plane.admin().run(&["apply", "--kustomize", &overlay]).await?.success().context("cannot apply the manifests")?;
    Ok(())
}

/// Waits until kube-apiserver has found audit-stream behind each `APIService`.
///
/// # Errors
/// If that takes more than 50 s; the text names the `APIServices`.
pub async fn wait_until_available(plane: &ControlPlane) -> Result<()> {
    // It asks less and less often while nobody answers, every 30 s at last; a change makes it ask now.
    let nudge = ["annotate", "apiservices", "--overwrite", "--selector", SELECTOR, "audit-stream.dev/nudge=now"];
    let wait = ["wait", "apiservices", "--for=condition=Available", "--timeout=50s", "--selector", SELECTOR];
    plane.admin().run(&nudge).await?.success()?;
    plane.admin().run(&wait).await?.success().context("kube-apiserver does not reach audit-stream")?;
    Ok(())
}

/// Takes the announcement back, in the order that the documentation gives: `APIServices` first.
///
/// # Errors
/// If kube-apiserver refuses.
pub async fn delete(plane: &ControlPlane) -> Result<()> {
    let (admin, overlay) = (plane.admin(), render(plane)?.display().to_string());
    admin.run(&["delete", "apiservices", "--selector", SELECTOR]).await?.success()?;
    admin.run(&["delete", "--ignore-not-found", "--kustomize", &overlay]).await?.success()?;
    Ok(())
}

/// Writes the overlay of this plane, and returns its directory.
fn render(plane: &ControlPlane) -> Result<PathBuf> {
    let copy = plane.directory().join("manifests");
    copy_directory(&directory(), &copy).context("cannot copy the manifests")?;
    let overlay = copy.join("overlays/plane");
    std::fs::create_dir_all(&overlay).context("cannot create the plane's overlay")?;
    let ca = plane.trust().serving.certificate_pem();
    let text = kustomization(plane.ports().secure, ca).to_string();
    std::fs::write(overlay.join("kustomization.yaml"), text).context("cannot write the plane's overlay")?;
    Ok(overlay)
}

fn kustomization(port: u16, ca_pem: &str) -> Value {
    let patch = json!([
        { "op": "replace", "path": "/spec/service/port", "value": port },
        { "op": "add", "path": "/spec/caBundle", "value": STANDARD.encode(ca_pem) },
    ]);
    json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../local"],
        "patches": [{ "target": { "kind": "APIService" }, "patch": patch.to_string() }],
    })
}

fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_directory(&entry.path(), &target)?,
            false => std::fs::copy(entry.path(), target).map(drop)?,
        }
    }
    Ok(())
}
