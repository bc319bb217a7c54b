//! Named places at which a test can make the process die as if by `kill -9`. Absent from release
//! builds.

/// The steps of an import, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Claimed,
    Resolved,
    BlobsDurable,
    ManifestsDurable,
    TagPointed,
    Completed,
    Announced,
    Forgotten,
}

/// Dies here if `HYDRANT_ABORT_AT` names this step, such as `TagPointed`.
pub(crate) fn reached(step: Step) {
    if cfg!(debug_assertions) {
        static ABORT_AT: std::sync::LazyLock<Option<String>> =
            std::sync::LazyLock::new(|| std::env::var("HYDRANT_ABORT_AT").ok());
        if ABORT_AT.as_deref() == Some(format!("{step:?}").as_str()) {
            std::process::abort();
        }
    }
}
