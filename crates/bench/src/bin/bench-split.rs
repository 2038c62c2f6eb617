//! How fast a webhook's body becomes a batch, beside a walk over the same bytes that keeps nothing.
//!
//! Three numbers for each corpus, in bytes per second of CPU time: `reference` is `serde_json` reading `IgnoredAny`; `split`
//! finds the events, reads the fields that selectors compare, and attributes each event; `batch` is all of what ingest
//! does between the body's last byte and the bus, but for the digest. They take turns, so that what disturbs one disturbs all.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use audit_stream::attribution::attribute;
use audit_stream::certs::ClientCa;
use audit_stream::ingest::batch::Batch;
use audit_stream::ingest::split::{Item, split, text};
use audit_stream::ingest::{self, Ingest};
use audit_stream::metrics::IngestMetrics;
use audit_stream_bench::corpus;
use audit_stream_bus::Bus;
use audit_stream_testplane::pki::Authority;
use clap::{Parser, ValueEnum};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde::de::IgnoredAny;
use tokio_util::sync::CancellationToken;

/// Longer than what a context switch disturbs.
const PART: Duration = Duration::from_millis(100);

#[derive(Parser)]
#[command(about = "Measures how fast a webhook's body becomes a batch")]
struct Args {
    /// How often each part has its turn.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Measure nothing, do this part `--times` times: for a profiler that counts.
    #[arg(long)]
    count: Option<Part>,
    /// What `--count` reads.
    #[arg(long, default_value = "metadata")]
    corpus: Corpus,
    /// How often `--count` reads it.
    #[arg(long, default_value_t = 1)]
    times: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Reference,
    Split,
    Batch,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
enum Corpus {
    Metadata,
    RequestResponse,
}

/// One line of output: bytes per second of CPU time, by round.
#[derive(Serialize)]
struct Line {
    corpus: Corpus,
    bytes: usize,
    events: usize,
    reference: Vec<f64>,
    split: Vec<f64>,
    batch: Vec<f64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bench = Bench { ingest: ingest()? };
    if let Some(part) = args.count {
        let body = args.corpus.body();
        (0..args.times).for_each(|_| _ = bench.run(part, &body));
        return Ok(());
    }
    for corpus in [Corpus::Metadata, Corpus::RequestResponse] {
        let body = corpus.body();
        let events = bench.run(Part::Batch, &body);
        let mut line =
            Line { corpus, bytes: body.len(), events, reference: Vec::new(), split: Vec::new(), batch: Vec::new() };
        for _ in 0..args.rounds {
            line.reference.push(bench.speed(Part::Reference, &body));
            line.split.push(bench.speed(Part::Split, &body));
            line.batch.push(bench.speed(Part::Batch, &body));
        }
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}

struct Bench {
    ingest: Ingest,
}

impl Bench {
    fn speed(&self, part: Part, body: &[u8]) -> f64 {
        let start = cpu_time();
        let mut bytes = 0;
        loop {
            self.run(part, body);
            bytes += body.len();
            let spent = cpu_time() - start;
            if spent >= PART {
                return bytes as f64 / spent.as_secs_f64();
            }
        }
    }

    /// How many events there were; the reference does not know.
    fn run(&self, part: Part, body: &[u8]) -> usize {
        match part {
            Part::Reference => {
                serde_json::from_slice::<IgnoredAny>(body).expect("the corpus is JSON");
                0
            }
            Part::Split => {
                let mut events = 0;
                let attributed = |item: Item<'_, '_>| match item {
                    Item::Event(event, _) => {
                        std::hint::black_box(attribute(event));
                        events += 1;
                    }
                    Item::Malformed => panic!("the corpus has no malformed events"),
                };
                split(&text(body), attributed).expect("the corpus is a list of events");
                events
            }
            Part::Batch => self.ingest.batch(body).as_ref().map_or(0, Batch::len),
        }
    }
}

impl Corpus {
    fn body(self) -> Vec<u8> {
        match self {
            Self::Metadata => corpus::metadata(1),
            Self::RequestResponse => corpus::request_response(1),
        }
    }
}

/// One that nobody sends anything to.
fn ingest() -> Result<Ingest> {
    let ca_file = tempfile::NamedTempFile::new()?;
    std::fs::write(&ca_file, Authority::new("webhook").certificate_pem())?;
    let client_ca = Arc::new(ClientCa::read(ca_file.path().to_owned())?);
    let config = ingest::Config { allowed_names: Vec::new(), max_body_bytes: 32 << 20, max_inflight_bytes: 32 << 20 };
    let retain = audit_stream_bus::Config { retain_bytes: 0, retain_age: Duration::ZERO };
    let (bus, closed) = (Arc::new(Bus::new(retain, 0)), CancellationToken::new());
    Ok(Ingest::new(config, client_ca, bus, closed, Arc::default(), IngestMetrics::default()))
}

/// Of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let part = |number: i64| u64::try_from(number).expect("a clock of CPU time starts at zero");
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}
