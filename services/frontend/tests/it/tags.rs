//! Tags: freshness, movement, and an upstream that is away.

use crate::lab::{Lab, SOON, assert_manifest, header, reference};
use futures::StreamExt;
use hydrant_proto::{Event, EventKind};
use hydrant_store::{Frozen, Owner, Steering, Writer};
use hydrant_testkit::{Fault, Image, ImageBuilder, NatsServer, until};
use jiff::{SignedDuration, Timestamp};
use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

fn long_ago() -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(1)
}

#[tokio::test]
async fn inside_its_window_a_tag_needs_no_upstream() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(10).build();
    lab.hydrate(&image, "lab/app", "1").await;
    for _ in 0..3 {
        let warm = lab.pull("lab/app/manifests/1").await;
        assert_manifest(&warm, &image);
        assert_eq!(header(&warm.0, "x-hydrant-cache"), "hit");
    }
    let head = lab.head("lab/app/manifests/1").send().await.unwrap();
    assert_eq!(header(head.headers(), "docker-content-digest"), image.digest.to_string());
    assert!(lab.upstream.requests().is_empty());
}

#[tokio::test]
async fn after_its_window_one_head_confirms_it() {
    let lab = Lab::start().await;
    let (image, name) = (ImageBuilder::new(1).layer(10).build(), "lab/app".parse().unwrap());
    lab.upstream.insert(&image, "app", "1");
    lab.hydrate(&image, "lab/app", "1").await;
    lab.point(&name, "1", &image, Owner::Cache, long_ago()).await;
    for _ in 0..3 {
        assert_manifest(&lab.pull("lab/app/manifests/1").await, &image);
    }
    assert_eq!((lab.upstream.heads("*"), lab.upstream.gets("*/manifests/*")), (1, 0));
    until("the confirmation is written", SOON, async || {
        let (record, _) = lab.store.tag(&name, &"1".parse().unwrap()).await.unwrap().unwrap();
        (record.confirmed_at > Timestamp::now() - SignedDuration::from_mins(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_tag_that_moved_is_relayed_and_queued() {
    let lab = Lab::start().await;
    let (old, new) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    let name = "lab/app".parse().unwrap();
    lab.hydrate(&old, "lab/app", "1").await;
    lab.point(&name, "1", &old, Owner::Cache, long_ago()).await;
    lab.upstream.insert(&new, "app", "1");
    let moved = lab.pull("lab/app/manifests/1").await;
    assert_manifest(&moved, &new);
    let misses = lab.misses(1).await;
    assert_eq!(misses[0].request.reference, reference("1"));
    assert_eq!(lab.store.staged_manifest(&new.digest).await.unwrap().unwrap(), new.manifest);

    // Having served the new one, it never goes back, even when the upstream is gone.
    lab.upstream.stop().await;
    let again = lab.pull("lab/app/manifests/1").await;
    assert_manifest(&again, &new);
}

#[tokio::test]
async fn without_the_upstream_the_local_one_is_served_marked_stale() {
    let nats = NatsServer::start().await;
    let lab = Lab::setup().nats(nats.url()).start().await;
    lab.bus.connected().wait_for(|connected| *connected).await.unwrap();
    let mut events =
        pin!(lab.bus.follow_events(Some(Timestamp::now() - SignedDuration::from_secs(1))));
    let (image, name) = (ImageBuilder::new(1).build(), "lab/app".parse().unwrap());
    lab.hydrate(&image, "lab/app", "1").await;
    lab.point(&name, "1", &image, Owner::Cache, long_ago()).await;
    lab.upstream.stop().await;
    for _ in 0..2 {
        let stale = lab.pull("lab/app/manifests/1").await;
        assert_manifest(&stale, &image);
        assert_eq!(header(&stale.0, "x-hydrant-cache"), "stale");
        assert_eq!(header(&stale.0, "warning"), "110 - \"Response is Stale\"");
        assert!(header(&stale.0, "age").parse::<u64>().unwrap() >= 3_600);
        assert_eq!(header(&stale.0, "x-hydrant-stale-because"), "upstream-down");
    }
    let told = tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap();
    let Event { kind, data, .. } = told;
    assert_eq!((kind, data.digest), (EventKind::ServedStale, Some(image.digest)));
}

#[tokio::test]
async fn a_slow_upstream_costs_a_stale_answer_no_more_than_its_budget() {
    let lab = Lab::start().await;
    let (image, name) = (ImageBuilder::new(1).build(), "lab/app".parse().unwrap());
    lab.hydrate(&image, "lab/app", "1").await;
    lab.point(&name, "1", &image, Owner::Cache, long_ago()).await;
    lab.upstream.inject("*", Fault::black_hole());
    let began = std::time::Instant::now();
    let stale = lab.pull("lab/app/manifests/1").await;
    assert_eq!(header(&stale.0, "x-hydrant-cache"), "stale");
    assert!(began.elapsed() < Duration::from_millis(3_500), "{:?}", began.elapsed());
    let began = std::time::Instant::now();
    lab.pull("lab/app/manifests/1").await;
    assert!(began.elapsed() < Duration::from_secs(1), "the failure counts for a moment");
}

#[tokio::test]
async fn a_slow_check_is_waited_for_once_however_long_it_takes() {
    let lab = Lab::setup().rule("check_within = '1s'").start().await;
    let (image, name) = (ImageBuilder::new(1).build(), "lab/app".parse().unwrap());
    lab.upstream.insert(&image, "app", "1");
    lab.hydrate(&image, "lab/app", "1").await;
    lab.point(&name, "1", &image, Owner::Cache, long_ago()).await;
    lab.upstream.inject("*/manifests/*", Fault::delay(Duration::from_secs(8)));
    let waits = AtomicUsize::new(0);
    until("the check to end", SOON, async || {
        let began = std::time::Instant::now();
        let answer = lab.pull("lab/app/manifests/1").await;
        if began.elapsed() > Duration::from_millis(500) {
            waits.fetch_add(1, Ordering::Relaxed);
        }
        (header(&answer.0, "x-hydrant-cache") == "hit").then_some(())
    })
    .await;
    assert_eq!((waits.into_inner(), lab.upstream.heads("*")), (1, 1));
}

#[tokio::test]
async fn a_clients_head_stays_one_where_the_upstream_does_not_say_what_a_tag_names() {
    let lab = Lab::start().await;
    let (image, name) = (ImageBuilder::new(1).build(), "lab/app".parse().unwrap());
    lab.upstream.insert(&image, "app", "1");
    lab.hydrate(&image, "lab/app", "1").await;
    lab.point(&name, "1", &image, Owner::Cache, long_ago()).await;
    lab.upstream.inject("*", Fault::none().without_header("docker-content-digest"));
    for _ in 0..3 {
        let head = lab.head("lab/app/manifests/1").send().await.unwrap();
        assert_eq!(head.status(), 200);
        let size = image.manifest.len().to_string();
        assert_eq!(header(head.headers(), "content-length"), size);
    }
    assert_eq!((lab.upstream.heads("*/manifests/*"), lab.upstream.gets("*/manifests/*")), (3, 0));
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &image);
    assert_eq!(lab.upstream.gets("*/manifests/*"), 1);
}

#[tokio::test]
async fn staleness_is_bounded() {
    let lab = Lab::setup().rule("stale_for = '10m'").start().await;
    let (image, name) = (ImageBuilder::new(1).build(), "lab/app".parse().unwrap());
    lab.hydrate(&image, "lab/app", "1").await;
    lab.point(&name, "1", &image, Owner::Cache, long_ago()).await;
    lab.upstream.stop().await;
    assert_eq!(lab.refusal("lab/app/manifests/1").await, (503, "upstream-down".to_owned()));
    // By digest it is what it is.
    lab.pull(&format!("lab/app/manifests/{}", image.digest)).await;
}

#[tokio::test]
async fn a_tag_that_is_gone_upstream_is_served_stale() {
    let lab = Lab::start().await;
    let (image, name) = (ImageBuilder::new(1).build(), "lab/app".parse().unwrap());
    lab.hydrate(&image, "lab/app", "1").await;
    lab.point(&name, "1", &image, Owner::Cache, long_ago()).await;
    let stale = lab.pull("lab/app/manifests/1").await;
    assert_eq!(header(&stale.0, "x-hydrant-cache"), "stale");
    assert_eq!(header(&stale.0, "x-hydrant-stale-because"), "unknown");
}

#[tokio::test]
async fn behind_its_window_a_tag_goes_out_at_once_and_is_checked_behind_the_answer() {
    let lab = Lab::setup().rule("revalidate_for = '2h'").start().await;
    let (old, new) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    let name = "lab/app".parse().unwrap();
    lab.hydrate(&old, "lab/app", "1").await;
    lab.point(&name, "1", &old, Owner::Cache, long_ago()).await;
    lab.upstream.insert(&new, "app", "1");
    let black = lab.upstream.inject("*", Fault::black_hole().method("HEAD").times(1));
    let stale = lab.pull("lab/app/manifests/1").await;
    assert_manifest(&stale, &old);
    assert_eq!(header(&stale.0, "warning"), "110 - \"Response is Stale\"");
    assert_eq!(header(&stale.0, "x-hydrant-stale-because"), "being-checked");
    for _ in 0..5 {
        assert_manifest(&lab.pull("lab/app/manifests/1").await, &old);
    }
    until("the check", SOON, async || (black.fired() == 1).then_some(())).await;
    assert_eq!(lab.upstream.heads("*"), 1, "one check, however many pull");
}

#[tokio::test]
async fn what_a_check_behind_an_answer_finds_is_hydrated_though_nobody_asks() {
    let lab = Lab::setup().rule("revalidate_for = '2h'").start().await;
    let (old, new) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    let name = "lab/app".parse().unwrap();
    lab.hydrate(&old, "lab/app", "1").await;
    lab.point(&name, "1", &old, Owner::Cache, long_ago()).await;
    lab.upstream.insert(&new, "app", "1");
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &old);
    let misses = lab.misses(1).await;
    assert_eq!(misses[0].request.reference, reference("1"));
    assert_eq!(lab.store.staged_manifest(&new.digest).await.unwrap().unwrap(), new.manifest);
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &new);
    assert_eq!((lab.upstream.heads("*"), lab.upstream.gets("*/manifests/*")), (1, 1));
}

#[tokio::test]
async fn a_frozen_tag_is_never_asked_about() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).build();
    let (name, tag) = ("lab/app".parse().unwrap(), "1".parse().unwrap());
    lab.upstream.insert(&ImageBuilder::new(2).build(), "app", "1");
    lab.hydrate(&image, "lab/app", "1").await;
    lab.point(&name, "1", &image, Owner::Cache, long_ago()).await;
    let (record, version) = lab.store.tag(&name, &tag).await.unwrap().unwrap();
    let frozen = Frozen { at: Timestamp::now(), by: Writer::Api, steering: Steering::default() };
    let record = record.freeze(frozen).unwrap();
    lab.store.put_tag(&name, &tag, record, Some(version)).await.unwrap();
    let answer = lab.pull("lab/app/manifests/1").await;
    assert_manifest(&answer, &image);
    assert_eq!(header(&answer.0, "warning"), "");
    assert!(lab.upstream.requests().is_empty());
}

#[tokio::test]
async fn a_pushed_tag_is_never_asked_about() {
    let lab = Lab::start().await;
    let (pushed, upstream) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    let name = "lab/app".parse().unwrap();
    lab.upstream.insert(&upstream, "app", "1");
    lab.hydrate(&pushed, "lab/app", "1").await;
    lab.point(&name, "1", &pushed, Owner::Push, long_ago()).await;
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &pushed);
    assert!(lab.upstream.requests().is_empty());
}

#[tokio::test]
async fn an_unknown_tag_is_404_and_a_failing_upstream_is_not() {
    let lab = Lab::start().await;
    lab.upstream.insert(&ImageBuilder::new(1).build(), "app", "1");
    assert_eq!(lab.refusal("lab/app/manifests/none").await, (404, "unknown".to_owned()));
    lab.upstream.inject("*", Fault::status(503));
    let (status, class) = lab.refusal("lab/app/manifests/other").await;
    assert_eq!((status, class.as_str()), (502, "upstream-down"));
    lab.upstream.heal();
    lab.upstream.inject("*", Fault::status(429).header("retry-after", "7"));
    let limited = lab.get("lab/app/manifests/third").send().await.unwrap();
    assert_eq!(header(limited.headers(), "retry-after"), "7");
    assert_eq!(limited.status(), 429);
}

#[tokio::test]
async fn many_unknown_names_are_few_requests_each() {
    let lab = Lab::start().await;
    lab.upstream.insert(&ImageBuilder::new(1).build(), "app", "1");
    for round in 0..3 {
        for n in 0..100 {
            let path = format!("lab/app/manifests/none-{n}");
            assert_eq!(lab.refusal(&path).await.0, 404, "round {round}");
        }
    }
    assert_eq!(lab.upstream.gets("*/manifests/*"), 100);
    assert!(lab.misses(0).await.is_empty(), "what does not exist is no miss");
}

#[tokio::test]
async fn a_changed_rule_forgets_what_was_heard_under_the_old_one() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).build();
    lab.upstream.insert(&image, "app", "1");
    lab.pull("lab/app/manifests/1").await;
    let text = format!(
        "[[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\n[[rule]]\nname='lab'\n\
         downstream='lab/*'\nupstream='lab'\nplatforms='all'\n",
        lab.upstream.url()
    );
    lab.feed.replace(crate::lab::table(&text));
    lab.pull("lab/app/manifests/1").await;
    assert_eq!(lab.upstream.gets("*/manifests/*"), 2);
    lab.feed.replace(hydrant_rules::Table::empty());
    assert_eq!(lab.refusal("lab/app/manifests/1").await, (404, "unknown".to_owned()));
}

#[tokio::test]
async fn tags_of_upstream_and_cache_are_listed_together() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).build();
    for tag in ["a", "c", "e"] {
        lab.upstream.insert(&image, "app", tag);
    }
    lab.hydrate(&image, "lab/app", "b").await;
    let tags = async |path: &str| -> (serde_json::Value, String) {
        let (headers, body) = lab.pull(path).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["name"], "lab/app");
        (body["tags"].clone(), header(&headers, "link").to_owned())
    };
    assert_eq!(tags("lab/app/tags/list").await.0, serde_json::json!(["a", "b", "c", "e"]));
    let (page, link) = tags("lab/app/tags/list?n=2").await;
    assert_eq!(page, serde_json::json!(["a", "b"]));
    assert_eq!(link, "</v2/lab/app/tags/list?n=2&last=b>; rel=\"next\"");
    let (page, link) = tags("lab/app/tags/list?n=2&last=b").await;
    assert_eq!((page, link.as_str()), (serde_json::json!(["c", "e"]), ""));
    assert_eq!(tags("lab/app/tags/list?n=0").await, (serde_json::json!([]), String::new()));
    lab.upstream.stop().await;
    assert_eq!(tags("lab/app/tags/list").await.0, serde_json::json!(["b"]));
    assert_eq!(lab.refusal("lab/other/tags/list").await.0, 502);
}

#[tokio::test]
async fn a_record_from_the_future_does_not_pin_its_tag() {
    let lab = Lab::start().await;
    let (old, new) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    lab.upstream.insert(&new, "app", "1");
    lab.hydrate(&old, "lab/app", "1").await;
    let name = "lab/app".parse().unwrap();
    let ahead = Timestamp::now() + Duration::from_secs(3600);
    lab.point(&name, "1", &old, Owner::Cache, ahead).await;
    for _ in 0..2 {
        let (headers, _) = lab.pull("lab/app/manifests/1").await;
        assert_eq!(header(&headers, "docker-content-digest"), new.digest.to_string());
    }
}

#[tokio::test]
async fn a_list_of_nothing_known_is_no_empty_list() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).build();
    lab.upstream.insert(&image, "app", "a");
    lab.hydrate(&image, "lab/local", "a").await;
    for query in ["", "?n=0", "?last=x", "?n=0&last=x"] {
        let path = format!("lab/none/tags/list{query}");
        assert_eq!(lab.refusal(&path).await, (404, "unknown".to_owned()), "{query}");
    }
    assert_eq!(lab.refusal("lab/app/tags/list?n=1&n=2").await.0, 400);
    lab.upstream.stop().await;
    for query in ["", "?n=0", "?last=x"] {
        // 503 once the breaker is open.
        let (status, class) = lab.refusal(&format!("lab/app/tags/list{query}")).await;
        assert!(matches!(status, 502 | 503), "{query}: {status} {class}");
    }
    let (headers, body) = lab.pull("lab/local/tags/list?last=x").await;
    assert_eq!(body, r#"{"name":"lab/local","tags":[]}"#);
    assert_eq!(header(&headers, "warning"), "110 - \"Response is Stale\"");
}

#[tokio::test]
async fn the_next_page_is_of_the_same_registry() {
    let more = "[[upstream]]\nname='ghcr'\nendpoint='{upstream}'\nallow_private=true\n\
                namespace='ghcr.io'\n[[rule]]\nname='ghcr'\ndownstream='github/*'\nupstream='ghcr'\n";
    let lab = Lab::setup().more(more).start().await;
    let image = ImageBuilder::new(1).build();
    for tag in ["a", "b"] {
        lab.upstream.insert(&image, "app", tag);
    }
    let (headers, _) = lab.pull("app/tags/list?n=1&ns=ghcr.io").await;
    let link = header(&headers, "link");
    assert_eq!(link, "</v2/app/tags/list?n=1&last=a&ns=ghcr.io>; rel=\"next\"");
}

#[tokio::test]
async fn catalog_and_referrers_tell_what_is_local() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).build();
    lab.hydrate(&image, "lab/app", "1").await;
    let (_, body) = lab.pull("_catalog").await;
    assert_eq!(body, r#"{"repositories":["lab/app"]}"#);
    let path = format!("lab/app/referrers/{}?artifactType=application/x", image.digest);
    let (headers, body) = lab.pull(&path).await;
    assert_eq!(header(&headers, "oci-filters-applied"), "artifactType");
    assert_eq!(header(&headers, "content-type"), "application/vnd.oci.image.index.v1+json");
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["manifests"], serde_json::json!([]));
}

#[tokio::test]
async fn referrers_are_the_upstreams_and_the_local_ones_and_stale_without_it() {
    let lab = Lab::start().await;
    let (image, signature) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    lab.hydrate(&image, "lab/app", "1").await;
    let path = |digest: &hydrant_proto::Digest| format!("lab/app/referrers/{digest}");
    let told = async |digest| {
        let (headers, body) = lab.pull(&path(digest)).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (body["manifests"].clone(), header(&headers, "warning").to_owned())
    };
    let index = Image::index(vec![signature.clone()]);
    let stands_in = |digest: &hydrant_proto::Digest| digest.to_string().replace(':', "-");
    lab.upstream.insert(&index, "app", &stands_in(&signature.digest));
    let (found, warning) = told(&signature.digest).await;
    assert_eq!(found[0]["digest"], signature.digest.to_string());
    assert_eq!((found.as_array().unwrap().len(), warning.as_str()), (1, ""));
    lab.upstream.forget_requests();
    told(&signature.digest).await;
    assert!(lab.upstream.requests().is_empty(), "an answer is good for a moment");

    lab.upstream.stop().await;
    let (found, warning) = told(&image.digest).await;
    assert_eq!((found, warning.as_str()), (serde_json::json!([]), "110 - \"Response is Stale\""));
    // Of what is not here either nothing can be said.
    let (status, _) = lab.refusal(&path(&ImageBuilder::new(3).build().digest)).await;
    assert!(matches!(status, 502 | 503), "{status}");
}
