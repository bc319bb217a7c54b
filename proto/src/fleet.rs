//! What processes tell each other about an upstream. Times are ages and waits in milliseconds,
//! never clock readings: they are counted from when the message was written, so that processes
//! need not agree on the time.

use crate::codec::Message;
use serde::{Deserialize, Serialize};

/// What one process has lately seen of an upstream. It exists as long as the process asks the
/// upstream, so that counting the reports counts those who share its limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamReport {
    /// Ages of the failures since the last good answer, at most 16.
    #[serde(default)]
    pub failed: Vec<u64>,
    /// Ages of the answers since then that were too slow to be good, at most 16.
    #[serde(default)]
    pub slow: Vec<u64>,
    /// Age of the last good answer, if there was one.
    #[serde(default)]
    pub good: Option<u64>,
    /// What the process last decided by what it saw itself; what it heard is not passed on.
    #[serde(default)]
    pub verdict: Verdict,
    /// Raised by each decision, so that none is taken for another.
    #[serde(default)]
    pub seq: u64,
}

/// A decision about an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    #[default]
    None,
    /// A probe went well.
    Closed,
    /// It is to be left alone.
    Open {
        /// For so much longer.
        left: u64,
        /// Openings without a quiet time between them.
        streak: u32,
        cause: Cause,
        /// Age of the first failure that led to this.
        since: u64,
    },
}

/// Why an upstream is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It failed, or was slow.
    Failing,
    /// It said so.
    Limited,
}

/// What is left of an upstream's budget for the credential of the key, by its own word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaReport {
    /// Requests of a whole window, if told.
    #[serde(default)]
    pub limit: Option<u64>,
    pub remaining: u64,
    /// Time until the budget is whole again.
    pub reset: u64,
    /// Length of a window that slides, so that what was used comes back bit by bit.
    #[serde(default)]
    pub window: Option<u64>,
    /// The kinds of request whose answers spoke of it.
    #[serde(default)]
    pub kinds: Vec<String>,
}

impl Message for UpstreamReport {
    const KIND: &'static str = "upstream-report";
    const VERSION: u16 = 1;
}

impl Message for QuotaReport {
    const KIND: &'static str = "quota-report";
    const VERSION: u16 = 1;
}
