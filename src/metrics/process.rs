//! What the kernel knows of the gateway's own process, read when somebody asks.
//!
//! Only Linux has all of it; elsewhere the values that cannot be read stay 0.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Counter, Gauge, IntGauge, Registry};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::families;
use crate::descriptors::is_shortage;

pub struct Process {
    cpu_seconds: Counter,
    resident_memory_bytes: IntGauge,
    virtual_memory_bytes: IntGauge,
    threads: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
}

impl Process {
    pub fn new(registry: &Registry) -> Self {
        // The metrics are built first thing after the start, so their own birth is near
        // enough to the process's.
        let start: Gauge = families::PROCESS_START_TIME_SECONDS.gauge(registry);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        start.set(now.map_or(0.0, |since| since.as_secs_f64()));
        Self {
            cpu_seconds: families::PROCESS_CPU_SECONDS.counter(registry),
            resident_memory_bytes: families::PROCESS_RESIDENT_MEMORY_BYTES.int_gauge(registry),
            virtual_memory_bytes: families::PROCESS_VIRTUAL_MEMORY_BYTES.int_gauge(registry),
            threads: families::PROCESS_THREADS.int_gauge(registry),
            open_fds: families::PROCESS_OPEN_FDS.int_gauge(registry),
            max_fds: families::PROCESS_MAX_FDS.int_gauge(registry),
        }
    }

    pub fn refresh(&mut self) {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        self.cpu_seconds
            .inc_by((cpu - self.cpu_seconds.get()).max(0.0));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        self.resident_memory_bytes.set(1024 * of(&status, "VmRSS:"));
        self.virtual_memory_bytes.set(1024 * of(&status, "VmSize:"));
        self.threads.set(of(&status, "Threads:"));
        self.open_fds.set(open_fds());
        self.max_fds.set(max_fds());
    }
}

/// The number behind a name: `VmRSS:      5152 kB`.
fn of(status: &str, name: &str) -> i64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn max_fds() -> i64 {
    // No limit at all is a number that no process reaches.
    let max_fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    i64::try_from(max_fds).unwrap_or(i64::MAX)
}

fn open_fds() -> i64 {
    let entries = match fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries,
        // All of them, then.
        Err(error) if is_shortage(&error) => return max_fds(),
        Err(_) => return 0,
    };
    // The listing itself holds one, which is closed again when the number is read.
    let listed = entries.count().saturating_sub(1);
    i64::try_from(listed).unwrap_or(i64::MAX)
}
