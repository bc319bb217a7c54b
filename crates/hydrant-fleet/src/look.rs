//! How an upstream stands by what processes told each other: for one that asks no upstream itself.

use hydrant_bus::{BusError, SharedState, Told};
use hydrant_proto::{QuotaReport, UpstreamReport, Verdict, codec, subject::StateKey};
use std::time::Duration;

/// What the fleet says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Processes that asked the upstream lately.
    pub processes: usize,
    /// How much longer the upstream is to be left alone, if it is.
    pub open: Option<Duration>,
    pub quota: Option<QuotaReport>,
}

/// Reads what is told of the upstream with this scope.
pub async fn look(state: &SharedState, scope: &str) -> Result<Look, BusError> {
    let told = state.breakers(scope).await?;
    let quota = state.get(&StateKey::Quota(scope.to_owned())).await?;
    let quota = quota.and_then(|entry| codec::decode(&entry.value).ok());
    let reports: Vec<_> = told.iter().filter_map(report).collect();
    Ok(Look { processes: told.len(), open: open(&reports), quota })
}

fn report(told: &Told) -> Option<UpstreamReport> {
    codec::decode(&told.entry.as_ref()?.value).ok()
}

/// The longest opening that is still on. A good probe after it ended it for all; who probed has no
/// opening of its own any more, so one that is left is on unless all time is used up.
fn open(reports: &[UpstreamReport]) -> Option<Duration> {
    let left = reports.iter().filter_map(|report| match report.verdict {
        Verdict::Open { left, .. } if left > 0 => Some(Duration::from_millis(left)),
        _ => None,
    });
    left.max()
}
