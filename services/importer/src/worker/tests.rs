//! Jobs handled against a real nats-server, a scripted upstream and a store in memory.

use super::*;
use hydrant_bus::BusConfig;
use hydrant_proto::{Digest, EventKind, Lane, Platform, Tag};
use hydrant_rules::Resources;
use hydrant_store::{
    Frozen, MissRecord, Owner, S3Settings, Steering, StoreConfig, TagAct, TagRecord, Wanted, Writer,
};
use hydrant_testkit::{
    FakeUpstream, Fault, Flow, Gate, Image, ImageBuilder, NatsServer, Proxy, SeaweedFs, until,
};
use hydrant_upstream::SecretSource;
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

const SOON: Duration = Duration::from_secs(30);

struct Lab {
    upstream: FakeUpstream,
    worker: Worker,
    nats: NatsServer,
    /// As the bus counts them.
    deliveries: AtomicU64,
    _spool: tempfile::TempDir,
}

impl Lab {
    async fn start() -> Self {
        Self::with_rule("").await
    }

    async fn with_rule(more: &str) -> Self {
        let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
        let spool = tempfile::tempdir().unwrap();
        let (store, table) = (Store::in_memory(), table(&upstream, more));
        let bus = bus(&nats).await;
        let worker = Worker {
            flights: Flights::new(store.clone(), spool.path().into(), 1 << 30, None).unwrap(),
            store,
            bus,
            upstreams: Upstreams::new(SecretSource::default()),
            feed: ResourceFeed::fixed(table),
            schedule: Schedule::doubling(Duration::from_millis(1), Duration::from_millis(2)),
            patience: SOON,
        };
        Self { upstream, worker, nats, deliveries: AtomicU64::new(0), _spool: spool }
    }

    /// A request for an image, with its miss on record.
    async fn missed(&self, image: &str, wanted: Wanted) -> HydrationRequested {
        let image: hydrant_proto::Image = image.parse().unwrap();
        let route = self.worker.table().route(&image.repository).unwrap();
        let request = HydrationRequested {
            rule: route.rule.name.to_string(),
            generation: route.generation.to_string(),
            upstream: route.upstream.name.to_string(),
            repository: image.repository,
            reference: image.reference,
            lane: Lane::Interactive,
            platforms: Vec::new(),
            requested_at: Timestamp::now(),
        };
        let miss = MissRecord { request: request.clone(), wanted, missed_at: Timestamp::now() };
        self.worker.store.record_miss(&miss).await.unwrap();
        // It is published anew.
        self.deliveries.store(0, Ordering::Relaxed);
        request
    }

    async fn handle(&self, request: &HydrationRequested) -> Verdict {
        let deliveries = self.deliveries.fetch_add(1, Ordering::Relaxed) + 1;
        self.worker.handle(job(request, deliveries)).await
    }

    async fn tag(&self) -> TagRecord {
        let (name, tag) = ("lab/app".parse().unwrap(), "1".parse().unwrap());
        self.worker.store.tag(&name, &tag).await.unwrap().expect("there is a record").0
    }

    async fn letter(&self, request: &HydrationRequested) -> DeadLetter {
        let id = DeadLetterId::of_job(&request.id());
        self.worker.store.dead_letter(&id).await.unwrap().expect("there is a dead letter")
    }

    async fn no_misses(&self, request: &HydrationRequested) {
        assert_eq!(self.worker.store.misses(&request.id()).await.unwrap(), []);
    }

    /// Ids of the events so far, in order.
    async fn events(&self, count: usize) -> Vec<(EventKind, String)> {
        use futures::StreamExt;
        let bus = bus(&self.nats).await;
        let all = bus.follow_events(Some(Timestamp::UNIX_EPOCH)).take(count);
        let told = all.map(|event| (event.kind, event.id)).collect();
        tokio::time::timeout(SOON, told).await.expect("the events are told")
    }
}

async fn bus(nats: &NatsServer) -> Bus {
    let bus = Bus::connect(BusConfig::new(nats.url(), "test".to_owned())).await.unwrap();
    bus.connected().wait_for(|connected| *connected).await.unwrap();
    bus
}

fn table(upstream: &FakeUpstream, more: &str) -> Table {
    let text = format!(
        "[[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\n[[rule]]\nname='lab'\n\
         downstream='lab/*'\nupstream='lab'\n{more}",
        upstream.url()
    );
    Table::compile(Resources::from_toml(&text, Path::new("/")).unwrap()).unwrap()
}

fn job(request: &HydrationRequested, deliveries: u64) -> Job {
    Job { message: request.clone(), deliveries, published: Timestamp::now(), traceparent: None }
}

fn image(seed: u64) -> Image {
    ImageBuilder::new(seed).layers(&[100_000, 1000]).build()
}

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
async fn a_moved_tag_is_announced_with_both_digests() {
    let lab = Lab::start().await;
    for seed in [1, 2] {
        lab.upstream.insert(&image(seed), "app", "1");
        let request = lab.missed("lab/app:1", Wanted::Whole).await;
        assert_eq!(lab.handle(&request).await, Verdict::Done);
    }
    let tag = lab.tag().await;
    assert_eq!((tag.previous(), tag.seq), (Some(&image(1).digest), 2));
    assert_eq!(tag.digest, image(2).digest);
    let kinds: Vec<_> = lab.events(3).await.into_iter().map(|(kind, _)| kind).collect();
    let hydrated = EventKind::ImageHydrated;
    assert_eq!(kinds, [hydrated, EventKind::TagMoved, hydrated]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_attempt_does_not_roll_a_tag_back_that_moved_meanwhile() {
    let lab = Lab::start().await;
    let old = ImageBuilder::new(1).layers(&[400_000]).build();
    lab.upstream.insert(&old, "app", "1");
    let layer = old.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap();
    // Not by its pace: the quick one waits with storing while the slow one's bytes arrive.
    let gate = Gate::default();
    lab.upstream.inject(&format!("*/blobs/{}", layer.digest), Fault::hold(1_000, &gate));
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    let meanwhile = async {
        until("the slow blob to be asked for", SOON, async || {
            (lab.upstream.gets(&format!("*/blobs/{}", layer.digest)) == 1).then_some(())
        })
        .await;
        lab.upstream.insert(&image(2), "app", "1");
        let quick = lab.handle(&request).await;
        gate.open();
        quick
    };
    let (slow, quick) = tokio::join!(lab.handle(&request), meanwhile);
    assert_eq!(quick, Verdict::Done);
    assert!(matches!(slow, Verdict::Later(_)), "{slow:?}");
    assert_eq!(lab.tag().await.digest, image(2).digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_a_customer_pushed_is_left_alone() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    let (digest, kind) = (Digest::of(b"pushed"), image(1).media_type);
    let pushed = TagRecord::new(Owner::Push, digest, kind, 6, Timestamp::now());
    let tag: Tag = "1".parse().unwrap();
    lab.worker.store.put_tag(&request.repository, &tag, pushed, None).await.unwrap();
    assert_eq!(lab.handle(&request).await, Verdict::Obsolete);
    assert_eq!(lab.tag().await.digest, Digest::of(b"pushed"));
    assert_eq!(lab.upstream.requests().len(), 0);
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
async fn a_job_whose_handler_panics_for_ever_is_a_dead_letter_and_does_not_come_back() {
    let lab = Lab::start().await;
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    let rejected = |subject: String| Rejected {
        subject,
        payload: codec::encode(&request).into(),
        reason: "the handler panicked: a bug".to_owned(),
        deliveries: 5,
        published: Timestamp::now(),
    };
    // Under another key it is no job of ours, and gives up nothing.
    lab.worker.reject(rejected("hydrate.lab.other".to_owned())).await.unwrap();
    assert_eq!(lab.worker.store.misses(&request.id()).await.unwrap().len(), 1);
    lab.worker.reject(rejected(subject::job(&request))).await.unwrap();
    let letter = lab.letter(&request).await;
    assert_eq!((letter.given_up, letter.attempts), (GivenUp::Job { request: request.clone() }, 5));
    assert!(letter.reason.contains("panicked"), "{}", letter.reason);
    lab.no_misses(&request).await;
}

impl Lab {
    /// Handles the job until its verdict, or until it is seen to run: then the handler is dropped,
    /// which leaves of the job what a killed process leaves.
    async fn handle_and_die(&self, request: &HydrationRequested) -> Option<Verdict> {
        let (states, began) = (self.worker.bus.job_states(), Timestamp::now());
        let runs = until("the job to run", SOON, async || {
            let state = states.get(&request.id()).await.ok()??;
            (state.phase == JobPhase::Running && state.updated_at >= began).then_some(())
        });
        tokio::select! {
            verdict = self.handle(request) => Some(verdict),
            () = runs => None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_every_process_is_a_dead_letter_in_the_end() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let (gate, request) = (Gate::default(), lab.missed("lab/app:1", Wanted::Whole).await);
    lab.upstream.inject("*/blobs/*", Fault::hold(0, &gate));
    let mut deaths = 0;
    let last = loop {
        match lab.handle_and_die(&request).await {
            None => deaths += 1,
            Some(Verdict::Later(_)) => {}
            Some(last) => break last,
        }
    };
    assert_eq!((last, deaths), (Verdict::Dead, 12));
    let letter = lab.letter(&request).await;
    assert!(letter.attempts == 12 && letter.reason.contains("ended"), "{letter:?}");
    lab.no_misses(&request).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_process_was_killed_twice_is_done_by_the_next() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let (gate, request) = (Gate::default(), lab.missed("lab/app:1", Wanted::Whole).await);
    lab.upstream.inject("*/blobs/*", Fault::hold(0, &gate));
    for _ in 0..2 {
        assert_eq!(lab.handle_and_die(&request).await, None);
        assert!(matches!(lab.handle(&request).await, Verdict::Later(_)));
    }
    gate.open();
    assert_eq!(lab.handle(&request).await, Verdict::Done);
}

/// What the bus was told of the job.
async fn told(lab: &Lab, request: &HydrationRequested) -> JobState {
    lab.worker.bus.job_states().get(&request.id()).await.unwrap().expect("it was told")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_freed_of_a_blob_that_stands_still_and_finds_it_later() {
    let mut lab = Lab::start().await;
    lab.worker.patience = Duration::from_millis(300);
    lab.upstream.insert(&image(1), "app", "1");
    let (gate, request) = (Gate::default(), lab.missed("lab/app:1", Wanted::Whole).await);
    lab.upstream.inject("*/blobs/*", Fault::hold(500, &gate));
    assert_eq!(lab.handle(&request).await, Verdict::Later(SOON));
    let waiting = told(&lab, &request).await;
    assert_eq!((waiting.class, waiting.attempts), (Some(FailureClass::UpstreamDown), 0));
    gate.open();
    lab.worker.patience = SOON;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    assert_eq!(lab.upstream.gets("*/blobs/*"), 3, "the flights went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_stands_still_is_not_called_the_upstream() {
    let (mut lab, s3) = (Lab::start().await, SeaweedFs::start().await);
    let link = Proxy::start(s3.endpoint().trim_start_matches("http://")).await;
    let vars = s3.env_through(&format!("http://{}", link.host()));
    let s3_settings = S3Settings::from_vars(vars);
    let url = format!("s3://{}/cache", s3.bucket()).parse().unwrap();
    let config = StoreConfig { url, s3: s3_settings, public_endpoint: None };
    let store = Store::open(&config).unwrap();
    let spool = lab._spool.path().join("s3");
    lab.worker.flights = Flights::new(store.clone(), spool, 1 << 30, None).unwrap();
    (lab.worker.store, lab.worker.patience) = (store, Duration::from_secs(1));
    lab.upstream.insert(&image(1), "app", "1");
    let (gate, request) = (Gate::default(), lab.missed("lab/app:1", Wanted::Whole).await);
    lab.upstream.inject("*/blobs/*", Fault::hold(500, &gate));
    let blocked = async {
        let asked = async || (lab.upstream.gets("*/blobs/*") == 3).then_some(());
        until("the blobs to be on their way", SOON, asked).await;
        link.flow(Flow::Hold);
        gate.open();
    };
    let (verdict, ()) = tokio::join!(lab.handle(&request), blocked);
    assert_eq!(verdict, Verdict::Later(SOON));
    let waiting = told(&lab, &request).await;
    assert_eq!((waiting.class, waiting.attempts), (Some(FailureClass::Storage), 0));
    link.flow(Flow::Pass);
    lab.worker.patience = SOON;
    until("the job", SOON, async || {
        matches!(lab.handle(&request).await, Verdict::Done).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_is_a_dead_letter_at_once() {
    let lab = Lab::start().await;
    let request = lab.missed("lab/nothing:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Dead);
    let letter = lab.letter(&request).await;
    assert_eq!((letter.class, letter.attempts), (Some(FailureClass::Unknown), 1));
    lab.no_misses(&request).await;
    assert_eq!(lab.events(1).await[0].0, EventKind::HydrationDeadLettered);
    let state = lab.worker.bus.job_states().get(&request.id()).await.unwrap().unwrap();
    assert_eq!(state.phase, JobPhase::DeadLettered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limiting_upstream_burns_no_attempt() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    lab.upstream.inject("*", Fault::status(429).header("retry-after", "40"));
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    for _ in 0..3 {
        let Verdict::Later(delay) = lab.handle(&request).await else { panic!("it waits") };
        assert!((30..=40).contains(&delay.as_secs()), "{delay:?}");
    }
    let state = lab.worker.bus.job_states().get(&request.id()).await.unwrap().unwrap();
    // After the first answer the upstream is not asked any more.
    assert_eq!((state.attempts, state.class), (0, Some(FailureClass::BreakerOpen)));
    assert_eq!(lab.upstream.requests().len(), 1);
    assert!(!lab.worker.store.misses(&request.id()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_upstream_is_given_up_after_three_attempts() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    lab.upstream.inject("*/blobs/*", Fault::wrong_bytes());
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    for _ in 0..2 {
        assert!(matches!(lab.handle(&request).await, Verdict::Later(_)));
    }
    assert_eq!(lab.handle(&request).await, Verdict::Dead);
    let letter = lab.letter(&request).await;
    assert_eq!((letter.class, letter.attempts), (Some(FailureClass::Integrity), 3));
    let kinds: Vec<_> = lab.events(3).await.into_iter().map(|(kind, _)| kind).collect();
    let failed = EventKind::HydrationFailed;
    assert_eq!(kinds, [failed, failed, EventKind::HydrationDeadLettered]);
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
async fn a_dead_letter_goes_when_its_job_succeeds() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let denied = lab.upstream.inject("*/blobs/*", Fault::status(403));
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Dead);
    lab.letter(&request).await;
    denied.remove();
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    let id = DeadLetterId::of_job(&request.id());
    assert_eq!(lab.worker.store.dead_letter(&id).await.unwrap(), None);
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
async fn an_image_that_was_unknown_is_asked_for_again_by_the_next_job() {
    let lab = Lab::start().await;
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Dead);
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
}

impl Lab {
    async fn steer(&self, change: impl Fn(&TagRecord) -> TagRecord) {
        let (name, tag) = ("lab/app".parse().unwrap(), "1".parse().unwrap());
        let (record, version) = self.worker.store.tag(&name, &tag).await.unwrap().unwrap();
        let record = change(&record);
        self.worker.store.put_tag(&name, &tag, record, Some(version)).await.unwrap();
    }

    async fn moves(&self) -> Vec<(TagAct, Digest)> {
        let (name, tag) = ("lab/app".parse().unwrap(), "1".parse().unwrap());
        let lines = self.worker.store.tag_history(&name, &tag).await.unwrap();
        lines.into_iter().map(|line| (line.act, line.digest)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_tag_is_hydrated_where_it_is_and_moves_when_it_is_freed() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    let frozen = Frozen { at: Timestamp::now(), by: Writer::Api, steering: Steering::default() };
    lab.steer(|record| record.freeze(frozen.clone()).unwrap()).await;

    lab.upstream.insert(&image(2), "app", "1");
    lab.upstream.forget_requests();
    for wanted in [Wanted::Whole, Wanted::Refresh] {
        let request = lab.missed("lab/app:1", wanted).await;
        assert_eq!(lab.handle(&request).await, Verdict::Done);
        lab.no_misses(&request).await;
    }
    assert_eq!(lab.tag().await.digest, image(1).digest);
    assert!(lab.upstream.requests().is_empty(), "the upstream has no say");

    lab.steer(|record| record.unfreeze(Timestamp::now(), Steering::default()).unwrap()).await;
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    let (old, new) = (image(1).digest, image(2).digest);
    let expected = [
        (TagAct::Seen, new),
        (TagAct::Unfrozen, old.clone()),
        (TagAct::Frozen, old.clone()),
        (TagAct::Seen, old),
    ];
    assert_eq!(lab.moves().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_tag_follows_only_when_it_is_refreshed() {
    let lab = Lab::with_rule("[[rule.tags]]\npattern='*'\nimmutable=true\n").await;
    for (seed, wanted, is) in
        [(1, Wanted::Whole, 1), (2, Wanted::Whole, 1), (2, Wanted::All, 1), (2, Wanted::Refresh, 2)]
    {
        lab.upstream.insert(&image(seed), "app", "1");
        let request = lab.missed("lab/app:1", wanted.clone()).await;
        assert_eq!(lab.handle(&request).await, Verdict::Done);
        assert_eq!(lab.tag().await.digest, image(is).digest, "{wanted:?}");
    }
    assert_eq!((lab.upstream.heads("*/manifests/1"), lab.upstream.gets("*/manifests/1")), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_during_an_import_holds() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    let new = ImageBuilder::new(2).layers(&[300_000]).build();
    lab.upstream.insert(&new, "app", "1");
    lab.upstream.inject("*/blobs/*", Fault::slow(150_000));
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    let meanwhile = async {
        until("a blob of the new one to be asked for", SOON, async || {
            new.all_blobs()
                .iter()
                .any(|b| lab.upstream.gets(&format!("*/{}", b.digest)) > 0)
                .then_some(())
        })
        .await;
        let frozen =
            Frozen { at: Timestamp::now(), by: Writer::Api, steering: Steering::default() };
        lab.steer(|record| record.freeze(frozen.clone()).unwrap()).await;
    };
    let (verdict, ()) = tokio::join!(lab.handle(&request), meanwhile);
    assert!(matches!(verdict, Verdict::Later(_)), "{verdict:?}");
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    assert_eq!(lab.tag().await.digest, image(1).digest);
}
