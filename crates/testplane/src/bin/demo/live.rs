//! The form for people: the story over and over, beside what Alice's terminal would show.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::plane::Plane;
use crate::say;
use crate::story::{ALICE, BANK, CLUSTER_PATH, ROUND, SHOP, namespace_path, watch_line};

/// Enough to read a line before the next one.
const PAUSE: Duration = Duration::from_secs(3);

/// Plays until it is dropped, or something fails.
pub(crate) async fn live(plane: &impl Plane) -> Result<()> {
    say(&format!("# {}", plane.version().await?))?;
    say(&introduction(plane))?;
    tokio::try_join!(show(plane), act(plane))?;
    Ok(())
}

fn introduction(plane: &impl Plane) -> String {
    let [shop, bank, cluster] =
        [&namespace_path(SHOP), &namespace_path(BANK), CLUSTER_PATH].map(|path| plane.command(path));
    format!(
        "
Who there is:
  alice    may watch namespacedevents in the namespace shop, and nothing else
  bob      edits ConfigMaps and Deployments in the namespaces shop and bank
  mallory  may do nothing

Below is what Alice's terminal shows; lines with # say what she and the others typed.
To read it yourself, in a second terminal, as Alice:

  {shop}

(Append  | jq -r --unbuffered '.object|[.user.username,.verb,.objectRef.name,.responseStatus.code]|@tsv'  for short lines.)
What she may not read is answered with 403: the namespace bank,

  {bank}

and the cluster,

  {cluster}

Ctrl-C ends everything and leaves nothing behind.
"
    )
}

async fn show(plane: &impl Plane) -> Result<()> {
    loop {
        say(&watch_line(ALICE, &namespace_path(SHOP)))?;
        let mut lines = plane.watch(ALICE, &namespace_path(SHOP)).await?;
        while let Some(line) = lines.next().await? {
            say(&line)?;
        }
        say("# The watch has ended after its time, as every watch does. Alice opens another.")?;
    }
}

async fn act(plane: &impl Plane) -> Result<()> {
    loop {
        for deed in &ROUND {
            sleep(PAUSE).await;
            say(&deed.line())?;
            plane.act(deed).await?;
        }
    }
}
