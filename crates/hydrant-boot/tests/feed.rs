//! The resources in effect, followed over a real nats-server.

// Helpers of tests fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use clap::Parser;
use hydrant_boot::{Context, Readiness, ResourceFeed, Role, Settings, merge};
use hydrant_bus::{Bus, Revision};
use hydrant_rules::{Resources, Table};
use hydrant_testkit::{NatsServer, until};
use std::{convert::Infallible, path::Path, time::Duration};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    settings: Settings,
}

fn settings(data: &Path, config: Option<&Path>) -> Settings {
    let mut line = vec!["hydrant".to_owned(), format!("--data={}", data.display())];
    line.extend(config.map(|file| format!("--config={}", file.display())));
    Line::try_parse_from(line).unwrap().settings
}

/// A process that is up until it is dropped.
struct Process {
    context: Context,
    stop: CancellationToken,
}

impl Process {
    async fn start(role: Role, nats: &str, data: &Path, config: Option<&Path>) -> Self {
        let stop = CancellationToken::new();
        let settings = settings(data, config);
        let context = Context::start(settings, role, nats, Readiness::default(), &stop).await;
        Self { context: context.unwrap(), stop }
    }

    async fn end(self) {
        self.stop.cancel();
        self.context.close().await;
    }
}

fn rule(name: &str, fresh_for: &str) -> String {
    format!(
        "[[upstream]]\nname='{name}'\nendpoint='https://{name}.example'\n\
         [[rule]]\nname='{name}'\ndownstream='{name}/*'\nupstream='{name}'\nfresh_for='{fresh_for}'\n"
    )
}

fn document(text: &str) -> Resources {
    Resources::from_toml(text, Path::new("/")).unwrap()
}

fn rules(feed: &ResourceFeed) -> Vec<String> {
    feed.current().resources().rule.iter().map(|rule| rule.name.to_string()).collect()
}

async fn has_rules(feed: &ResourceFeed, expected: &[&str]) {
    until(&format!("rules {expected:?}"), SOON, async || (rules(feed) == expected).then_some(()))
        .await;
}

async fn connected(bus: &Bus) {
    let mut connected = bus.connected();
    tokio::time::timeout(SOON, connected.wait_for(|c| *c)).await.unwrap().unwrap();
}

/// Writes the shared document whatever it is, as a foreign hand would.
async fn scribble(bus: &Bus, text: &'static [u8]) -> Revision {
    let known = bus.resources().load().await.unwrap().map(|document| document.revision);
    bus.resources().save(text.into(), known).await.unwrap()
}

#[tokio::test]
async fn a_change_reaches_other_processes_within_ten_seconds() {
    let (nats, dir) = (NatsServer::start().await, tempfile::tempdir().unwrap());
    let writer = Process::start(Role::Control, &nats.url(), &dir.path().join("w"), None).await;
    let reader = Process::start(Role::Frontend, &nats.url(), &dir.path().join("r"), None).await;
    connected(&writer.context.bus).await;
    let wanted = document(&rule("lab", "5m"));
    let change = |current: &Resources| Ok::<_, Infallible>(merge::merge(current, &wanted, false).0);
    writer.context.editor.edit(change).await.unwrap();
    assert_eq!(rules(&writer.context.feed), ["lab"], "a writer reads what it wrote");
    has_rules(&reader.context.feed, &["lab"]).await;
    writer.end().await;
    reader.end().await;
}

#[tokio::test]
async fn an_invalid_document_has_no_effect() {
    let (nats, dir) = (NatsServer::start().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("hydrant.toml");
    std::fs::write(&file, rule("lab", "5m")).unwrap();
    let process = Process::start(Role::Up, &nats.url(), dir.path(), Some(&file)).await;
    let Process { context: Context { feed, bus, .. }, .. } = &process;
    connected(bus).await;
    until("the shared document", SOON, async || bus.resources().load().await.unwrap()).await;
    for invalid in [
        &b"not json"[..],
        br#"{"rule":[{"name":"x","downstream":"x/*","upstream":"nowhere"}]}"#,
        br#"{"unheard_of":[]}"#,
    ] {
        let revision = scribble(bus, invalid).await;
        assert!(feed.reached(revision, SOON).await);
        assert_eq!(rules(feed), ["lab"]);
    }
    let revision = scribble(bus, b"{}").await;
    assert!(feed.reached(revision, SOON).await);
    assert!(rules(feed).is_empty(), "and a valid one has");
    process.end().await;
}

#[tokio::test]
async fn a_start_without_nats_goes_by_the_last_known_document() {
    let (mut nats, dir) = (NatsServer::start().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("hydrant.toml");
    std::fs::write(&file, rule("lab", "5m")).unwrap();
    let writer =
        Process::start(Role::Control, &nats.url(), &dir.path().join("w"), Some(&file)).await;
    let reader_data = dir.path().join("r");
    let reader = Process::start(Role::Frontend, &nats.url(), &reader_data, None).await;
    has_rules(&reader.context.feed, &["lab"]).await;
    reader.end().await;
    nats.kill9();
    let reader = Process::start(Role::Frontend, &nats.url(), &reader_data, None).await;
    assert_eq!(rules(&reader.context.feed), ["lab"]);
    assert!(reader.context.readiness.is_ready(), "{}", reader.context.readiness.report());
    reader.end().await;
    writer.end().await;
}

#[tokio::test]
async fn a_file_changes_what_it_names_and_prunes_nothing() {
    let (nats, dir) = (NatsServer::start().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("hydrant.toml");
    std::fs::write(&file, rule("lab", "5m")).unwrap();
    let first = Process::start(Role::Control, &nats.url(), dir.path(), Some(&file)).await;
    connected(&first.context.bus).await;
    let more = document(&rule("hub", "5m"));
    let change = |current: &Resources| Ok::<_, Infallible>(merge::merge(current, &more, false).0);
    first.context.editor.edit(change).await.unwrap();
    first.end().await;
    std::fs::write(&file, rule("lab", "9m")).unwrap();
    let second = Process::start(Role::Control, &nats.url(), dir.path(), Some(&file)).await;
    let feed = &second.context.feed;
    until("the changed rule", SOON, async || {
        let table = feed.current();
        (table.rule("lab")?.fresh_for.0 == Duration::from_secs(540) && table.rule("hub").is_some())
            .then_some(())
    })
    .await;
    second.end().await;
}

#[tokio::test]
async fn a_wiped_bus_gets_the_configuration_back() {
    let (mut nats, dir) = (NatsServer::start().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("hydrant.toml");
    std::fs::write(&file, rule("lab", "5m")).unwrap();
    let keeper = Process::start(Role::Control, &nats.url(), dir.path(), Some(&file)).await;
    let bus = keeper.context.bus.clone();
    connected(&bus).await;
    until("the shared document", SOON, async || bus.resources().load().await.ok()?).await;
    nats.kill9();
    std::fs::remove_dir_all(nats.data()).unwrap();
    nats.restart().await;
    let restored =
        until("the restored document", 2 * SOON, async || bus.resources().load().await.ok()?).await;
    let resources: Resources = serde_json::from_slice(&restored.bytes).unwrap();
    assert_eq!(Table::compile(resources).unwrap().resources().rule.len(), 1);
    keeper.end().await;
}
