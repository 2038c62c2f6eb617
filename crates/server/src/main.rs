//! The `audit-stream` binary: flags, log, signals, run.

use std::process::ExitCode;

use anyhow::Result;
use audit_stream::args::{Cli, Command, ServeArgs};
use audit_stream::{Server, logging, shutdown};
use clap::Parser;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Serve(args) = Cli::parse().command;
    let (format, verbosity) = args.logging();
    logging::init(format, verbosity);
    match serve(*args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: ServeArgs) -> Result<()> {
    let server = Server::bind(args.into_config()?).await?;
    let stop = CancellationToken::new();
    tokio::select! {
        result = server.run(stop.clone()) => result,
        result = shutdown::on_signal(stop) => Ok(result?),
    }
}
