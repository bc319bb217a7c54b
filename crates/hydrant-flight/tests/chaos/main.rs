//! Everything at once: readers that come, leave, dawdle and ask for parts, of blobs of all sizes, at
//! several members of a cluster, while members, links, the bus, the upstream and storage fail as a
//! seed says. What must always hold is checked of every run.
//!
//! `HYDRANT_CHAOS=0..40 cargo nextest run -p hydrant-flight -E 'binary(chaos)'` tries more seeds.

// A test reports what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../lab/mod.rs"]
mod lab;
mod plan;
mod reader;
mod run;

use plan::{Plan, Trouble};
use run::Run;
use std::{ops::Range, time::Duration};

/// Whatever goes wrong, a run is over by then.
const LIMIT: Duration = Duration::from_secs(60);

async fn survives(trouble: Trouble) {
    for seed in seeds() {
        let plan = Plan::draw(trouble, seed);
        eprintln!("{plan:#?}");
        let run = Run::start(plan).await;
        let over = tokio::time::timeout(LIMIT, run.carry_out()).await;
        assert!(over.is_ok(), "seed {seed} of {trouble:?} hangs");
    }
}

fn seeds() -> Range<u64> {
    let Ok(range) = std::env::var("HYDRANT_CHAOS") else { return 0..1 };
    let (first, end) = range.split_once("..").expect("HYDRANT_CHAOS is a range like 0..40");
    first.parse().unwrap()..end.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_faults_every_byte_is_read_once() {
    survives(Trouble::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_costs_less_than_a_part() {
    survives(Trouble::Deaths).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_between_members_may_fail_and_no_reader_notices() {
    survives(Trouble::Links).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_may_fail_and_no_reader_notices() {
    survives(Trouble::Bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_stumbles_once_does_no_harm() {
    survives(Trouble::Upstream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_may_fail_and_has_everything_when_it_is_back() {
    survives(Trouble::Storage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_may_fail_and_all_is_well_afterwards() {
    survives(Trouble::Everything).await;
}
