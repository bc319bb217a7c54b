//! What is limited is limited for all together.

use crate::lab::{Fleet, SOON};
use futures::future::join_all;
use hydrant_proto::FailureClass;
use hydrant_testkit::{Fault, until};
use hydrant_upstream::Priority::{Background, Interactive};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_told_to_one_stops_the_background_work_of_all() {
    let fleet = Fleet::start(4, json!({})).await;
    let low = Fault::none()
        .header("ratelimit-limit", "100;w=21600")
        .header("ratelimit-remaining", "12;w=21600");
    fleet.fake.inject("*/manifests/*", low);
    fleet.members[0].ask().await.unwrap();
    until("all to have heard", SOON, async || {
        let told = |n: usize| fleet.members[n].client.guard().quota_standing();
        (0..4).all(|n| told(n).is_some_and(|quota| quota.remaining == 12)).then_some(())
    })
    .await;
    fleet.fake.forget_requests();
    for member in &fleet.members {
        let refused = member.ask_as(Background).await.unwrap_err();
        assert_eq!(refused.class(), FailureClass::UpstreamLimit, "{refused}");
    }
    assert_eq!(fleet.fake.requests().len(), 0);
    for member in &fleet.members {
        member.ask_as(Interactive).await.unwrap();
    }
    assert_eq!(fleet.fake.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_of_unknown_names_is_one_for_all() {
    let fleet = Fleet::start(4, json!({})).await;
    let ghosts = (0..4 * 100).map(|n| async move {
        let ghost = format!("lab/ghost-{n}").parse().unwrap();
        let digest = hydrant_proto::Digest::of(b"ghost");
        (n, ghost, digest)
    });
    for (n, ghost, digest) in join_all(ghosts).await {
        let _ = fleet.members[n % 4].client.head_blob(&ghost, &digest, Interactive).await;
    }
    let asked = fleet.fake.requests().len();
    assert!((50..=130).contains(&asked), "{asked} of 400 were asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_shared_and_who_leaves_makes_room() {
    let caps = json!({"caps": {"connections": 8}, "concurrency": 64});
    let mut fleet = Fleet::start(4, caps).await;
    assert_eq!(fleet.members[0].client.concurrency(), 2);
    fleet.members.truncate(2);
    until("the share to grow", SOON, async || {
        (fleet.members[0].client.concurrency() == 4).then_some(())
    })
    .await;
}
