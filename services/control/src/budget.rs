//! How long an answer may wait for storage: a caller is told soon that it does not answer, and not
//! after all the tries that a client of storage makes.

use crate::failure::Failure;
use std::{future::Future, time::Duration};
use tokio::time::timeout;

/// Longest wait for storage of one request, all its calls together.
const STORAGE_BUDGET: Duration = Duration::from_secs(5);

/// What `calls` give, or a failure of class `storage` once the budget is spent. The calls are
/// dropped then; one that writes may have written, and is safe to be made again.
pub(crate) async fn within_budget<T>(
    calls: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(STORAGE_BUDGET, calls).await.unwrap_or_else(|_| {
        tracing::warn!("storage did not answer a request to the API in time");
        Err(Failure::Storage(format!("storage did not answer within {STORAGE_BUDGET:?}")))
    })
}
