//! The program behind `hack/demo`: one story, on the real control plane or on fakes, to be watched or to be checked.
//!
//! Stdout is the story and the stream. Whatever is not a frame begins with `#`, but for the introduction.

mod check;
mod fakes;
mod live;
mod plane;
mod real;
mod story;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use audit_stream_testplane::assets::Assets;
use clap::Parser;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use self::fakes::Fakes;
use self::plane::Plane;
use self::real::RealPlane;

/// Of a check. Six seconds are usual, and a machine that also compiles is slow.
const START_DEADLINE: Duration = Duration::from_secs(50);
/// Of a check, once everything runs. Each of its steps has a shorter one, and says what it waited for.
const CHECK_DEADLINE: Duration = Duration::from_secs(50);
/// Ctrl-C also ends every kubectl: what they then complain about may be here before our own signal.
const SIGNAL_DELAY: Duration = Duration::from_millis(300);

/// Shows audit-stream at work: what an unprivileged user sees of their namespace, while others act in it.
#[derive(Parser)]
#[command(name = "hack/demo", max_term_width = 120)]
struct Args {
    /// Play it once, verify what is shown, and exit 0 or 1.
    #[arg(long)]
    check: bool,

    /// Play it on fakes instead of a real control plane.
    #[arg(long)]
    testplane: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    // Both arms drop the other's future, and with it everything that it started, before anything else is said.
    let outcome = tokio::select! {
        biased;
        stopped = signalled() => stopped.map(|()| false),
        played = play(&args) => played.map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        // Somebody stopped it, or closed its stdout: so it is meant to end, unless it was to find something out.
        Ok(false) if !args.check => {
            let _ = say("\n# Stopped. Every process has ended, and the temporary directory is gone.");
            ExitCode::SUCCESS
        }
        Err(error) if !args.check && is_broken_pipe(&error) => ExitCode::SUCCESS,
        Ok(false) => fail("stopped before the check was done"),
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// Chooses where to play, and plays.
async fn play(args: &Args) -> Result<()> {
    let lacking = if args.testplane { None } else { what_is_missing().await };
    if let Some(lacking) = lacking {
        say(&format!("# {lacking}"))?;
    }
    if args.testplane || lacking.is_some() {
        say("# Starting audit-stream, with fakes in place of kube-apiserver.")?;
        play_on(&start(args, Box::pin(Fakes::start())).await?, args).await?;
    } else {
        // Where it has to be built, as long as it takes.
        Assets::locate().await?;
        say("# Starting etcd, kube-apiserver (its audit webhook sends a batch a second) and audit-stream.")?;
        play_on(&start(args, Box::pin(RealPlane::start())).await?, args).await?;
    }
    let advice = "the fakes passed, but nothing was checked against kube-apiserver; with --testplane that is enough";
    lacking.map_or(Ok(()), |lacking| Err(anyhow!("{lacking}\n{advice}")))
}

async fn start<P>(args: &Args, starting: impl Future<Output = Result<P>>) -> Result<P> {
    let started = match args.check {
        true => {
            timeout(START_DEADLINE, starting).await.with_context(|| format!("not started within {START_DEADLINE:?}"))?
        }
        false => starting.await,
    };
    let advice = "cannot start (KEEP_PLANE=1 keeps the logs of a control plane that does not come up)";
    unless_signalled(started).await.context(advice)
}

async fn play_on(plane: &impl Plane, args: &Args) -> Result<()> {
    let played = match args.check {
        true => match timeout(CHECK_DEADLINE, check::check(plane)).await {
            Ok(played) => played,
            Err(_) => Err(anyhow!("expected: done within {CHECK_DEADLINE:?}; seen: what is above")),
        },
        false => live::live(plane).await,
    };
    let Err(error) = unless_signalled(played).await else { return Ok(()) };
    if is_broken_pipe(&error) {
        return Err(error);
    }
    match keep_logs(&plane.logs()) {
        Ok(kept) => bail!("{error:#}\nThe logs are in {}", kept.display()),
        Err(lost) => bail!("{error:#}\nThe logs are lost: {lost:#}"),
    }
}

/// Hands a failure on only after a signal would have ended this program.
async fn unless_signalled<T>(result: Result<T>) -> Result<T> {
    if result.is_err() {
        sleep(SIGNAL_DELAY).await;
    }
    result
}

/// What a real control plane lacks on this machine, and what to do about it.
async fn what_is_missing() -> Option<&'static str> {
    let is_given = std::env::var_os("KUBEBUILDER_ASSETS").is_some_and(|directory| !directory.is_empty());
    let go = Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    let is_missing = !is_given && go.is_err_and(|error| error.kind() == ErrorKind::NotFound);
    is_missing.then_some(
        "Go is missing, so there is no kube-apiserver: install Go (hack/tools/go.mod says which), or set \
         KUBEBUILDER_ASSETS to a directory with etcd, kube-apiserver and kubectl.",
    )
}

/// Ctrl-C, a closed terminal, or a polite end.
async fn signalled() -> Result<()> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut terminate = listen(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Copies the logs to where they outlive the plane.
fn keep_logs(logs: &Path) -> Result<PathBuf> {
    let kept = tempfile::Builder::new().prefix("audit-stream-demo-logs-").tempdir()?;
    for entry in std::fs::read_dir(logs).with_context(|| format!("cannot read {}", logs.display()))? {
        let entry = entry?;
        std::fs::copy(entry.path(), kept.path().join(entry.file_name()))?;
    }
    Ok(kept.keep())
}

/// Prints a line. Unlike `println!` it does not panic when nobody reads any more.
fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to stdout")
}

fn fail(why: &str) -> ExitCode {
    eprintln!("hack/demo: {why}");
    ExitCode::FAILURE
}

fn is_broken_pipe(error: &Error) -> bool {
    let io =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    error.chain().any(|cause| io(cause) == Some(ErrorKind::BrokenPipe))
}
