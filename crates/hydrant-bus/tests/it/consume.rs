//! The consume loop: verdicts, redelivery, priority, the gate and the drain.

use crate::support::{
    LIMIT, Seen, Setup, connect, drained, job, queued, raw, ready, run, run_noting,
};
use hydrant_bus::{Bus, BusConfig, Published, Verdict};
use hydrant_proto::{HydrationRequested, Lane};
use hydrant_testkit::{Flow, NatsServer, Proxy, until};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

#[tokio::test]
async fn what_does_not_decode_becomes_a_dead_letter_and_its_key_is_free_again() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let jetstream = raw(&server).await;
    let poisoned = job("lab", "1");
    let subject = hydrant_proto::subject::job(&poisoned);
    for bad in [&b"{\"json\":1}"[..], b"", &[0xc1; 64], &vec![0x91; 200_000]] {
        jetstream.publish(subject.clone(), bad.to_vec().into()).await.unwrap().await.unwrap();
    }
    // Of a good shape, but under the key of another job.
    let misplaced = hydrant_proto::codec::encode(&job("hub", "3"));
    jetstream.publish(subject.clone(), misplaced.into()).await.unwrap().await.unwrap();
    bus.publish_job(&job("lab", "2")).await.unwrap();
    let seen = Seen::default();
    let running = run_noting(&bus, "lab", &seen);
    drained(&server).await;
    assert_eq!(seen.list(), ["2"], "neighbours are not affected");
    let rejected = running.rejected();
    assert_eq!(rejected.len(), 5);
    assert!(rejected.iter().all(|r| r.subject == subject && !r.reason.is_empty()));
    assert_eq!(bus.publish_job(&poisoned).await.unwrap(), Published::Queued);
    seen.wait("the job under the poisoned key", |list| list.len() == 2).await;
    running.stop().await;
}

#[tokio::test]
async fn a_dead_verdict_removes_the_job_and_frees_its_key() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let noted = seen.clone();
    let running = run(&bus, "lab", Setup::default(), move |job| {
        noted.note(&job.message.reference);
        async { Verdict::Dead }
    });
    for round in 1..=3 {
        assert_eq!(bus.publish_job(&job("lab", "1")).await.unwrap(), Published::Queued);
        seen.wait("the job", |list| list.len() == round).await;
        drained(&server).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn later_brings_the_job_back_after_the_delay_and_not_before() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let delay = Duration::from_millis(700);
    let running = run(&bus, "lab", Setup::default(), move |job| {
        noted.lock().unwrap().push((Instant::now(), job.deliveries));
        async move { if job.deliveries < 3 { Verdict::Later(delay) } else { Verdict::Done } }
    });
    bus.publish_job(&job("lab", "1")).await.unwrap();
    assert_eq!(bus.publish_job(&job("lab", "1")).await.unwrap(), Published::AlreadyQueued);
    drained(&server).await;
    let times = times.lock().unwrap().clone();
    assert_eq!(times.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(times.windows(2).all(|w| w[1].0 - w[0].0 >= delay), "{times:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_handler_that_outlasts_ack_wait_is_not_started_twice() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let (noted, finish) = (seen.clone(), Arc::new(Semaphore::new(0)));
    let gate = Arc::clone(&finish);
    let running = run(&bus, "lab", Setup::default(), move |job| {
        noted.note(&job.message.reference);
        let gate = Arc::clone(&gate);
        async move {
            let _permit = gate.acquire().await.unwrap();
            Verdict::Done
        }
    });
    bus.publish_job(&job("lab", "1")).await.unwrap();
    let began = Instant::now();
    until("three times ack_wait", LIMIT, async || {
        (began.elapsed() > 3 * crate::support::ACK_WAIT).then_some(())
    })
    .await;
    finish.add_permits(1);
    drained(&server).await;
    assert_eq!(seen.list(), ["1"]);
    running.stop().await;
}

#[tokio::test]
async fn a_worker_cut_off_loses_its_job_to_another() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let noted = seen.clone();
    let killed = run(&bus, "lab", Setup::default(), move |job| {
        noted.note(format!("first {}", job.message.reference));
        std::future::pending::<Verdict>()
    });
    bus.publish_job(&job("lab", "1")).await.unwrap();
    seen.wait("the first worker", |list| list.len() == 1).await;
    killed.kill().await;
    let running = run_noting(&bus, "lab", &seen);
    drained(&server).await;
    assert_eq!(seen.list(), ["first 1", "1"]);
    running.stop().await;
}

#[tokio::test]
async fn a_worker_cut_off_from_the_bus_only_does_no_harm_when_it_comes_back() {
    let server = NatsServer::start().await;
    let proxy = Proxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let url = format!("nats://{}", proxy.host());
    let far = BusConfig { url, ..crate::support::config(&server) };
    let (far, near) = (ready(Bus::connect(far).await.unwrap()).await, connect(&server).await);
    let (seen, finish) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let (noted, gate) = (seen.clone(), Arc::clone(&finish));
    let cut_off = run(&far, "lab", Setup::default(), move |job| {
        noted.note(format!("far {}", job.message.reference));
        let gate = Arc::clone(&gate);
        async move {
            let _permit = gate.acquire().await.unwrap();
            Verdict::Done
        }
    });
    near.publish_job(&job("lab", "1")).await.unwrap();
    seen.wait("the far worker", |list| list.len() == 1).await;
    proxy.flow(Flow::Hold);
    let running = run_noting(&near, "lab", &seen);
    drained(&server).await;
    assert_eq!(seen.list(), ["far 1", "1"]);
    // The same key again; the late acknowledgement of the first must not remove it unseen.
    assert_eq!(near.publish_job(&job("lab", "1")).await.unwrap(), Published::Queued);
    finish.add_permits(100);
    proxy.flow(Flow::Pass);
    seen.wait("the job queued again", |list| list.len() >= 3).await;
    drained(&server).await;
    cut_off.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_stop_lets_handlers_finish_and_gives_the_rest_back_at_once() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let noted = seen.clone();
    let setup = Setup { drain: Duration::from_millis(300), ..Setup::default() };
    let running = run(&bus, "lab", setup, move |job| {
        let tag = job.message.reference.to_string();
        noted.note(format!("begun {tag}"));
        let noted = noted.clone();
        async move {
            if tag == "slow" {
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
            noted.note(format!("done {tag}"));
            Verdict::Done
        }
    });
    bus.publish_job(&job("lab", "slow")).await.unwrap();
    seen.wait("the slow job", |list| list.len() == 1).await;
    running.stop().await;
    // Nothing is pulled any more.
    bus.publish_job(&job("lab", "quick")).await.unwrap();
    assert_eq!(queued(&raw(&server).await).await, 2);
    let after = Seen::default();
    let stopped_at = Instant::now();
    let next = run_noting(&bus, "lab", &after);
    after.wait("both jobs", |list| list.len() == 2).await;
    assert!(stopped_at.elapsed() < crate::support::ACK_WAIT, "given back, not timed out");
    next.stop().await;
}

#[tokio::test]
async fn two_loops_on_one_upstream_share_its_jobs() {
    let server = NatsServer::start().await;
    let (one, two) = (connect(&server).await, connect(&server).await);
    let seen = Seen::default();
    let loops: Vec<_> = [("one", &one), ("two", &two)]
        .into_iter()
        .map(|(name, bus)| {
            let seen = seen.clone();
            run(bus, "lab", Setup { slots: 2, ..Setup::default() }, move |job| {
                seen.note(format!("{name} {}", job.message.reference));
                async {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    Verdict::Done
                }
            })
        })
        .collect();
    for n in 0..60 {
        one.publish_job(&job("lab", &n.to_string())).await.unwrap();
    }
    drained(&server).await;
    let list = seen.list();
    assert_eq!(list.len(), 60, "each job once");
    for name in ["one", "two"] {
        assert!(list.iter().filter(|s| s.starts_with(name)).count() > 10, "{list:?}");
    }
    for running in loops {
        running.stop().await;
    }
}

#[tokio::test]
async fn never_more_handlers_than_slots_and_interactive_jobs_go_first() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    for n in 0..10 {
        let lane = Lane::Background;
        let background = HydrationRequested { lane, ..job("lab", &format!("b{n}")) };
        bus.publish_job(&background).await.unwrap();
    }
    for n in 0..10 {
        bus.publish_job(&job("lab", &format!("i{n}"))).await.unwrap();
    }
    let seen = Seen::default();
    let (noted, active, most) =
        (seen.clone(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peak = Arc::clone(&most);
    let running = run(&bus, "lab", Setup { slots: 3, ..Setup::default() }, move |job| {
        noted.note(&job.message.reference);
        let (active, most) = (Arc::clone(&active), Arc::clone(&most));
        async move {
            most.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            active.fetch_sub(1, Ordering::SeqCst);
            Verdict::Done
        }
    });
    drained(&server).await;
    assert_eq!(peak.load(Ordering::SeqCst), 3);
    let list = seen.list();
    let last_interactive = list.iter().rposition(|tag| tag.starts_with('i')).unwrap();
    let early = list[..last_interactive].iter().filter(|tag| tag.starts_with('b')).count();
    assert!(early <= 2, "background only in slots that interactive jobs left open: {list:?}");
    running.stop().await;
}

#[tokio::test]
async fn interactive_jobs_that_come_later_go_before_a_backlog() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    for n in 0..30 {
        let lane = Lane::Background;
        let background = HydrationRequested { lane, ..job("lab", &format!("b{n}")) };
        bus.publish_job(&background).await.unwrap();
    }
    let seen = Seen::default();
    let noted = seen.clone();
    let running = run(&bus, "lab", Setup { slots: 1, ..Setup::default() }, move |job| {
        noted.note(&job.message.reference);
        async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Verdict::Done
        }
    });
    for n in 0..5 {
        // While the slot is taken, and after the lane was found empty.
        seen.wait("the backlog to go on", |list| list.len() > 4 * n).await;
        bus.publish_job(&job("lab", &format!("i{n}"))).await.unwrap();
    }
    drained(&server).await;
    let list = seen.list();
    let last = list.iter().rposition(|tag| tag.starts_with('i')).unwrap();
    assert!(last < 29, "interactive jobs waited for the backlog: {list:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_paused_upstream_takes_nothing_while_another_goes_on() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let (lab, hub) = (Seen::default(), Seen::default());
    let noted = lab.clone();
    let paused = run(&bus, "lab", Setup { paused: true, ..Setup::default() }, move |job| {
        noted.note(&job.message.reference);
        async { Verdict::Done }
    });
    let open = run_noting(&bus, "hub", &hub);
    bus.publish_job(&job("lab", "1")).await.unwrap();
    for n in 0..20 {
        bus.publish_job(&job("hub", &n.to_string())).await.unwrap();
    }
    hub.wait("the other upstream's jobs", |list| list.len() == 20).await;
    assert_eq!(lab.list(), [""; 0]);
    paused.paused.send_replace(false);
    lab.wait("the job after the pause", |list| list.len() == 1).await;
    drained(&server).await;
    paused.stop().await;
    open.stop().await;
}

#[tokio::test]
async fn a_panicking_handler_harms_no_neighbour() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let noted = seen.clone();
    let running = run(&bus, "lab", Setup::default(), move |job| {
        let tag = job.message.reference.to_string();
        noted.note(&tag);
        async move {
            assert_ne!(tag, "bad", "a bug in the handler");
            Verdict::Done
        }
    });
    bus.publish_job(&job("lab", "bad")).await.unwrap();
    for tag in ["1", "2", "3"] {
        bus.publish_job(&job("lab", tag)).await.unwrap();
    }
    seen.wait("all jobs", |list| list.len() >= 4).await;
    let jetstream = raw(&server).await;
    until("only the bad job left", LIMIT, async || (queued(&jetstream).await == 1).then_some(()))
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_job_that_panics_at_its_fifth_delivery_is_refused_and_frees_its_key() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let running = run(&bus, "lab", Setup::default(), move |job| async move {
        // Panics rest for half a minute, so the deliveries before are other failures.
        assert!(job.deliveries < 5, "a bug in the handler");
        Verdict::Later(Duration::ZERO)
    });
    bus.publish_job(&job("lab", "bad")).await.unwrap();
    drained(&server).await;
    let rejected = running.rejected();
    assert_eq!((rejected.len(), rejected[0].deliveries), (1, 5));
    assert!(rejected[0].reason.contains("a bug in the handler"), "{}", rejected[0].reason);
    assert_eq!(bus.publish_job(&job("lab", "bad")).await.unwrap(), Published::Queued);
    running.stop().await;
}
