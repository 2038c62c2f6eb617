//! Which process runs on which core: what is measured has one for itself.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

/// What is measured.
const MEASURED: usize = 0;
/// The bench, with its readers and fakes.
const BENCH: usize = 1;

/// Gives the bench its core.
///
/// # Errors
/// If the machine has one core alone.
pub fn pin_bench() -> Result<()> {
    pin([BENCH]).context("the bench needs two cores, the first for what is measured and the second for itself")
}

/// Starts something on the core of what is measured: what it starts inherits that.
///
/// # Errors
/// If the core cannot be had.
pub fn on_measured<T>(start: impl FnOnce() -> T) -> Result<T> {
    pin([MEASURED])?;
    let started = start();
    pin_bench()?;
    Ok(started)
}

/// Lets this thread, and what it starts from now on, run anywhere.
///
/// # Errors
/// If the system refuses.
pub fn unpin() -> Result<()> {
    pin(0..CpuSet::MAX_CPU)
}

/// Cores that there are not are left out, as long as there is one of them.
fn pin(cores: impl IntoIterator<Item = usize>) -> Result<()> {
    let mut set = CpuSet::new();
    cores.into_iter().for_each(|core| set.set(core));
    Ok(sched_setaffinity(None, &set)?)
}
