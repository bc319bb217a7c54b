//! Memory that the machine really has when a trial begins.
//!
//! A virtual machine whose hypervisor takes free pages back (free page reporting, a balloon) gets
//! each of them again at its first use, one fault at a time. That falls on whoever writes files, who
//! fills the page cache with them: 2 to 3 CPU seconds a GB were seen, ten times what the copy itself
//! costs, in one trial and not in the next. So what a trial will need is used once before it, and is
//! free again a moment before the clock starts.

use anyhow::{Context, Result};
use std::hint::black_box;
use tokio::task::spawn_blocking;

/// What a report says of it.
pub const TOUCHED: &str =
    "touched before each trial, so that nobody pays for a hypervisor's faults";

/// What the files of one content may be in memory at once: in a spool, a store, and a server's own
/// buffers.
const COPIES: u64 = 4;
/// What is taken at most.
const MOST: u64 = 2 * 1024 * 1024 * 1024;

/// Uses as much memory once as a trial with so many bytes of content may need.
pub async fn touch(content: u64) -> Result<()> {
    let bytes = usize::try_from((content * COPIES).min(MOST))?;
    // A byte that is not zero, so that each page is written and not merely promised.
    spawn_blocking(move || drop(black_box(vec![1_u8; bytes]))).await.context("touch memory")
}
