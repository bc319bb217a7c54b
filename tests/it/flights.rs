//! One upstream read for a whole cluster: three frontends, three importers, and a herd of clients.

use crate::{
    client::Puller,
    lab::{SOON, config, hydrated, no_upload_left, nothing_pending, role},
};
use futures::future::join_all;
use hydrant_bus::{Bus, BusConfig};
use hydrant_proto::{Digest, FlightRecord, codec, subject::StateKey};
use hydrant_testkit::{
    FakeUpstream, Fault, Gate, Hydrant, ImageBuilder, NatsServer, SeaweedFs, until,
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// Most bytes that a leader's death may cost.
const PART: u64 = 16 * MIB;

/// Three frontends, three importers and the control role on real NATS and S3.
struct Cluster {
    upstream: FakeUpstream,
    s3: SeaweedFs,
    nats: NatsServer,
    control: Hydrant,
    frontends: Vec<Hydrant>,
    importers: Vec<Hydrant>,
}

impl Cluster {
    async fn start() -> Self {
        let (upstream, s3, nats) =
            (FakeUpstream::start().await, SeaweedFs::start().await, NatsServer::start().await);
        let config = config(&upstream.url());
        let start = |name: &'static str| {
            let role = role(name, &config).s3(&s3, "cache").nats(&nats.url());
            role.env("HYDRANT_ACK_WAIT", "3s").start()
        };
        let (control, frontends, importers) = tokio::join!(
            start("control"),
            join_all((0..3).map(|_| start("frontend"))),
            join_all((0..3).map(|_| start("importer"))),
        );
        Self { upstream, s3, nats, control, frontends, importers }
    }

    /// Clients, dealt out to the frontends; each knows the others too.
    fn pullers(&self, count: usize) -> Vec<Puller> {
        let urls: Vec<_> = self.frontends.iter().map(Hydrant::url).collect();
        let around = |first: usize| urls.iter().cycle().skip(first).take(urls.len()).cloned();
        (0..count).map(|n| Puller::new(around(n % urls.len()))).collect()
    }

    /// Of `blobs`, how each was read: GETs and bytes.
    fn reads(&self) -> (usize, u64) {
        (self.upstream.gets("*/blobs/*"), self.upstream.bytes("*/blobs/*"))
    }
}

/// Ends the leader of the flight of `digest`, however it is to be ended, and tells its peer address.
async fn end_leader(cluster: &mut Cluster, digest: &Digest, end: impl Fn(&mut Hydrant)) -> String {
    let bus = Bus::connect(BusConfig::new(cluster.nats.url(), "hydrant-it".to_owned()));
    let bus = bus.await.expect("the url is valid");
    let key = StateKey::Flight(digest.clone());
    let entry = until("the flight's record", SOON, async || {
        bus.shared_state().get(&key).await.ok().flatten()
    })
    .await;
    let record: FlightRecord = codec::decode(&entry.value).unwrap();
    let mut all = cluster.frontends.iter_mut().chain(&mut cluster.importers);
    let leader = all.find(|process| process.peer() == record.peer);
    end(leader.expect("one of the processes leads"));
    record.peer
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_of_three_frontends_cost_one_read_of_everything() {
    let cluster = Cluster::start().await;
    let image = ImageBuilder::new(1).layers(&[512 * KIB; 8]).build();
    cluster.upstream.insert(&image, "app", "1");
    // So that the herd is there before the first has been through.
    cluster.upstream.inject("*/blobs/*", Fault::slow(MIB));
    let pullers = cluster.pullers(200);
    let pulls = pullers.iter().map(|puller| puller.pull("lab/app", "1"));
    for pulled in join_all(pulls).await {
        assert_eq!(pulled.expect("every client gets the image").breaks, 0);
    }
    hydrated(&cluster.control, "lab/app:1").await;
    nothing_pending(&cluster.nats.url()).await;
    for blob in image.all_blobs() {
        let gets = cluster.upstream.gets(&format!("*/blobs/{}", blob.digest));
        assert_eq!(gets, 1, "{}", blob.digest);
    }
    assert_eq!(cluster.upstream.gets("*/manifests/*"), 1);
    assert_eq!(cluster.reads().1, image.blob_bytes());
    no_upload_left(&cluster.s3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_cold_pulls_over_three_frontends_cost_one_read_and_little_memory() {
    let cluster = Cluster::start().await;
    let image = ImageBuilder::new(1).layers(&[512 * KIB; 2]).build();
    cluster.upstream.insert(&image, "app", "1");
    // All are there before the first byte has been through.
    let gate = Gate::default();
    cluster.upstream.inject("*/blobs/*", Fault::hold(1, &gate));
    let pullers = cluster.pullers(3);
    let crowd = pullers.iter().cycle().take(1_000);
    let pulls = join_all(crowd.map(|puller| puller.pull("lab/app", "1")));
    let all_there = async {
        until("the crowd", SOON, async || {
            let mut waiting = 0.0;
            for frontend in &cluster.frontends {
                waiting += frontend.metric("http_server_active_requests", &[]).await;
            }
            (waiting >= 1_000.0).then_some(())
        })
        .await;
        gate.open();
    };
    for pulled in tokio::join!(pulls, all_there).0 {
        assert_eq!(pulled.expect("every client gets the image").breaks, 0);
    }
    hydrated(&cluster.control, "lab/app:1").await;
    assert_eq!(cluster.upstream.gets("*/manifests/*"), 1);
    assert_eq!(cluster.reads(), (image.all_blobs().len(), image.blob_bytes()));
    for frontend in &cluster.frontends {
        let peak = frontend.peak_memory();
        assert!(peak < 192 * MIB, "{} MiB for a third of the crowd", peak / MIB);
    }
}

/// As a snapshotter asks that mounts a layer before it is here.
async fn end_of(url: &str, size: u64) -> (String, Vec<u8>) {
    let range = format!("bytes={}-{}", size - KIB, size - 1);
    let answer = reqwest::Client::new().get(url).header("range", range).send().await.unwrap();
    assert_eq!(answer.status(), 206);
    let told = answer.headers()["content-range"].to_str().unwrap();
    assert_eq!(told, format!("bytes {}-{}/{size}", size - KIB, size - 1));
    let served = answer.headers()["x-hydrant-cache"].to_str().unwrap().to_owned();
    (served, answer.bytes().await.expect("the range comes").to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_cold_layer_costs_fifty_clients_of_three_frontends_one_range() {
    let cluster = Cluster::start().await;
    let image = ImageBuilder::new(1).layers(&[40 * MIB]).build();
    cluster.upstream.insert(&image, "app", "1");
    let layer = image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap();
    let path = format!("*/blobs/{}", layer.digest);
    // Not a MiB of the layer comes before the range has.
    let gate = Gate::default();
    cluster.upstream.inject(&path, Fault::hold(MIB, &gate).times(1));
    let urls: Vec<_> = cluster
        .frontends
        .iter()
        .map(|frontend| format!("{}/v2/lab/app/blobs/{}", frontend.url(), layer.digest))
        .collect();
    let clients = urls.iter().cycle().take(50).map(|url| end_of(url, layer.size));
    let mut served = join_all(clients).await;
    let end: Vec<u8> = layer.content.chunks(layer.size - KIB..layer.size).flatten().collect();
    assert!(served.iter().all(|(_, bytes)| *bytes == end));
    served.retain(|(how, _)| how != "miss" && how != "joined");
    assert!(served.is_empty(), "{served:?}");
    assert_eq!(cluster.upstream.gets(&path), 2, "the layer, and its end");
    gate.open();
    let pulled = cluster.pullers(1)[0].pull("lab/app", "1").await;
    assert_eq!(pulled.expect("the whole comes").breaks, 0);
    assert_eq!(cluster.upstream.bytes(&path), layer.size + 64 * KIB);
}

mod large {
    use super::*;

    const LAYER: u64 = 512 * MIB;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_leader_killed_early_half_way_or_late_costs_less_than_a_part_and_no_client() {
        for (n, percent) in [10, 50, 90].into_iter().enumerate() {
            end_at(n as u64, percent, Hydrant::kill9).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_leader_that_freezes_costs_less_than_a_part_and_no_client() {
        end_at(9, 50, |leader| leader.freeze()).await;
    }

    async fn end_at(seed: u64, percent: u64, end: impl Fn(&mut Hydrant)) {
        let mut cluster = Cluster::start().await;
        let image = ImageBuilder::new(seed).layers(&[LAYER]).build();
        cluster.upstream.insert(&image, "app", "1");
        let layer = image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().clone();
        let layer_path = format!("*/blobs/{}", layer.digest);
        cluster.upstream.inject(&layer_path, Fault::slow(50 * MIB));
        let pulls = cluster
            .pullers(6)
            .into_iter()
            .map(|puller| tokio::spawn(async move { puller.pull("lab/app", "1").await }));
        let pulls: Vec<_> = pulls.collect();
        until("the layer to be under way", SOON, async || {
            (cluster.upstream.bytes(&layer_path) >= LAYER * percent / 100).then_some(())
        })
        .await;
        let ended = end_leader(&mut cluster, &layer.digest, &end).await;
        for (n, pulled) in join_all(pulls).await.into_iter().enumerate() {
            let pulled = pulled.expect("no client panics").expect("every client gets the image");
            let asked = &cluster.frontends[n % cluster.frontends.len()];
            assert!(pulled.breaks == 0 || asked.peer() == ended, "a client of another noticed");
        }
        hydrated(&cluster.control, "lab/app:1").await;
        let read = cluster.upstream.bytes(&layer_path);
        assert!(read < LAYER + PART, "{percent} %: {} bytes too many", read - LAYER);
        assert!(cluster.upstream.gets(&layer_path) > 1, "the leader was ended in the middle");
    }
}
