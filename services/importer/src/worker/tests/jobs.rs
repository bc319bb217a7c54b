//! Jobs that are done, dropped or refused for what they name.

use super::*;
use crate::lanes::Pace;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_handled_many_times_at_once_is_one_state_and_one_event() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    let handled = (0..5).map(|_| lab.handle(&request));
    for verdict in futures::future::join_all(handled).await {
        assert!(matches!(verdict, Verdict::Done | Verdict::Later(_)), "{verdict:?}");
    }
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    let tag = lab.tag().await;
    assert_eq!((tag.previous(), tag.digest.clone(), tag.seq), (None, image(1).digest, 1));
    let completion = lab.worker.store.completion(&request.id()).await.unwrap().unwrap();
    assert_eq!(completion.seq, 1);
    lab.no_misses(&request).await;
    assert_eq!(lab.events(1).await, [(EventKind::ImageHydrated, completion.event.id)]);
    assert_eq!(lab.upstream.gets("*/blobs/*"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_until_an_image_is_local_counts_from_its_first_request() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let asked = lab.missed("lab/app:1", Wanted::Whole).await;
    let requested_at = asked.requested_at - jiff::SignedDuration::from_mins(90);
    let request = HydrationRequested { requested_at, ..asked };
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    let text = hydrant_telemetry::metrics_text();
    for (limit, count) in [("3600", 0), ("14400", 1)] {
        let bucket =
            "hydrant_hydration_time_to_local_seconds_bucket{upstream=\"lab\",verdict=\"done\"";
        let line = format!("{bucket},le=\"{limit}\"}} {count}\n");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_a_rule_begin_at_zero() {
    let lab = Lab::start().await;
    let (stop, pace) = (CancellationToken::new(), Pace { slots: 1, drain: SOON });
    let running = tokio::spawn(crate::lanes::run(lab.worker.clone(), pace, stop.clone()));
    for verdict in ["done", "dead"] {
        let series =
            format!("hydrant_rule_hydrations_total{{rule=\"lab\",verdict=\"{verdict}\"}} 0\n");
        until(&series, SOON, async || {
            hydrant_telemetry::metrics_text().contains(&series).then_some(())
        })
        .await;
    }
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_an_old_generation_is_dropped_with_its_misses() {
    let lab = Lab::start().await;
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    lab.worker.feed.replace(table(&lab.upstream, "platforms='all'\n"));
    // It may be of a younger one than this process knows.
    for _ in 0..NEWS_DELIVERIES {
        assert_eq!(lab.handle(&request).await, Verdict::Later(NEWS_PAUSE));
    }
    assert_eq!(lab.handle(&request).await, Verdict::Obsolete);
    lab.no_misses(&request).await;
    assert_eq!(lab.upstream.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_rule_that_is_not_known_here_yet_waits_until_it_is() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let old = lab.worker.table().resources().clone();
    let young = table(&lab.upstream, "platforms='all'\n");
    lab.worker.feed.replace(young);
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    for behind in [Table::compile(old).unwrap(), Table::empty()] {
        lab.worker.feed.replace(behind);
        assert_eq!(lab.handle(&request).await, Verdict::Later(NEWS_PAUSE));
    }
    lab.worker.feed.replace(table(&lab.upstream, "platforms='all'\n"));
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    assert_eq!(lab.tag().await.digest, image(1).digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_arrive_while_a_job_runs_are_met_by_it() {
    let lab = Lab::start().await;
    let platforms = ["linux/amd64", "linux/arm64"];
    let both = Image::multi_arch(1, &platforms, &[200_000]);
    lab.upstream.insert(&both, "app", "1");
    let wish = |text: &str| Wanted::Platform(text.parse::<Platform>().unwrap());
    let request = lab.missed("lab/app:1", wish("linux/amd64")).await;
    lab.upstream.inject("*/blobs/*", Fault::slow(100_000));
    let meanwhile = async {
        until("a blob to be asked for", SOON, async || {
            (lab.upstream.gets("*/blobs/*") > 0).then_some(())
        })
        .await;
        lab.missed("lab/app:1", wish("linux/arm64")).await;
        lab.upstream.heal();
    };
    let (verdict, ()) = tokio::join!(lab.handle(&request), meanwhile);
    assert_eq!(verdict, Verdict::Done);
    let completion = lab.worker.store.completion(&request.id()).await.unwrap().unwrap();
    let local: Vec<_> = completion.platforms.iter().map(ToString::to_string).collect();
    assert_eq!(local, platforms);
    lab.no_misses(&request).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_the_index_does_not_have_is_named() {
    let lab = Lab::with_rule("platforms=['linux/s390x']\n").await;
    lab.upstream.insert(&Image::multi_arch(1, &["linux/amd64"], &[1000]), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Dead);
    let reason = lab.letter(&request).await.reason;
    assert!(reason.contains("linux/s390x"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_that_nest_too_deep_are_refused() {
    let lab = Lab::with_rule("platforms='all'\n").await;
    let mut nested = image(1);
    for _ in 0..5 {
        nested = Image::index(vec![nested]);
    }
    lab.upstream.insert(&nested, "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    while lab.handle(&request).await != Verdict::Dead {}
    let letter = lab.letter(&request).await;
    assert!(letter.reason.contains("nest deeper"), "{}", letter.reason);
    assert_eq!(letter.class, Some(FailureClass::Integrity));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_1_manifest_is_unsupported() {
    let lab = Lab::start().await;
    let claimed = image(1).media_type.as_str();
    lab.upstream.put_manifest("app", "1", claimed, r#"{"schemaVersion":1,"name":"app"}"#);
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    while lab.handle(&request).await != Verdict::Dead {}
    assert_eq!(lab.letter(&request).await.class, Some(FailureClass::Unsupported));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_which_nobody_pulled_a_platform_is_not_called_local() {
    let lab = Lab::start().await;
    lab.upstream.insert(&Image::multi_arch(1, &["linux/amd64"], &[1000]), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    assert_eq!(lab.worker.store.completion(&request.id()).await.unwrap(), None);
    let name = "lab/app".parse().unwrap();
    assert!(lab.worker.store.tag(&name, &"1".parse().unwrap()).await.unwrap().is_none());
    lab.no_misses(&request).await;

    let request = lab.missed("lab/app:1", Wanted::All).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    let completion = lab.worker.store.completion(&request.id()).await.unwrap().unwrap();
    assert_eq!(lab.events(1).await, [(EventKind::ImageHydrated, completion.event.id)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_led_elsewhere_hides_what_it_brought_before() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    let name = request.repository.clone();
    assert!(lab.worker.store.has_manifest(&name, &image(1).digest).await.unwrap());

    lab.upstream.insert(&image(2), "other/app", "1");
    lab.worker.feed.replace(table(&lab.upstream, "repository='other/*'\n"));
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    assert!(!lab.worker.store.has_manifest(&name, &image(1).digest).await.unwrap());
    for blob in image(1).all_blobs() {
        assert!(!lab.worker.store.has_link(&name, &blob.digest).await.unwrap());
    }
    assert_eq!(lab.tag().await.digest, image(2).digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_rule_is_led_elsewhere_while_it_flies_shows_nothing_of_the_former() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    lab.upstream.insert(&image(2), "other/app", "1");
    let (gate, request) = (Gate::default(), lab.missed("lab/app:1", Wanted::Whole).await);
    lab.upstream.inject("/v2/app/blobs/*", Fault::hold(500, &gate));
    let (name, table_of) = (request.repository.clone(), |more| table(&lab.upstream, more));
    let led = async {
        let asked = async || (lab.upstream.gets("/v2/app/blobs/*") == 3).then_some(());
        until("the blobs to be on their way", SOON, asked).await;
        lab.worker.feed.replace(table_of("repository='other/*'\n"));
        let request = lab.missed("lab/app:1", Wanted::Whole).await;
        assert_eq!(lab.handle(&request).await, Verdict::Done);
        // What is stored when the gate opens is linked for nobody; this is what a link would do.
        for blob in image(1).all_blobs() {
            lab.worker.store.link_blob(&name, &blob.digest).await.unwrap();
        }
        gate.open();
    };
    let (verdict, ()) = tokio::join!(lab.worker.handle(job(&request, 9)), led);
    assert_eq!(verdict, Verdict::Obsolete);
    assert!(!lab.worker.store.has_manifest(&name, &image(1).digest).await.unwrap());
    assert_eq!(lab.tag().await.digest, image(2).digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_another_job_clears_is_waited_for_and_burns_no_attempt() {
    let (mut lab, root) = (Lab::start().await, tempfile::tempdir().unwrap());
    let url = format!("file://{}", root.path().display()).parse().unwrap();
    let config = StoreConfig { url, s3: S3Settings::default(), public_endpoint: None };
    lab.worker.store = Store::open(&config).unwrap();
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    let records = root.path().join("hydrant/v1/repositories/lab/app");
    std::fs::create_dir_all(&records).unwrap();
    let now = Timestamp::now();
    let claimed = format!(
        r#"{{"origin":"clearing","since":"{now}","clearing":{{"by":"x","renewed_at":"{now}"}}}}"#
    );
    std::fs::write(records.join("_origin.json"), claimed).unwrap();
    for _ in 0..5 {
        assert!(matches!(lab.handle(&request).await, Verdict::Later(_)));
    }
    let state = lab.worker.bus.job_states().get(&request.id()).await.unwrap().unwrap();
    assert_eq!((state.attempts, state.class), (0, Some(FailureClass::Storage)));
    assert_eq!(lab.worker.store.misses(&request.id()).await.unwrap().len(), 1);
    assert!(lab.upstream.requests().is_empty());
}
