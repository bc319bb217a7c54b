//! Figures that are read when somebody looks, by who knows them: what is not known any more, and what
//! belonged to something that is gone, is not told.

use opentelemetry::KeyValue;
use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

type Source<T> = (KeyValue, Box<dyn Fn() -> Option<T> + Send + Sync>);

/// Who is asked for figures of one kind. Clones share them.
pub(super) struct Readings<T>(Arc<Mutex<Vec<Weak<Source<T>>>>>);

/// A figure is shown for as long as this is kept.
#[must_use = "the figure is gone when this is dropped"]
pub struct Shown(#[expect(dead_code, reason = "it is held, not read")] Arc<dyn Any + Send + Sync>);

impl<T: 'static> Readings<T> {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Where two tell of the same, the one that began later is believed.
    pub(super) fn show(
        &self,
        label: KeyValue,
        read: impl Fn() -> Option<T> + Send + Sync + 'static,
    ) -> Shown {
        let source: Arc<Source<T>> = Arc::new((label, Box::new(read)));
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|source| source.strong_count() > 0);
        sources.push(Arc::downgrade(&source));
        Shown(source)
    }

    pub(super) fn each(&self, mut tell: impl FnMut(T, &KeyValue)) {
        let sources = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for source in sources.iter().filter_map(Weak::upgrade) {
            if let Some(read) = (source.1)() {
                tell(read, &source.0);
            }
        }
    }
}

impl<T> Clone for Readings<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Readings<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readings")
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}
