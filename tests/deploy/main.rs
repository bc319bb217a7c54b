//! What lies in `deploy/` is tried by the tools and clients it is for.

// A test reports what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

mod alerts;
mod chart;
mod chart_network;
mod chart_pods;
mod chart_run;
mod clients;
mod compose;
mod compose_run;
mod dashboards;
mod engine;
mod here;
mod image;
mod pictures;
mod rendered;
mod tools;
mod typed;
mod units;
