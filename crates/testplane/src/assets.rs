//! Finds the control plane's binaries, and the clients that nobody here wrote; starts none of them.
//!
//! `KUBEBUILDER_ASSETS`, the variable of controller-runtime's envtest, wins for the control plane. Without it
//! `hack/tools/build` of this checkout builds the pinned version once into a cache, which takes some minutes the first
//! time, and prints where. `hack/tools/clients` does the same for the clients, in half a minute.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;
use tokio::sync::OnceCell;

const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// The builder runs `go list`, some 0.3 s: once per process is enough.
static LOCATED: OnceCell<Assets> = OnceCell::const_new();

/// Where the binaries of one Kubernetes version are.
#[derive(Clone, Debug)]
pub struct Assets {
    /// The store.
    pub etcd: PathBuf,
    /// The API server, aggregator included.
    pub kube_apiserver: PathBuf,
    /// Absent from envtest's own assets. Without it no namespace is deleted and no `ServiceAccount` made.
    pub kube_controller_manager: Option<PathBuf>,
    /// The client.
    pub kubectl: PathBuf,
    /// The `37` of `v1.37.1`: some flags exist since one minor only.
    pub minor: u32,
}

impl Assets {
    /// The binaries named by `KUBEBUILDER_ASSETS`, else those of `hack/tools/build`.
    ///
    /// # Errors
    /// If a binary is missing, or the builder fails; the text names what, and what to do.
    pub async fn locate() -> Result<Self> {
        LOCATED.get_or_try_init(Self::find).await.cloned()
    }

    async fn find() -> Result<Self> {
        match std::env::var_os(VARIABLE).filter(|directory| !directory.is_empty()) {
            Some(directory) => Self::in_directory(Path::new(&directory))
                .await
                .with_context(|| format!("{VARIABLE} is set: correct it, or unset it to build the pinned version")),
            None => Self::in_directory(&build().await?).await,
        }
    }

    async fn in_directory(directory: &Path) -> Result<Self> {
        let binary = |name: &str| Some(directory.join(name)).filter(|path| path.is_file());
        let missing: Vec<_> =
            ["etcd", "kube-apiserver", "kubectl"].into_iter().filter(|name| binary(name).is_none()).collect();
        ensure!(missing.is_empty(), "{} has no {}", directory.display(), missing.join(", no "));
        let kube_apiserver = directory.join("kube-apiserver");
        Ok(Self {
            etcd: directory.join("etcd"),
            minor: minor_of(&kube_apiserver).await?,
            kube_apiserver,
            kube_controller_manager: binary("kube-controller-manager"),
            kubectl: directory.join("kubectl"),
        })
    }
}

async fn build() -> Result<PathBuf> {
    let advice = "install Go (hack/tools/go.mod says which) or point KUBEBUILDER_ASSETS at a directory with etcd, \
                  kube-apiserver, kube-controller-manager and kubectl";
    run_builder("build", advice).await
}

/// Programs that are written with other people's client libraries.
#[derive(Clone, Debug)]
pub struct Clients {
    /// The program of `tests/clients/go`.
    pub go: PathBuf,
    /// A Python that has what `tests/clients/python` needs.
    pub python: PathBuf,
    /// The programs for it.
    pub python_programs: PathBuf,
}

impl Clients {
    /// Those of `hack/tools/clients`.
    ///
    /// # Errors
    /// If the builder fails; the text says what to do.
    pub async fn locate() -> Result<Self> {
        let directory = run_builder("clients", "install Go, and Python 3.10 or newer with venv").await?;
        Ok(Self {
            go: directory.join("clients"),
            python: directory.join("venv/bin/python"),
            python_programs: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/python"),
        })
    }
}

/// Runs a script of `hack/tools`, which prints a directory. Its progress goes to our stderr, because on a cold cache it
/// is what one waits for.
async fn run_builder(name: &str, advice: &str) -> Result<PathBuf> {
    let builder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/tools").join(name);
    // Not `output()`, which would swallow what the builder says in the minutes that it takes.
    let running = Command::new(&builder).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true).spawn();
    let running = running.with_context(|| format!("{} does not run: {advice}", builder.display()))?;
    let output = running.wait_with_output().await.context("cannot wait for the builder")?;
    if !output.status.success() {
        bail!("{} failed with {}, its output is above: {advice}", builder.display(), output.status);
    }
    let directory = String::from_utf8(output.stdout).with_context(|| format!("hack/tools/{name} printed no UTF-8"))?;
    Ok(PathBuf::from(directory.trim()))
}

async fn minor_of(kube_apiserver: &Path) -> Result<u32> {
    let output = Command::new(kube_apiserver)
        .arg("--version")
        .output()
        .await
        .with_context(|| format!("{} does not run on this machine", kube_apiserver.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_minor(&text).with_context(|| format!("{} --version printed {text:?}", kube_apiserver.display()))
}

/// Reads `Kubernetes v1.37.1`, and what a build of a commit adds to it.
fn parse_minor(version: &str) -> Option<u32> {
    let (_, rest) = version.split_once("v1.")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_minor_version() {
        assert_eq!(parse_minor("Kubernetes v1.37.1\n"), Some(37));
        assert_eq!(parse_minor("Kubernetes v1.9.0-alpha.1+abc"), Some(9));
        assert_eq!(parse_minor("etcd 3.6"), None);
    }

    #[tokio::test]
    async fn names_what_a_directory_lacks() {
        let empty = tempfile::tempdir().unwrap();
        std::fs::write(empty.path().join("kubectl"), "").unwrap();
        let error = Assets::in_directory(empty.path()).await.unwrap_err().to_string();
        assert!(error.ends_with("has no etcd, no kube-apiserver"), "{error}");
    }
}
