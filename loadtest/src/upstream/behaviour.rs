//! How the upstream behaves at the moment.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Settable at any time; answers that have begun keep what they began with.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Before each status line, in milliseconds.
    pub latency_ms: u64,
    /// Most body bytes per second on one connection.
    pub connection_rate: Option<u64>,
    /// Most body bytes per second on all connections together.
    pub total_rate: Option<u64>,
    pub fault: Fault,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Fault {
    #[default]
    None,
    /// Every request gets this status.
    Status { code: u16, retry_after_s: Option<u64> },
    /// Requests are taken and never answered.
    BlackHole,
    /// Connections are closed instead of an answer.
    Reset,
    /// 503 in every second period of this length, in milliseconds.
    Flapping { period_ms: u64 },
}

impl Behaviour {
    pub fn latency(latency_ms: u64) -> Self {
        Self { latency_ms, ..Self::default() }
    }

    pub fn fault(fault: Fault) -> Self {
        Self { fault, ..Self::default() }
    }

    /// Caps each connection at so many million bytes per second.
    pub fn megabytes_per_connection(self, megabytes: u64) -> Self {
        Self { connection_rate: Some(megabytes * 1_000_000), ..self }
    }
}

impl Fault {
    /// What it comes to after the upstream ran for `age`.
    pub fn now(self, age: Duration) -> Self {
        match self {
            Self::Flapping { period_ms } => {
                let failing = (age.as_millis() / u128::from(period_ms.max(1))) % 2 == 1;
                if failing { Self::Status { code: 503, retry_after_s: None } } else { Self::None }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flapping_fails_every_second_period() {
        let fault = Fault::Flapping { period_ms: 100 };
        let at = |ms| fault.now(Duration::from_millis(ms));
        assert_eq!([at(0), at(99), at(200)], [Fault::None; 3]);
        assert_eq!(at(100), Fault::Status { code: 503, retry_after_s: None });
    }
}
