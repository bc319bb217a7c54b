//! The HTTP API over resources, hydrations, dead letters and deliveries.
