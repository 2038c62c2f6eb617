//! Files that are read again when they change: certificates, keys, CAs.
//!
//! They are read once a second and compared, and not watched: a Secret's volume is swapped by a symbolic link, and a network's
//! file system announces nothing. What is done with a change is its owner's business.

use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::time::sleep;

/// Upstream's servers look once a minute. A few files of some kilobytes a second are nothing, and a rotation is short.
const INTERVAL: Duration = Duration::from_secs(1);

/// Some files, by what was in them.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    seen: Option<[u8; 32]>,
}

impl Files {
    /// As they are when [`Self::changed`] first looks, which it therefore calls a change: what was read before is older.
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

    async fn look(&self) -> [u8; 32] {
        let mut digest = Context::new(&SHA256);
        for path in &self.paths {
            // The length first, so that bytes cannot move from one file to the next unseen.
            match tokio::fs::read(path).await {
                Ok(content) => {
                    digest.update(&content.len().to_le_bytes());
                    digest.update(&content);
                }
                Err(_) => digest.update(&usize::MAX.to_le_bytes()),
            }
        }
        digest.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
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
