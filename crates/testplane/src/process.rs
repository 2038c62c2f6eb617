//! One child process: its output in a file, killed and reaped when dropped, its log quoted when it dies unexpectedly.
//!
//! Knows nothing of Kubernetes: `control_plane` and `audit_stream` say what to run and when it is ready.

pub mod watchdog;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::time::{Instant, sleep, timeout};

use self::watchdog::Watchdog;

const POLL: Duration = Duration::from_millis(25);
/// Go prints a flag error after its usage and a panic before its goroutines: enough lines for both.
const QUOTED_LINES: usize = 25;

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    watchdog: Watchdog,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`, so that a restart keeps what its predecessor said.
    ///
    /// # Errors
    /// If the log cannot be opened or the program not started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path, watchdog: &Watchdog) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot share the log file")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        watchdog.watch(child.id());
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), watchdog: watchdog.clone() })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds its stdout and stderr.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until `probe` succeeds.
    ///
    /// # Errors
    /// If the process ends before, or `deadline` passes; the text has the last failure of `probe` and the end of the
    /// log.
    pub async fn wait_until<F: Future<Output = Result<()>>>(
        &mut self,
        state: &str,
        deadline: Duration,
        // Not AsyncFnMut: a future that awaits one cannot move to another thread.
        mut probe: impl FnMut() -> F,
    ) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            self.ensure_running()?;
            let left = end.saturating_duration_since(Instant::now());
            let failure = match timeout(left, probe()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(_) => anyhow!("the probe had no answer"),
            };
            if Instant::now() >= end {
                bail!("{} was not {state} within {deadline:?}: {failure:#}{}", self.name, self.quote());
            }
            sleep(POLL).await;
        }
    }

    /// Succeeds as long as the process runs.
    ///
    /// # Errors
    /// If it has ended; the text has its exit status and the end of its log.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("{} ended unexpectedly ({status}){}", self.name, self.quote()),
        }
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// If it still runs after `deadline`; then it is killed.
    pub async fn terminate(mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal("TERM")?;
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "{} ignored SIGTERM for {deadline:?}{}", self.name, self.quote());
            sleep(POLL).await;
        }
    }

    /// Sends a signal by its name without `SIG`, such as `STOP`.
    ///
    /// # Errors
    /// If the process has ended already.
    pub fn signal(&mut self, signal: &str) -> Result<()> {
        // Without this check the number could belong to another process by now.
        self.ensure_running()?;
        // The shell's own `kill`: a program of that name is not on every machine, and a system call would be unsafe
        // code.
        let status = Command::new("sh")
            .args(["-c", r#"kill -s "$1" "$2""#, "kill", signal, &self.id().to_string()])
            .stderr(Stdio::null())
            .status()
            .context("cannot run sh")?;
        ensure!(status.success(), "cannot send SIG{signal} to {}", self.name);
        Ok(())
    }

    /// Ends it with SIGKILL. Dropping does the same.
    pub fn kill(self) {
        drop(self);
    }

    fn quote(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n    ");
        format!("; the end of {}:\n    {last}", self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a child that was reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.watchdog.forget(self.child.id());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    struct Fixture {
        directory: tempfile::TempDir,
        watchdog: Watchdog,
    }

    impl Fixture {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap(), watchdog: Watchdog::start(None).unwrap() }
        }

        fn shell(&self, script: &str) -> Process {
            let log = self.directory.path().join("log");
            Process::spawn("shell", Command::new("sh").args(["-c", script]), &log, &self.watchdog).unwrap()
        }
    }

    fn exists(pid: u32) -> bool {
        let mut kill = Command::new("sh");
        kill.args(["-c", r#"kill -0 "$1" 2>/dev/null"#, "kill", &pid.to_string()]).status().unwrap().success()
    }

    #[tokio::test]
    async fn an_unexpected_end_quotes_the_log() {
        let fixture = Fixture::new();
        let mut process = fixture.shell("echo cannot bind; exit 3");
        let error = process.wait_until("ready", SOON, || async { bail!("not yet") }).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("cannot bind"), "{error}");
    }

    #[tokio::test]
    async fn a_deadline_quotes_the_probe() {
        let fixture = Fixture::new();
        let mut process = fixture.shell("exec sleep 60");
        let short = Duration::from_millis(50);
        let error = process.wait_until("ready", short, || async { bail!("refused") }).await.unwrap_err().to_string();
        assert!(error.contains("was not ready within 50ms: refused"), "{error}");
    }

    #[tokio::test]
    async fn terminate_reports_how_it_ended() {
        let fixture = Fixture::new();
        let mut process = fixture.shell("trap 'exit 7' TERM; echo armed; while :; do sleep 0.05; done");
        let log = process.log_path().to_owned();
        let armed = || async {
            ensure!(std::fs::read_to_string(&log)?.contains("armed"), "silent");
            Ok(())
        };
        process.wait_until("armed", SOON, armed).await.unwrap();
        assert_eq!(process.terminate(SOON).await.unwrap().code(), Some(7));
    }

    #[tokio::test]
    async fn dropping_kills_and_reaps() {
        let fixture = Fixture::new();
        let process = fixture.shell("exec sleep 60");
        let pid = process.id();
        assert!(exists(pid));
        drop(process);
        assert!(!exists(pid));
    }

    /// What happens to a plane whose test is killed: no destructor runs, the pipe closes all the same.
    #[tokio::test]
    async fn the_watchdog_kills_what_is_left() {
        let directory = tempfile::tempdir().unwrap().keep();
        let watchdog = Watchdog::start(Some(&directory)).unwrap();
        let (mut left, mut forgotten) =
            (Command::new("sleep").arg("60").spawn().unwrap(), Command::new("sleep").arg("60").spawn().unwrap());
        for pid in [1_000_000_000, forgotten.id(), left.id()] {
            watchdog.watch(pid);
        }
        watchdog.forget(forgotten.id());
        drop(watchdog);
        assert!(!left.wait().unwrap().success());
        assert!(!directory.exists());
        assert!(forgotten.try_wait().unwrap().is_none(), "what was forgotten is left alone");
        forgotten.kill().unwrap();
        forgotten.wait().unwrap();
    }
}
