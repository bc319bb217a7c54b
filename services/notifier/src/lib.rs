//! Signed webhooks: one delivery per endpoint, retried, logged, dead-lettered.
