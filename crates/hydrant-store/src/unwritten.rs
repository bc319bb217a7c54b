//! How much of what was written on this machine is not on its disks yet. A sync of a whole file system
//! may have to wait for all of it.

use std::fs;

/// In bytes; `None` where the system does not tell.
pub(crate) fn unwritten() -> Option<u64> {
    of(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn of(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some((kib("Dirty")? + kib("Writeback")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dirty_and_what_is_being_written_counts() {
        let text = "MemFree:  12 kB\nDirty:    40 kB\nWriteback:     2 kB\nWritebackTmp: 9 kB\n";
        assert_eq!(of(text), Some(42 * 1024));
        assert_eq!(of("MemFree: 12 kB\n"), None);
        assert!(unwritten().is_some());
    }
}
