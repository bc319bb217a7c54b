//! Circles of hydrants in which each waits for the next one. A request that comes back is known by
//! its `Via` and refused at once; but where two hydrants ask each other for the same thing at the
//! same time, each of the requests joins what the other hydrant asked for itself, and neither
//! comes back. So a request of another hydrant that waits has a question of its own sent along the
//! way. That is a HEAD, which joins only those that came the same way (`asking.rs`).

use crate::{
    error::{Failure, What},
    place::Place,
    request::Ask,
};
use hydrant_upstream::{Priority, UpstreamError};
use std::{future::pending, time::Duration};

/// How long it waits first: an answer rarely takes longer, and a client's shortest wait is twice
/// that.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest wait for the question, which each hydrant on the way may keep for [`PATIENCE`].
const BUDGET: Duration = Duration::from_secs(10);

/// Ends only when what is asked for in `place` turns out to lead back to a hydrant that asks.
pub async fn found(place: &Place, ask: &Ask) -> Failure {
    tokio::time::sleep(PATIENCE).await;
    let (client, repository) = (&place.client, &place.route.upstream_repository);
    let priority = Priority::Interactive;
    let told = match ask {
        Ask::Manifest { reference, .. } => {
            let head = client.head_manifest(repository, reference, priority, BUDGET).await;
            (What::Manifest, head.err())
        }
        Ask::Blob { digest, .. } => {
            (What::Blob, client.head_blob(repository, digest, priority).await.err())
        }
        Ask::Base | Ask::Tags { .. } | Ask::Catalog { .. } | Ask::Referrers { .. } => {
            (What::Repository, None)
        }
    };
    match told {
        (what, Some(error @ UpstreamError::Loop { .. })) => Failure::Upstream { what, error },
        _ => pending().await,
    }
}
