//! How often the disk can be made to keep a small write: what bounds a bus that syncs each.

use anyhow::Result;
use std::{
    io::Write,
    time::{Duration, Instant},
};

/// Syncs per second of a file that grows by 300 bytes each time, over `time`.
pub async fn syncs(time: Duration) -> Result<f64> {
    tokio::task::spawn_blocking(move || {
        let mut file = tempfile::tempfile()?;
        let (started, mut count) = (Instant::now(), 0_u32);
        while started.elapsed() < time {
            file.write_all(&[b'x'; 300])?;
            file.sync_data()?;
            count += 1;
        }
        Ok(f64::from(count) / started.elapsed().as_secs_f64())
    })
    .await?
}
