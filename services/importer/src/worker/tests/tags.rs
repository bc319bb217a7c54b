//! Whom a tag follows.

use super::*;

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
async fn what_a_tag_moves_to_during_its_own_job_is_hydrated_by_it() {
    let lab = Lab::start().await;
    lab.upstream.insert(&image(1), "app", "1");
    let request = lab.missed("lab/app:1", Wanted::Whole).await;
    let missed = |seed| MissRecord {
        digest: Some(image(seed).digest),
        ..MissRecord::new(request.clone(), Wanted::Whole, Timestamp::now())
    };
    lab.worker.store.forget_misses(&[missed(1)]).await.unwrap();
    lab.worker.store.record_miss(&missed(1)).await.unwrap();
    let gate = Gate::default();
    lab.upstream.inject("*/blobs/*", Fault::hold(500, &gate));
    let meanwhile = async {
        let asked = async || (lab.upstream.gets("*/blobs/*") == 3).then_some(());
        until("the blobs to be on their way", SOON, asked).await;
        lab.upstream.insert(&image(2), "app", "1");
        // The queue refuses the job, since it is there already.
        lab.worker.store.record_miss(&missed(2)).await.unwrap();
        gate.open();
    };
    let (verdict, ()) = tokio::join!(lab.handle(&request), meanwhile);
    assert_eq!(verdict, Verdict::Done);
    assert_eq!(lab.tag().await.digest, image(2).digest);
    lab.no_misses(&request).await;
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
