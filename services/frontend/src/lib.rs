//! The pull half of the OCI distribution spec over the cache.
