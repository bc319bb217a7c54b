//! Jobs that fail, wait or die.

use super::*;
use hydrant_flight::{Grant, Source};
use hydrant_upstream::Priority;

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
async fn what_somebody_else_is_refused_is_not_refused_to_a_job_that_joined() {
    let lab = Lab::start().await;
    let image = image(1);
    lab.upstream.insert(&image, "app", "1");
    let refused = Fault::status(403).and(Fault::delay(Duration::from_millis(500)));
    let refused = lab.upstream.inject("/v2/secret/blobs/*", refused);
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    let route = lab.worker.table().route(&"lab/secret".parse().unwrap()).unwrap();
    let client = lab.worker.upstreams.get(&route.upstream, None).unwrap();
    for blob in image.all_blobs() {
        let source = Source {
            client: client.clone(),
            upstream_repository: route.upstream_repository.clone(),
            digest: blob.digest.clone(),
            size: Some(blob.size),
            urgency: Priority::Interactive.into(),
        };
        let grant = Grant { repository: route.repository.clone(), origin: route.origin.clone() };
        lab.worker.flights.begin(source, &grant).unwrap().expect("nobody flies it");
    }
    assert_eq!(lab.handle(&request).await, Verdict::Done);
    assert!(refused.fired() > 0);
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
async fn an_image_that_was_unknown_is_asked_for_again_by_the_next_job() {
    let lab = Lab::start().await;
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Dead);
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    assert_eq!(lab.handle(&request).await, Verdict::Done);
}
