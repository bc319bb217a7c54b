//! Upstream registries: manifests and blobs, tokens, error classes, the circuit breaker.
//!
//! [`Upstreams`] keeps one [`Client`] per upstream and credential reference. Every call of a client
//! passes, in this order: the negative cache and the budget of unknown names, the [`Breaker`], the
//! quota, the permits and the pace of the upstream (interactive before background), the retry
//! budget, egress, and comes back as a value or as an
//! [`UpstreamError`] whose variants say what the caller can do next. This crate is the one layer
//! that repeats a failed request; callers may only resume a body that broke, with
//! [`Client::blob`], or come back later.
//!
//! What never happens here: a HEAD that becomes a GET, a redirect that is followed unchecked, a
//! credential that goes to a host the configuration does not name, a manifest that is handed out
//! unverified. Blob bodies are *not* verified here; the flight does that.

mod adaptive;
mod answer;
mod auth;
mod blob;
mod body;
mod breaker;
mod challenge;
mod client;
mod error;
mod exchange;
mod guard;
mod hosts;
mod listing;
mod manifest;
mod once;
mod pace;
mod permits;
mod quota;
mod retries;
mod retry_after;
mod secret;
mod strangers;
mod token;
mod upstreams;
mod urgency;
mod wire;

pub use blob::{BlobBody, BodyStream, Part};
pub use breaker::{
    Breaker, Granted, PROBE_PAUSE, Settings as BreakerSettings, State as BreakerState,
};
pub use client::Client;
pub use error::{Retry, UpstreamError};
pub use guard::{Guard, scope};
pub use listing::TagPage;
pub use manifest::{FetchedManifest, Head};
pub use permits::Priority;
pub use quota::Standing as QuotaStanding;
pub use secret::SecretSource;
pub use upstreams::{Options, Upstreams};
pub use urgency::Urgency;
