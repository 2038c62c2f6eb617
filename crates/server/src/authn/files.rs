//! CAs that flags name as files, in the place of what the ConfigMap says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::front_proxy::{FrontProxyTrust, Names};
use super::{Authenticator, Trust};
use crate::certs::CaBundle;
use crate::reload::Reload;

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

    /// Reads them for the first time. What is returned reads each again when it changes; one that is not usable leaves the last
    /// good one in force.
    ///
    /// # Errors
    /// If one is not usable, naming the flag and the file.
    pub async fn load(&self, authenticator: &Arc<Authenticator>) -> Result<Vec<Reload>> {
        let mut reloads = Vec::new();
        if let Some(file) = self.client_ca.clone() {
            let (paths, authenticator) = (vec![file.clone()], Arc::clone(authenticator));
            let load = move || load_client_ca(&file, &authenticator);
            reloads.push(follow("client_ca", "--client-ca-file", paths, load).await?);
        }
        if let Some((file, names)) = self.front_proxy.clone() {
            let (paths, authenticator) = (vec![file.clone()], Arc::clone(authenticator));
            let load = move || load_front_proxy(&file, &names, &authenticator);
            reloads.push(follow("requestheader_client_ca", "--requestheader-client-ca-file", paths, load).await?);
        }
        if self.are_complete() {
            authenticator.change(|trust: &mut Trust| trust.loaded = true);
        }
        Ok(reloads)
    }
}

async fn follow<F>(file: &'static str, flag: &'static str, paths: Vec<PathBuf>, load: F) -> Result<Reload>
where
    F: Fn() -> Result<()> + Clone + Send + 'static,
{
    let again = load.clone();
    let (reload, _) = Reload::begin(file, flag, paths, load, move |()| again()).await?;
    Ok(reload)
}

fn load_client_ca(file: &Path, authenticator: &Authenticator) -> Result<()> {
    let clients = CaBundle::read(file)?;
    authenticator.change(|trust| trust.clients = Some(Arc::new(clients)));
    Ok(())
}

fn load_front_proxy(file: &Path, names: &Names, authenticator: &Authenticator) -> Result<()> {
    let front_proxy = FrontProxyTrust::new(CaBundle::read(file)?, names.clone());
    authenticator.change(|trust| trust.front_proxy = Some(Arc::new(front_proxy)));
    Ok(())
}
