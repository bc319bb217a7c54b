//! What is recorded of every answer, when its last byte has gone out or its client has: metrics,
//! and what the answer held on to meanwhile.

use crate::error::Failure;
use hydrant_proto::FailureClass;
use hydrant_telemetry::metrics::{ActiveRequest, PullKind, PullOutcome, metrics};
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;

/// How a pull was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub kind: PullKind,
    pub outcome: PullOutcome,
    /// Why, when the outcome is an error or a stale answer.
    pub class: Option<FailureClass>,
}

/// The record of one answer; written on drop.
pub struct Record {
    method: &'static str,
    endpoint: &'static str,
    status: u16,
    started: Instant,
    sent: u64,
    pulled: Option<Pulled>,
    /// Ends with the answer.
    span: Span,
    _active: ActiveRequest,
    /// The right to have upstreams asked, kept until a body that comes straight from one is through.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Record {
    pub fn begin(method: &'static str, endpoint: &'static str) -> Self {
        Self {
            method,
            endpoint,
            status: 0,
            started: Instant::now(),
            sent: 0,
            pulled: None,
            span: Span::none(),
            _active: metrics().http.started(method),
            _permit: None,
        }
    }

    pub fn holding(&mut self, permit: Option<OwnedSemaphorePermit>) {
        self._permit = permit;
    }

    pub fn answered(&mut self, status: u16, pulled: Option<Pulled>, span: Span) {
        (self.status, self.pulled, self.span) = (status, pulled, span);
    }

    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The body broke off; its own story is in the log of the flight or the store.
    pub fn broke(&mut self) {
        if let Some(pulled) = &mut self.pulled {
            pulled.outcome = PullOutcome::Error;
        }
    }
}

impl Pulled {
    pub fn failed(kind: PullKind, failure: &Failure) -> Self {
        Self { kind, outcome: PullOutcome::Error, class: failure.class() }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let size_bytes = self.sent;
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.span.in_scope(|| {
            tracing::debug!(status = self.status, size_bytes, duration_ms, "answered");
        });
        metrics().http.answered(self.method, self.endpoint, self.status, took);
        if let Some(Pulled { kind, outcome, class }) = self.pulled {
            metrics().pulls.answered(kind, outcome, class, took);
            metrics().pulls.served(kind, self.sent);
        }
    }
}
