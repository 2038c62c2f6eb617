//! `hack/bench`: which rows, and how they are printed.

use std::process::ExitCode;

use anyhow::{Context, Result};
use audit_stream_bench::cores;
use audit_stream_bench::figure::Figure;
use audit_stream_bench::rows::{Effort, ROWS};
use clap::Parser;

/// Measures audit-stream against the limits of this machine.
#[derive(Parser)]
struct Cli {
    /// Three short rounds of each row instead of seven long ones: wider intervals, for a first look.
    #[arg(long)]
    quick: bool,
    /// Rows whose name contains this; all if not given.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

// One thread: there is one core for it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    cores::pin_bench()?;
    let effort = if cli.quick { Effort::QUICK } else { Effort::FULL };
    eprintln!("{} rounds of each row{}", effort.rounds, if cli.quick { " (--quick)" } else { "" });
    let mut figures: Vec<Figure> = Vec::new();
    let chosen = |name: &str| cli.only.as_ref().is_none_or(|only| name.contains(only));
    for row in ROWS.iter().filter(|row| chosen(row.name)) {
        eprintln!("measuring {}", row.name);
        for figure in (row.measure)(effort).await.with_context(|| format!("{} cannot be measured", row.name))? {
            println!("{}", serde_json::to_string(&figure)?);
            figures.push(figure);
        }
    }
    eprintln!("\n{}", Figure::header());
    figures.iter().for_each(|figure| eprintln!("{}", figure.row()));
    let judged: Vec<bool> = figures.iter().filter_map(Figure::met).collect();
    let missed = judged.iter().filter(|met| !**met).count();
    eprintln!("\n{missed} missed of {} with a goal", judged.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
