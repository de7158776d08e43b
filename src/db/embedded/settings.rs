//! The server's configuration: safe for the data, and tuned for loading much at once.

use std::fmt;

/// The bounds of the default of `shared_buffers`, in MiB.
const SHARED_BUFFERS_MIB: (u64, u64) = (128, 4096);

/// How many reads PostgreSQL asks for ahead; only Linux can.
const READS_AHEAD: u32 = if cfg!(target_os = "linux") { 100 } else { 0 };

/// What differs between servers.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// PostgreSQL's own cache, in MiB.
    pub shared_buffers_mib: u64,
}

/// The configuration file.
impl fmt::Display for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, shared_buffers_mib } = self;
        write!(
            formatter,
            "\
# Rewritten by NVD Support Car at each start of this server: changes are lost.

# Reachable from this machine only.
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
port = {port}
max_connections = 100

# What was acknowledged survives a crash.
fsync = on
synchronous_commit = on
full_page_writes = on

# Loading much at once.
shared_buffers = {shared_buffers_mib}MB
work_mem = 64MB
maintenance_work_mem = 512MB
wal_buffers = 64MB
min_wal_size = 512MB
max_wal_size = 4GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
effective_io_concurrency = {READS_AHEAD}

# The same results and messages everywhere. The log goes where pg_ctl puts it.
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
logging_collector = off
log_destination = 'stderr'
# Details would tell values of rows.
log_error_verbosity = terse
"
        )
    }
}

/// A quarter of the memory, within bounds: the default of `shared_buffers`, in MiB.
pub fn default_shared_buffers_mib() -> u64 {
    let (least, most) = SHARED_BUFFERS_MIB;
    memory_mib().map_or(least, |memory| (memory / 4).clamp(least, most))
}

/// The memory of this machine, or of the container that is less, in MiB.
#[cfg(target_os = "linux")]
fn memory_mib() -> Option<u64> {
    let machine = first_number(&std::fs::read_to_string("/proc/meminfo").ok()?)? / 1024;
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|limit| first_number(&limit)).map(|bytes| bytes >> 20);
    Some(container.map_or(machine, |container| container.min(machine)))
}

/// The memory of this machine, in MiB.
#[cfg(not(target_os = "linux"))]
fn memory_mib() -> Option<u64> {
    let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    first_number(&String::from_utf8(output.stdout).ok()?).map(|bytes| bytes >> 20)
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().find_map(|word| word.parse().ok())
}
