//! One attempt at a job, as a recipe: a line per step.

use crate::{
    announce::announce,
    blobs::Blobs,
    closure::{Closure, Manifests, Node, walk},
    error::ImportError,
    failpoint::{Step, reached},
    platform::Selection,
    progress::Progress,
    standing::Standing,
    worker::Worker,
};
use hydrant_proto::{HydrationRequested, Reference};
use hydrant_rules::Route;
use hydrant_store::{CompletionRecord, DeadLetterId, MissRecord, StoreError, Takeover};
use hydrant_upstream::{Client, Priority};
use std::sync::Arc;

/// Nobody waits for an import itself, whichever lane its job came by: clients read along its flights,
/// which are theirs from then on. So what nobody asked for takes no slot and no quota of a client's.
pub(crate) const PRIORITY: Priority = Priority::Background;
/// Rounds in which new wishes are taken up before the rest is left to the next job.
const ROUNDS: u32 = 8;

/// Makes what the job names durable. Wishes that clients add meanwhile are met too: their job was
/// refused as already queued, so they are found in the miss log only.
pub(crate) async fn import(
    worker: &Worker,
    request: &HydrationRequested,
    progress: &Progress,
) -> Result<(), ImportError> {
    let route = fence(worker, request)?;
    let client = worker.upstreams.get(&route.upstream, route.credential.as_deref())?;
    // Somebody asks anew: what was unknown a moment ago may have been pushed since.
    client.forget_unknown(&route.upstream_repository, &request.reference).await;
    let (store, job) = (&worker.store, request.id());
    let taken = store.take_over(&route.repository, &route.origin);
    let (taken, mut misses) = tokio::try_join!(taken, store.misses(&job))?;
    if taken == Takeover::UnderWay {
        return Err(ImportError::Led);
    }
    reached(Step::Claimed);
    let given_up = DeadLetterId::of_job(&job);
    for _ in 0..ROUNDS {
        hydrate(worker, &route, &client, request, &misses, progress).await?;
        tokio::try_join!(store.delete_dead_letter(&given_up), store.forget_misses(&misses))?;
        reached(Step::Forgotten);
        misses = store.misses(&job).await?;
        if misses.is_empty() {
            break;
        }
    }
    Ok(())
}

/// The route the job was made for, if that is still the route of its repository.
fn fence(worker: &Worker, request: &HydrationRequested) -> Result<Route, ImportError> {
    let table = worker.table();
    let route = table
        .route(&request.repository)
        .ok_or(ImportError::Fenced("no rule covers the repository any more"))?;
    if route.rule.name.as_str() != request.rule || route.generation.as_str() != request.generation {
        return Err(ImportError::Fenced("the rule has changed since"));
    }
    Ok(route)
}

/// What a job was made for, asked again before anything of it becomes visible: while blobs arrive, the
/// rule may be led elsewhere, and the repository be another origin's.
pub(crate) struct Fence<'a> {
    worker: &'a Worker,
    request: &'a HydrationRequested,
    route: &'a Route,
}

impl Fence<'_> {
    pub async fn holds(&self) -> Result<(), ImportError> {
        fence(self.worker, self.request)?;
        let standing = self.worker.store.origin(&self.route.repository).await?;
        match standing.is_some_and(|standing| *standing == *self.route.origin) {
            true => Ok(()),
            false => Err(ImportError::Led),
        }
    }
}

async fn hydrate(
    worker: &Worker,
    route: &Route,
    client: &Arc<Client>,
    request: &HydrationRequested,
    misses: &[MissRecord],
    progress: &Progress,
) -> Result<(), ImportError> {
    let (store, flights, patience) = (&worker.store, &worker.flights, worker.patience);
    let manifests = Manifests { store, flights, client, route };
    let blobs = Blobs { store, flights, client, route, progress, patience };

    let fence = Fence { worker, request, route };
    let standing = Standing::read(store, route, request, misses).await?;
    let root = resolve(&manifests, &request.reference, &standing).await?;
    reached(Step::Resolved);
    let selection = select(route, request, misses, standing.completion());
    let closure = walk(&manifests, root, &selection).await?;
    if closure.is_bare() {
        // Nobody has pulled a platform of it: a tag without an image behind it is not local.
        tracing::info!(image.repository = %route.repository, image.reference = %request.reference,
            "no platform of the index was asked for yet");
        return Ok(());
    }
    progress.closure(&closure);
    blobs.settle(closure.blobs.iter().cloned()).await?;
    reached(Step::BlobsDurable);
    fence.holds().await?;
    commit(worker, route, &closure).await?;
    reached(Step::ManifestsDurable);
    let tag = standing.point(&fence, store, route, &manifests, closure.root()).await?;
    reached(Step::TagPointed);
    let completion = standing.complete(store, route, &closure).await?;
    reached(Step::Completed);
    if completion.is_new || !misses.is_empty() {
        announce(&worker.bus, &completion.record, tag.as_ref()).await?;
    }
    reached(Step::Announced);
    Ok(())
}

/// What the reference names: a tag that stays where it is, what it names already, else what the
/// upstream says. A tag is observed by HEAD, and its manifest taken from
/// where a frontend staged it; only what is nowhere yet is a GET.
async fn resolve(
    manifests: &Manifests<'_>,
    reference: &Reference,
    standing: &Standing,
) -> Result<Node, ImportError> {
    if let Some(digest) = reference.digest().or(standing.held()) {
        return manifests.get(digest).await;
    }
    if let Some(digest) = manifests.observe(reference).await?
        && let Some(node) = manifests.named(&digest).await?
    {
        return Ok(node);
    }
    manifests.fetch(reference).await
}

fn select(
    route: &Route,
    request: &HydrationRequested,
    misses: &[MissRecord],
    former: Option<&CompletionRecord>,
) -> Selection {
    let wanted = misses.iter().map(|miss| miss.wanted.clone());
    let former = former.map(|record| record.platforms.clone()).unwrap_or_default();
    Selection::new(&route.rule.platforms, wanted, request.platforms.clone(), former)
}

/// Makes the manifests visible, children before what names them. They were read from storage or
/// staged there; one that was found damaged or lost meanwhile is staged again.
async fn commit(worker: &Worker, route: &Route, closure: &Closure) -> Result<(), ImportError> {
    let store = &worker.store;
    for Node { digest, bytes, .. } in &closure.manifests {
        match store.commit_manifest(&route.repository, digest).await {
            Err(StoreError::Missing { .. }) => {
                store.stage_manifest(digest, bytes.clone()).await?;
                store.commit_manifest(&route.repository, digest).await?;
            }
            committed => committed?,
        }
    }
    Ok(())
}
