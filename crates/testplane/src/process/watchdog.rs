//! Cleans up where no destructor runs: after SIGKILL, `abort`, `exit`, or for a plane kept in a `static`.
//!
//! A small shell waits on a pipe that only this process holds open. When the pipe closes, for whatever reason, the
//! shell kills what is still registered and removes the directory. In the ordinary case everything was unregistered
//! before.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

/// Ctrl-C reaches the whole foreground process group: the shell has to outlive it.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=' '
while read -r verb pid; do
  case $verb in
    watch) pids="$pids$pid " ;;
    forget) pids="${pids%%" $pid "*} ${pids#*" $pid "}" ;;
  esac
done
for pid in $pids; do kill -9 "$pid"; done
[ -z "$1" ] || rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"#;

/// A handle to the shell; the last one dropped lets it go.
#[derive(Clone, Debug)]
pub struct Watchdog(Arc<Shell>);

#[derive(Debug)]
struct Shell(Mutex<Child>);

impl Watchdog {
    /// Starts the shell; `directory`, if any, is removed at the end.
    ///
    /// # Errors
    /// If there is no `sh`.
    pub fn start(directory: Option<&Path>) -> Result<Self> {
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "audit-stream-watchdog"])
            .arg(directory.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start sh, which cleans up after a crash")?;
        Ok(Self(Arc::new(Shell(Mutex::new(child)))))
    }

    /// The shell's own process id.
    pub fn id(&self) -> u32 {
        self.0.lock().id()
    }

    /// From now on `pid` dies with this process.
    pub(super) fn watch(&self, pid: u32) {
        self.say("watch", pid);
    }

    /// `pid` was reaped: its number may soon be someone else's.
    pub(super) fn forget(&self, pid: u32) {
        self.say("forget", pid);
    }

    /// A shell that is gone cannot be told anything, and a plane works without it: failures are ignored.
    fn say(&self, verb: &str, pid: u32) {
        if let Some(pipe) = self.0.lock().stdin.as_mut() {
            let _ = writeln!(pipe, "{verb} {pid}");
        }
    }
}

impl Shell {
    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let mut child = self.lock();
        drop(child.stdin.take());
        // Nothing is registered any more, or it is killed now: either way the shell ends at once.
        let _ = child.wait();
    }
}
