//! Files that are read again when they change: certificates, keys, CAs.
//!
//! They are read once a second and compared, and not watched: a Secret's volume is swapped by a symbolic link, and a network's
//! file system announces nothing. What is in them is their owner's business: it reads them, and says whether it can use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest::{Context, SHA256};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::metrics::{FileOutcome, ReloadMetrics};

/// Upstream's servers look once a minute. A few files of some kilobytes a second are nothing, and a rotation is short.
const INTERVAL: Duration = Duration::from_secs(1);

/// A bundle of some five hundred CAs.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Some files, by what was in them.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    seen: Option<[u8; 32]>,
}

/// Something that is made of files: which flags name them, and how it is made.
pub struct Reload {
    /// The word in metrics, one of [`RELOADED`].
    file: &'static str,
    /// For people.
    flags: &'static str,
    files: Files,
    read_again: Box<dyn Fn() -> Result<()> + Send>,
}

/// Every word for what is reloaded.
pub const RELOADED: [&str; 5] =
    ["client_ca", "requestheader_client_ca", "serving", "webhook_client_ca", "webhook_serving"];

impl Reload {
    /// Reads files for the first time, by `read`. What that makes of them reads itself again by `read_again`.
    ///
    /// # Errors
    /// If `read` fails; the message names the flags.
    pub async fn begin<T: Send + Sync + 'static>(
        file: &'static str,
        flags: &'static str,
        paths: Vec<PathBuf>,
        read: impl FnOnce() -> Result<T>,
        read_again: impl Fn(&T) -> Result<()> + Send + 'static,
    ) -> Result<(Self, Arc<T>)> {
        // Looked at before they are read, so that what changes between the two counts as a change.
        let mut files = Files::new(paths);
        files.changed().await;
        let made = Arc::new(files.check().and_then(|()| read()).context(flags)?);
        let remade = Arc::clone(&made);
        Ok((Self { file, flags, files, read_again: Box::new(move || read_again(&remade)) }, made))
    }

    /// Reads the files again each time that they change. Where that fails, it is told once, and what was there before stays: a
    /// pair of which one file is new and the other not yet is no pair, and is read again when the other comes. Never ends.
    pub async fn run(mut self, metrics: ReloadMetrics) {
        let Self { file, flags, .. } = self;
        loop {
            self.files.changed().await;
            let outcome = match self.files.check().and_then(|()| (self.read_again)()) {
                Ok(()) => {
                    info!(flags, "reloaded what changed on disk");
                    "success"
                }
                Err(error) => {
                    warn!(
                        flags,
                        error = format!("{error:#}"),
                        "what changed on disk cannot be used, what was there before stays"
                    );
                    "failure"
                }
            };
            metrics.reloads.get_or_create(&FileOutcome { file, outcome }).inc();
        }
    }
}

impl Files {
    /// Not looked at yet: the first call of [`Self::changed`] returns at once.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, seen: None }
    }

    /// Waits until one of them holds something else than before. That it cannot be read is something else too.
    /// Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            let now = Some(self.look().await);
            if self.seen != now {
                self.seen = now;
                return;
            }
            sleep(INTERVAL).await;
        }
    }

    /// Whether each is a file that can be read to an end: to open a pipe takes until somebody writes.
    fn check(&self) -> Result<()> {
        for path in &self.paths {
            let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
            let is_fit = metadata.is_file() && metadata.len() <= MAX_FILE_BYTES;
            ensure!(is_fit, "{} is not a file of at most {MAX_FILE_BYTES} bytes", path.display());
        }
        Ok(())
    }

    async fn look(&self) -> [u8; 32] {
        let mut digest = Context::new(&SHA256);
        for path in &self.paths {
            // The length first, so that bytes cannot move from one file to the next unseen.
            match read(path).await {
                Some(content) => {
                    digest.update(&content.len().to_le_bytes());
                    digest.update(&content);
                }
                None => digest.update(&usize::MAX.to_le_bytes()),
            }
        }
        digest.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

/// `None` if there is no file to read: a pipe would never end, and what is longer is no certificate.
async fn read(path: &Path) -> Option<Vec<u8>> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return None;
    }
    tokio::fs::read(path).await.ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    async fn changes(files: &mut Files) -> bool {
        timeout(3 * INTERVAL, files.changed()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_file_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let [file, pipe] = ["file", "pipe"].map(|name| directory.path().join(name));
        fs::write(&file, "1").unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let begin = |path: &Path| {
            let (first, again) = (path.to_owned(), path.to_owned());
            Reload::begin(
                RELOADED[0],
                "--flag",
                vec![path.to_owned()],
                || Ok(fs::read(first)?),
                move |_| fs::read(&again).map(drop).map_err(Into::into),
            )
        };
        let error = format!("{:#}", begin(&pipe).await.err().unwrap());
        assert!(error.starts_with("--flag: ") && error.contains("is not a file"), "{error}");
        let (reload, _) = begin(&file).await.unwrap();
        fs::rename(&pipe, &file).unwrap();
        let metrics = ReloadMetrics::default();
        assert!(timeout(3 * INTERVAL, reload.run(metrics.clone())).await.is_err());
        let failed = FileOutcome { file: RELOADED[0], outcome: "failure" };
        assert_eq!(metrics.reloads.get_or_create(&failed).get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn tells_what_changed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
        fs::write(&one, "1").unwrap();
        let mut files = Files::new(vec![one.clone(), two.clone()]);
        timeout(SOON, files.changed()).await.unwrap();
        assert!(!changes(&mut files).await);
        fs::write(&two, "2").unwrap();
        assert!(changes(&mut files).await, "a file that was missing");
        fs::write(&one, "1").unwrap();
        assert!(!changes(&mut files).await, "the same content");
        fs::remove_file(&one).unwrap();
        assert!(changes(&mut files).await, "a file that is gone");
        fs::write(&one, "").unwrap();
        assert!(changes(&mut files).await, "an empty file is not a missing one");
    }
}
