//! What the system says of a process: CPU time, memory, and what the kernel holds for its sockets.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

/// Of a page of memory, as `/proc/net/sockstat` counts.
const PAGE_BYTES: u64 = 4096;

/// CPU time that the process has taken so far, in user mode and in the kernel, by all threads that it has.
///
/// The scheduler's own account, in nanoseconds; that of `/proc/PID/stat` counts ticks of 10 ms. On loopback it includes what the
/// kernel does for the receiving end of what the process writes.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let tasks = PathBuf::from(format!("/proc/{process}/task"));
    let mut nanoseconds = 0;
    for task in tasks.read_dir().with_context(|| format!("there is no process {process}"))? {
        // A thread may end between the two.
        let Ok(account) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let on_cpu = account.split_whitespace().next().context("schedstat is empty")?;
        nanoseconds += on_cpu.parse::<u64>().context("schedstat does not begin with a number")?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// What the process has in memory.
pub fn resident_bytes(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(resident.context("the system does not tell")?.parse::<u64>()? * 1024)
}

/// What the kernel holds for all TCP sockets of the network namespace, of both ends.
pub fn kernel_tcp_bytes() -> Result<u64> {
    let sockets = std::fs::read_to_string("/proc/net/sockstat")?;
    let tcp = sockets.lines().find(|line| line.starts_with("TCP:")).context("the system does not tell")?;
    let pages = tcp.rsplit(' ').next().context("no figures")?;
    Ok(pages.parse::<u64>().context("not a number of pages")? * PAGE_BYTES)
}
