//! How fast a body becomes events, and a batch: against a walk over the same bytes that keeps nothing.
//!
//! The kernel has no part in it, so instructions are counted too, which nothing else on the machine can disturb: by callgrind, as
//! the difference of two runs of which one does more.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Effort;
use crate::cores;
use crate::figure::{Figure, Goal, Pair};
use crate::stand::sibling;

const PROGRAM: &str = "bench-split";

/// Bodies that the two counted runs read.
const FEW: u64 = 2;
const MANY: u64 = 6;

const CORPORA: [(&str, &str, f64); 2] =
    [("metadata", "400 Metadata events", 0.55), ("request_response", "100 RequestResponse events", 0.85)];

const PARTS: [(&str, &str); 2] =
    [("split", "split, attribute, selectable fields"), ("batch", "everything until the bus")];

/// What the program prints for each corpus: bytes per second of CPU time, by round.
#[derive(Deserialize)]
struct Line {
    corpus: String,
    reference: Vec<f64>,
    split: Vec<f64>,
    batch: Vec<f64>,
}

pub(super) async fn against_a_walk(effort: Effort) -> Result<Vec<Figure>> {
    let mut program = Command::new(sibling(PROGRAM)?);
    program.args(["--rounds", &effort.rounds.to_string()]);
    let lines = output(program, Stream::Out)?;
    let mut figures = Vec::new();
    for (line, (corpus, words, least)) in lines.lines().zip(CORPORA) {
        let line: Line = serde_json::from_str(line).with_context(|| format!("{PROGRAM} printed {line}"))?;
        ensure!(line.corpus == corpus, "{PROGRAM} measured {} and not {corpus}", line.corpus);
        for ((part, what), ours) in PARTS.into_iter().zip([&line.split, &line.batch]) {
            let pair = |(ours, reference): (&f64, &f64)| Pair { ours: ours / 1e6, reference: reference / 1e6 };
            let rounds: Vec<Pair> = ours.iter().zip(&line.reference).map(pair).collect();
            let goal = (part == "split").then_some(Goal::AtLeast(least));
            figures.push(Figure::ratio(format!("{words}: {what}, MB per core second"), &rounds, goal));
            let [ours, reference] = [instructions(part, corpus)?, instructions("reference", corpus)?];
            figures.push(Figure::ratio("the same: instructions per body", &[Pair { ours, reference }], None));
        }
    }
    Ok(figures)
}

/// Instructions for each body.
fn instructions(part: &str, corpus: &str) -> Result<f64> {
    let [few, many] = [counted(part, corpus, FEW)?, counted(part, corpus, MANY)?];
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    Ok((many - few) as f64 / (MANY - FEW) as f64)
}

fn counted(part: &str, corpus: &str, times: u64) -> Result<u64> {
    let mut callgrind = Command::new("valgrind");
    callgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(sibling(PROGRAM)?);
    callgrind.args(["--count", part, "--corpus", corpus, "--times", &times.to_string()]);
    let said = output(callgrind, Stream::Err)?;
    let count =
        said.lines().find_map(|line| line.split_once("Collected : ")).context("callgrind has counted nothing")?.1;
    Ok(count.trim().parse()?)
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

/// What a program prints that is run to its end on the core of what is measured.
fn output(mut program: Command, stream: Stream) -> Result<String> {
    let name = program.get_program().display().to_string();
    program.stdin(Stdio::null());
    let output = cores::on_measured(|| program.output())?.with_context(|| format!("cannot run {name}"))?;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    ensure!(output.status.success(), "{name} failed: {err}");
    Ok(match stream {
        Stream::Out => out,
        Stream::Err => err,
    })
}
