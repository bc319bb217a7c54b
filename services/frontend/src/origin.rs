//! Whether what is local of a repository is the route's to serve.
//!
//! Links and tag records are kept per downstream repository. When the rule leads to another
//! upstream, repository or credential, what the former one brought is as if it were not there,
//! until the importer has taken the repository over.

use crate::{error::Failure, place::Place, shelf::Shelf};
use hydrant_proto::RepositoryName;
use moka::sync::Cache;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Repositories that are remembered.
const ENTRIES: u64 = 50_000;
/// How long an answer is remembered at all, for when storage cannot tell.
const KEPT_FOR: Duration = Duration::from_secs(60 * 60);
/// How long it is not asked for again when it is the route's own origin that stands.
const OWN_FOR: Duration = Duration::from_secs(60);
/// And when it is another's or nobody's: the importer may be about to change that.
const OTHER_FOR: Duration = Duration::from_secs(1);

pub struct Origins {
    shelf: Shelf,
    /// One entry for each repository, so that a rule that leads away and back is looked up again.
    known: Cache<RepositoryName, Known>,
}

/// What storage said of a repository a moment ago, as far as it concerns one origin.
#[derive(Clone)]
struct Known {
    origin: Arc<str>,
    standing: Standing,
    at: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Own,
    Nobody,
    Other,
}

impl Origins {
    pub fn new(shelf: Shelf) -> Self {
        let kept = Cache::builder().max_capacity(ENTRIES).time_to_live(KEPT_FOR).build();
        Self { shelf, known: kept }
    }

    /// Whether what is local of the place's repository may be served under its route. While storage
    /// cannot tell, what it said before in this process counts.
    pub async fn are_own(&self, place: &Place) -> Result<bool, Failure> {
        Ok(self.standing(place).await? != Standing::Other)
    }

    async fn standing(&self, place: &Place) -> Result<Standing, Failure> {
        let known = self.known(place);
        if let Some(known) = known.as_ref().filter(|known| known.is_young()) {
            return Ok(known.standing);
        }
        match Box::pin(self.shelf.ask(self.shelf.store.origin(place.repository()))).await {
            Ok(found) => Ok(self.keep(place, found.as_deref())),
            Err(_) if known.is_some_and(|known| known.standing == Standing::Own) => {
                Ok(Standing::Own)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Notes that the repository is filled from the place's origin, if nothing is noted, before
    /// something is linked in it. True when that origin stands.
    pub async fn claim(&self, place: &Place) -> Result<bool, Failure> {
        match self.standing(place).await? {
            Standing::Own => Ok(true),
            Standing::Other => Ok(false),
            Standing::Nobody => {
                let store = &self.shelf.store;
                let claim = store.claim_origin(place.repository(), &place.route.origin);
                let stands = self.shelf.ask(claim).await?;
                Ok(self.keep(place, Some(&stands)) == Standing::Own)
            }
        }
    }

    fn known(&self, place: &Place) -> Option<Known> {
        self.known.get(place.repository()).filter(|known| known.origin == place.route.origin)
    }

    fn keep(&self, place: &Place, found: Option<&str>) -> Standing {
        let origin = place.route.origin.clone();
        let standing = match found {
            None => Standing::Nobody,
            Some(found) if *found == *origin => Standing::Own,
            Some(_) => Standing::Other,
        };
        let known = Known { origin, standing, at: Instant::now() };
        self.known.insert(place.repository().clone(), known);
        standing
    }
}

impl Known {
    fn is_young(&self) -> bool {
        let window = if self.standing == Standing::Own { OWN_FOR } else { OTHER_FOR };
        self.at.elapsed() < window
    }
}
