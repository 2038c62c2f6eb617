//! CAs that flags name as files, in the place of what the ConfigMap says.

use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::future::join;
use tracing::{info, warn};

use super::certificate::CaBundle;
use super::front_proxy::{FrontProxyTrust, Names};
use super::{Authenticator, Trust};
use crate::reload::Files;

const CLIENT_CA: &str = "--client-ca-file";
const FRONT_PROXY_CA: &str = "--requestheader-client-ca-file";

/// What comes from files; the rest comes from the ConfigMap.
#[derive(Debug, Clone, Default)]
pub struct TrustFiles {
    /// PEM.
    pub client_ca: Option<PathBuf>,
    /// PEM, and what goes with it.
    pub front_proxy: Option<(PathBuf, Names)>,
}

impl TrustFiles {
    /// Whether nothing is left for the ConfigMap to say.
    pub fn are_complete(&self) -> bool {
        self.client_ca.is_some() && self.front_proxy.is_some()
    }

    /// Reads them for the first time.
    ///
    /// # Errors
    /// If one is not usable, naming the flag and the file.
    pub fn load(&self, authenticator: &Authenticator) -> Result<()> {
        if let Some(file) = &self.client_ca {
            load_client_ca(file, authenticator).context(CLIENT_CA)?;
        }
        if let Some((file, names)) = &self.front_proxy {
            load_front_proxy(file, names, authenticator).context(FRONT_PROXY_CA)?;
        }
        if self.are_complete() {
            authenticator.change(|trust: &mut Trust| trust.loaded = true);
        }
        Ok(())
    }

    /// Reads each again when it changes, until cancelled by being dropped. One that is not usable leaves the last good one
    /// in force.
    pub async fn follow(self, authenticator: Arc<Authenticator>) {
        let client_ca = async {
            let Some(file) = self.client_ca else { return pending().await };
            follow(CLIENT_CA, &file, || load_client_ca(&file, &authenticator)).await;
        };
        let front_proxy = async {
            let Some((file, names)) = self.front_proxy else { return pending().await };
            follow(FRONT_PROXY_CA, &file, || load_front_proxy(&file, &names, &authenticator)).await;
        };
        join(client_ca, front_proxy).await;
    }
}

async fn follow(flag: &str, file: &Path, load: impl Fn() -> Result<()>) {
    let mut files = Files::new(vec![file.to_owned()]);
    loop {
        files.changed().await;
        match load() {
            Ok(()) => info!("loaded the CA of {flag}"),
            Err(error) => warn!(error = format!("{error:#}"), "{flag} is not usable, the last good one stays"),
        }
    }
}

fn load_client_ca(file: &Path, authenticator: &Authenticator) -> Result<()> {
    let clients = CaBundle::parse(&read(file)?).with_context(|| format!("in {}", file.display()))?;
    authenticator.change(|trust| trust.clients = Some(Arc::new(clients)));
    Ok(())
}

fn load_front_proxy(file: &Path, names: &Names, authenticator: &Authenticator) -> Result<()> {
    let front_proxy =
        FrontProxyTrust::new(&read(file)?, names.clone()).with_context(|| format!("in {}", file.display()))?;
    authenticator.change(|trust| trust.front_proxy = Some(Arc::new(front_proxy)));
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
