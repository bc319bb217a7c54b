//! Why a command failed, in words for people and as an exit code for scripts.

use serde::Deserialize;
use std::{fmt, io, process::ExitCode};

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Exit code 2: what was asked cannot be right.
    #[error("{0}")]
    Usage(String),
    /// Exit code 3.
    #[error(
        "cannot reach hydrant at {server}: {reason}; is it running? `hydrant up` starts it, \
         --server or HYDRANT_SERVER name another one"
    )]
    Unreachable { server: String, reason: String },
    /// Exit code 1, or 2 when the request was wrong.
    #[error("{}", Lines(.told))]
    Refused { status: u16, told: Vec<Told> },
    /// Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Exit code 4.
    #[error("{0}")]
    TimedOut(String),
    /// Exit code 1.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// One thing the API says is wrong.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Told {
    #[serde(default)]
    pub field: String,
    pub message: String,
    #[serde(default)]
    pub remedy: String,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

struct Lines<'t>(&'t [Told]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n       "))
    }
}

impl Failure {
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) | Self::Refused { status: 400, .. } => 2,
            Self::Unreachable { .. } => 3,
            Self::TimedOut(_) => 4,
            Self::Refused { .. } | Self::Failed(_) | Self::Output(_) => 1,
        })
    }

    /// Whether the same request may succeed in a moment.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { status: 502..=504, .. })
    }

    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}
