//! The start-up probe: whether this store can decide races at all.
//!
//! A store that takes a conditional write without looking at the condition loses updates silently,
//! so it is tried with a key of the probe's own: in turn, and as a race, since some stores look at
//! the condition but not atomically.

use crate::{
    Store,
    cas::{MAX_ROUNDS, Stamp},
    error::StoreError,
    key,
    key::Key,
};
use bytes::Bytes;
use futures::{StreamExt, future::join_all, pin_mut};
use hydrant_proto::HydrantId;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Version of the layout under `hydrant/v1/`.
const LAYOUT_VERSION: u32 = 1;
/// Writers of the probe's race. Some stores make losers wait for a second each.
const RACERS: usize = 4;

const REMEDY: &str = "hydrant needs S3 conditional writes (PUT with `If-None-Match: *` and with \
    `If-Match`) that are atomic: use a store that has them, such as AWS S3, Cloudflare R2, a current \
    MinIO, Ceph or SeaweedFS, check that no proxy removes these headers, or use a local directory";

#[derive(Serialize, Deserialize)]
struct Layout {
    version: u32,
    /// Whose store it is. Absent where a hydrant wrote it that had no name for itself yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<HydrantId>,
}

impl Store {
    /// Tries whether the store can be written and decides races, and refuses it with a remedy if
    /// not. To be called once at start-up; leaves nothing behind but `hydrant/v1/layout.json`, which
    /// says whose store it is: the same for all processes that share it, and for ever.
    pub async fn probe(&self) -> Result<HydrantId, StoreError> {
        let path = self.at(Key::Probe(&Ulid::new().to_string()));
        let tried = self.try_conditions(&path).await;
        let removed = self.delete(&path).await;
        tried?;
        removed?;
        self.check_layout().await
    }

    async fn try_conditions(&self, path: &Path) -> Result<(), StoreError> {
        let first = self.compare_and_set(path, "first".into(), &Stamp::Absent).await;
        let first = first.map_err(unusable)?;
        self.must_conflict(path, &Stamp::Absent, "`If-None-Match`").await?;
        let second = self.compare_and_set(path, "second".into(), &first).await.map_err(unusable)?;
        self.must_conflict(path, &first, "`If-Match`").await?;
        self.must_have_one_winner(path, &second, "`If-Match`").await?;
        self.delete(path).await?;
        self.must_have_one_winner(path, &Stamp::Absent, "`If-None-Match`").await
    }

    async fn must_conflict(
        &self,
        path: &Path,
        stale: &Stamp,
        header: &str,
    ) -> Result<(), StoreError> {
        match self.compare_and_set(path, "stale".into(), stale).await {
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(refused(&format!("it ignores {header}"))),
        }
    }

    async fn must_have_one_winner(
        &self,
        path: &Path,
        from: &Stamp,
        header: &str,
    ) -> Result<(), StoreError> {
        let racer = |racer: usize| {
            let bytes = Bytes::from(format!("racer {racer}"));
            async move { self.compare_and_set(path, bytes, from).await }
        };
        let mut winners = 0;
        for answer in join_all((0..RACERS).map(racer)).await {
            match answer {
                Ok(_) => winners += 1,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match winners {
            1 => Ok(()),
            // S3 may answer 409 to all of a race; then nobody wrote and nobody believes it.
            0 => Ok(()),
            _ => Err(refused(&format!("it looks at {header}, but not atomically"))),
        }
    }

    /// Refuses a layout of another version; tells loudly of a place that somebody else uses. Of
    /// several that give the store an id at once, the first one's stands.
    async fn check_layout(&self) -> Result<HydrantId, StoreError> {
        let path = self.at(Key::Layout);
        for _ in 0..MAX_ROUNDS {
            let before = match self.get_json::<Layout>(&path).await? {
                Some((layout, stamp)) => match named(layout)? {
                    Some(id) => return Ok(id),
                    None => stamp,
                },
                None => {
                    self.warn_of_strangers().await?;
                    Stamp::Absent
                }
            };
            let id = HydrantId::generate();
            let layout = Layout { version: LAYOUT_VERSION, id: Some(id) };
            match self.compare_and_set_json(&path, &layout, &before).await {
                Ok(_) => return Ok(id),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict { key: path.to_string() })
    }

    async fn warn_of_strangers(&self) -> Result<(), StoreError> {
        let objects = self.list_all(self.prefix.clone());
        pin_mut!(objects);
        while let Some(object) = objects.next().await.transpose()? {
            let Some(parts) = object.location.prefix_match(&self.prefix) else {
                continue;
            };
            let path = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
            if !key::is_known(&path) {
                tracing::warn!(key = path, "the store holds objects that are not hydrant's");
                return Ok(());
            }
            if !path.starts_with(&key::locks()) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The id in a layout that this hydrant knows.
fn named(layout: Layout) -> Result<Option<HydrantId>, StoreError> {
    let version = layout.version;
    if version == LAYOUT_VERSION {
        return Ok(layout.id);
    }
    let reason = format!(
        "the store has layout {version}, this hydrant knows layout {LAYOUT_VERSION}: use a \
         hydrant of the version that wrote it, or another prefix"
    );
    Err(StoreError::Refused { reason })
}

/// A first write that fails tells more about the settings than about races.
fn unusable(error: StoreError) -> StoreError {
    match error {
        StoreError::Refused { reason } => refused(&format!("it cannot be written so: {reason}")),
        StoreError::Conflict { key } => refused(&format!("it sees `{key}` where nothing was")),
        error => error,
    }
}

fn refused(what: &str) -> StoreError {
    StoreError::Refused { reason: format!("this store cannot decide races: {what}; {REMEDY}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::Fault;
    use object_store::PutMode;
    use std::sync::atomic::Ordering;

    #[tokio::test]
    async fn a_store_that_cannot_decide_races_is_refused_by_name() {
        for (fault, expected) in [
            (Fault::IgnoresCreate, "it ignores `If-None-Match`"),
            (Fault::IgnoresUpdate, "it ignores `If-Match`"),
            (Fault::NotAtomic, "but not atomically"),
            (Fault::NotImplemented, "it cannot be written so"),
        ] {
            let (store, fired) = Store::faulty(fault);
            let error = store.probe().await.unwrap_err();
            assert!(fired.load(Ordering::Relaxed) > 0);
            assert!(matches!(error, StoreError::Refused { .. }), "{fault:?}: {error}");
            assert!(error.to_string().contains(expected), "{fault:?}: {error}");
            assert!(error.to_string().contains("use a store that has them"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_store_that_loses_answers_is_a_store() {
        let (store, fired) = Store::faulty(Fault::LosesAnswers);
        store.probe().await.unwrap();
        assert!(fired.load(Ordering::Relaxed) > 0);
    }

    #[tokio::test]
    async fn a_layout_of_another_version_is_refused() {
        let store = Store::in_memory();
        let path = store.at(Key::Layout);
        let layout = Layout { version: 2, id: None };
        store.put_json(&path, &layout, PutMode::Overwrite).await.unwrap();
        assert!(matches!(store.probe().await, Err(StoreError::Refused { .. })));
    }

    #[tokio::test]
    async fn a_layout_that_names_nobody_gets_a_name_that_stays() {
        let store = Store::in_memory();
        let path = store.at(Key::Layout);
        store.put(&path, r#"{"version":1}"#.into(), PutMode::Overwrite).await.unwrap();
        let id = store.probe().await.unwrap();
        assert_eq!(store.probe().await.unwrap(), id);
        assert_ne!(Store::in_memory().probe().await.unwrap(), id);
    }
}
