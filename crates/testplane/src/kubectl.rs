//! kubectl as one user of a plane: run to its end, or read line by line while it runs.
//!
//! Each call names its kubeconfig and cache, so that neither the caller's own configuration nor the discovery cache
//! of an earlier plane at the same address has a say.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

/// No single command may hang a test; a watch is read with [`Kubectl::stream`].
const DEADLINE: Duration = Duration::from_secs(60);

/// kubectl with a user.
#[derive(Clone, Debug)]
pub struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

/// What a finished kubectl left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    arguments: String,
}

/// A kubectl that runs, killed when dropped.
#[derive(Debug)]
pub struct Stream {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: ChildStderr,
}

impl Kubectl {
    pub(crate) fn new(binary: &Path, kubeconfig: &Path, cache: &Path) -> Self {
        Self { binary: binary.to_owned(), kubeconfig: kubeconfig.to_owned(), cache: cache.to_owned() }
    }

    /// The command before it is started, for what the other methods do not offer.
    pub fn command<A: AsRef<str>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache);
        command.args(arguments.iter().map(AsRef::as_ref));
        // Plugins see the environment only; kuberc would bring in the caller's aliases and defaults.
        command.env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", &self.cache).env("KUBERC", "off");
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs to the end, however that is: see [`Output::success`].
    ///
    /// # Errors
    /// If it cannot be started or takes more than a minute.
    pub async fn run<A: AsRef<str>>(&self, arguments: &[A]) -> Result<Output> {
        self.run_with_input(arguments, "").await
    }

    /// `kubectl apply -f -` of `manifest`, YAML or JSON.
    ///
    /// # Errors
    /// If it fails; the text has kubectl's complaint.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.run_with_input(&["apply", "--filename", "-"], manifest).await?.success()
    }

    /// Like [`Self::run`], with `input` on its stdin.
    ///
    /// # Errors
    /// If it cannot be started or takes more than a minute.
    pub async fn run_with_input<A: AsRef<str>>(&self, arguments: &[A], input: &str) -> Result<Output> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        let write = async move {
            // A kubectl that reads nothing may be gone before we have written: its output tells more than our broken
            // pipe.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        let arguments = arguments.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
        let end = timeout(DEADLINE, async { tokio::join!(write, child.wait_with_output()).1 }).await;
        let output = end.with_context(|| format!("`kubectl {arguments}` did not end within {DEADLINE:?}"))??;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr), arguments })
    }

    /// Starts a command that prints as it goes, such as `get --raw …?watch=true`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn stream<A: AsRef<str>>(&self, arguments: &[A]) -> Result<Stream> {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        Ok(Stream { child, lines: BufReader::new(stdout).lines(), stderr })
    }
}

impl Output {
    /// Its stdout.
    ///
    /// # Errors
    /// If it failed; the text has the command and what kubectl complained about.
    pub fn success(self) -> Result<String> {
        ensure!(self.status.success(), "`kubectl {}`: {}: {}", self.arguments, self.status, self.stderr.trim_end());
        Ok(self.stdout)
    }
}

impl Stream {
    /// The next line, or `None` at the end of its output. Cancel-safe: a line that was not returned is not lost.
    ///
    /// # Errors
    /// If its output cannot be read.
    pub async fn next_line(&mut self) -> Result<Option<String>> {
        self.lines.next_line().await.context("cannot read kubectl's output")
    }

    /// The next line.
    ///
    /// # Errors
    /// If none comes within `deadline`, or the output ends; the text has what kubectl complained about.
    pub async fn line_within(&mut self, deadline: Duration) -> Result<String> {
        match timeout(deadline, self.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => bail!("kubectl's output ended: {}", self.complaint().await),
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("no line within {deadline:?}"),
        }
    }

    /// Its process id, as long as it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end: the status, and what it wrote to stderr. Lines that were not read are discarded.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub async fn finish(mut self) -> Result<(ExitStatus, String)> {
        while self.next_line().await?.is_some() {}
        let complaint = self.complaint().await;
        Ok((self.child.wait().await.context("cannot wait for kubectl")?, complaint))
    }

    /// Ends it with SIGKILL, as Ctrl-C on an impatient day would. Dropping does the same, a little later.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill kubectl")
    }

    async fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        // What could be read is worth having, also where reading failed.
        let _ = self.stderr.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }
}
