//! Upstream registries: manifests and blobs, tokens, error classes, the circuit breaker.
