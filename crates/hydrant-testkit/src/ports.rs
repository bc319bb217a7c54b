//! TCP ports that no other test on this machine takes.
//!
//! A port is leased by locking a file named after it, so that a server can be stopped and started
//! again on the same port while other tests, also in other processes, leave it alone. The range
//! lies below the ephemeral ports, so outgoing connections never take one either.

use std::{
    env,
    fs::{self, File},
    net::TcpListener,
    ops::Range,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Leased ports. Each one's twin at [`TWIN`] is kept free as well: SeaweedFS takes it for gRPC.
const RANGE: Range<u16> = 12_000..22_000;
const TWIN: u16 = 10_000;

/// A port of 127.0.0.1 that is ours until this is dropped.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _lock: File,
}

impl PortLease {
    /// Takes a free port, whose number plus 10,000 is free too.
    ///
    /// # Panics
    /// When no port of the range is free.
    pub fn take() -> Self {
        let tried = RANGE.len();
        (0..tried).map(|_| next()).find_map(Self::try_take).expect("one port in 10,000 is free")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn try_take(port: u16) -> Option<Self> {
        let file = File::options().create(true).append(true).open(lock_file(port)).ok()?;
        file.try_lock().ok()?;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        (free(port) && free(port + TWIN)).then_some(Self { port, _lock: file })
    }
}

/// Candidates: a start that differs between processes, then one after the other.
fn next() -> u16 {
    static STEP: AtomicU16 = AtomicU16::new(0);
    let length = RANGE.end - RANGE.start;
    let start = process::id().wrapping_mul(7919) % u32::from(length);
    let step = u32::from(STEP.fetch_add(1, Ordering::Relaxed));
    let offset = u16::try_from((start + step) % u32::from(length)).expect("below the length");
    RANGE.start + offset
}

fn lock_file(port: u16) -> PathBuf {
    let dir = env::temp_dir().join("hydrant-testkit-ports");
    fs::create_dir_all(&dir).expect("the temporary directory is writable");
    dir.join(port.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn leases_never_overlap() {
        let leases: Vec<_> = (0..50).map(|_| PortLease::take()).collect();
        let ports: HashSet<_> = leases.iter().map(PortLease::port).collect();
        assert_eq!(ports.len(), leases.len());
    }
}
