//! The fleet leaves a sick upstream alone as if it were one process.

use crate::lab::{Fleet, SOON};
use futures::future::join_all;
use hydrant_proto::FailureClass;
use hydrant_testkit::{Fault, until};
use hydrant_upstream::BreakerState;
use serde_json::json;
use std::time::{Duration, Instant};

fn open(fleet: &Fleet) -> usize {
    let states = fleet.members.iter().map(|member| member.client.breaker().state());
    states.filter(|state| matches!(state, BreakerState::Open { .. })).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn six_processes_open_within_ten_failures_in_all() {
    for fault in [Fault::status(503), Fault::cut()] {
        let fleet = Fleet::start(6, json!({})).await;
        fleet.fake.inject("*", fault);
        // Each asks once in turn, as under a steady load, until all are open.
        'all: for _ in 0..4 {
            for member in &fleet.members {
                let _ = member.ask().await;
                if open(&fleet) == 6 {
                    break 'all;
                }
            }
        }
        until("all to be open", SOON, async || (open(&fleet) == 6).then_some(())).await;
        let asked = fleet.fake.requests().len();
        assert!((5..=10).contains(&asked), "{asked} requests reached the upstream");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_probe_at_a_time_and_its_success_closes_all() {
    let fleet = Fleet::start(6, json!({})).await;
    let fault = fleet.fake.inject("*", Fault::status(503).and(Fault::delay(SECOND / 10)));
    until("all to be open", SOON, async || {
        let _ = fleet.members[0].ask().await;
        (open(&fleet) == 6).then_some(())
    })
    .await;
    fleet.fake.forget_requests();
    let began = Instant::now();
    while began.elapsed() < 3 * SECOND {
        join_all(fleet.members.iter().map(|member| member.ask())).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let probes = fleet.fake.requests().len();
    assert!((1..=5).contains(&probes), "{probes} probes in 3 s, each pause twice the last");
    assert_eq!(fleet.fake.peak("*", "*"), 1, "never two at a time");
    fault.remove();
    until("all to be closed", SOON, async || {
        join_all(fleet.members.iter().map(|member| member.ask())).await;
        (open(&fleet) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_told_to_one_is_obeyed_by_all() {
    let fleet = Fleet::start(4, json!({})).await;
    fleet.fake.inject("*", Fault::status(429).header("retry-after", "30").times(1));
    assert_eq!(fleet.members[0].ask().await.unwrap_err().class(), FailureClass::UpstreamLimit);
    until("all to have heard", SOON, async || (open(&fleet) == 4).then_some(())).await;
    for member in &fleet.members {
        let pause = member.ask().await.unwrap_err().retry_after().unwrap();
        assert!(pause > 25 * SECOND, "{pause:?}");
    }
    assert_eq!(fleet.fake.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_bus_each_protects_for_itself_and_nobody_waits() {
    let mut fleet = Fleet::start(2, json!({})).await;
    fleet.nats.kill9();
    for member in &fleet.members {
        member.bus.connected().wait_for(|up| !up).await.unwrap();
    }
    assert!(fleet.members[0].ask().await.is_ok());
    fleet.fake.inject("*", Fault::status(503));
    for member in &fleet.members {
        while member.ask().await.unwrap_err().class() != FailureClass::BreakerOpen {}
    }
    fleet.fake.heal();
    until("both to probe by themselves", SOON, async || {
        join_all(fleet.members.iter().map(|member| member.ask())).await;
        (open(&fleet) == 0).then_some(())
    })
    .await;
}

const SECOND: Duration = Duration::from_secs(1);
