//! The image: hadolint is content, and what the Dockerfile makes runs.
//!
//! Where buildah and podman are installed the whole Dockerfile is built, but for the compiler: no
//! registry can be asked for the images that it begins with.

use crate::{
    engine::Engine,
    tools::{deploy, run, tool},
};
use hydrant_testkit::{FakeUpstream, Image, PortLease, Skopeo, until};
use serde_json::{Value, json};
use std::{fs, time::Duration};

const SOON: Duration = Duration::from_secs(90);
const IMAGE: &str = "localhost/hydrant:test";
/// What an image may take, unpacked. The binary under test is that of a debug build, a third larger than
/// what is shipped; with its symbols it would be 180 MB by itself.
const LARGEST: u64 = 120_000_000;

#[tokio::test]
async fn hadolint_has_nothing_to_say() {
    let Some(hadolint) = tool("hadolint", "the Dockerfile") else { return };
    let told = run(&hadolint, [deploy("Dockerfile")]).await;
    assert!(told.status.success(), "{}", told.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_runs_without_privileges_on_a_root_that_is_read_only() {
    let Some(engine) = Engine::start().await else { return };
    let built = engine.build_hydrant(IMAGE).await;
    assert!(built.status.success(), "{}{}", built.text(), built.stderr);
    says_what_it_is(&engine).await;
    holds_no_symbols(&engine).await;

    let upstream = FakeUpstream::start().await;
    upstream.insert(&Image::multi_arch(9, &["linux/amd64"], &[50_000]), "app", "1");
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        config.path(),
        format!(
            "[[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\n\
             [[rule]]\nname='lab'\ndownstream='lab/*'\nupstream='lab'\n",
            upstream.url()
        ),
    )
    .unwrap();
    fs::set_permissions(config.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    let (listen, admin) = (PortLease::take(), PortLease::take());
    let address = |lease: &PortLease| format!("127.0.0.1:{}", lease.port());
    let volume = format!("--volume={}:/etc/hydrant.toml:ro", config.path().display());
    let listening = format!("--env=HYDRANT_LISTEN={}", address(&listen));
    let administered = format!("--env=HYDRANT_ADMIN={}", address(&admin));
    let started = engine
        .podman(&[
            "run",
            "--detach",
            "--name=hydrant",
            "--network=host",
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            &volume,
            &listening,
            &administered,
            "--env=HYDRANT_CONFIG=/etc/hydrant.toml",
            IMAGE,
        ])
        .await;
    assert!(started.status.success(), "{}", started.stderr);
    until("the image's own health check", SOON, async || {
        let healthy = engine.podman(&["healthcheck", "run", "hydrant"]).await;
        healthy.status.success().then_some(())
    })
    .await;
    let name = format!("{}/lab/app:1", address(&listen));
    until("a pull", SOON, async || Skopeo::pull(&name).platform("linux/amd64").run().await.ok())
        .await;
    let stopped = engine.podman(&["stop", "--time=60", "hydrant"]).await;
    assert!(stopped.status.success(), "{}", stopped.stderr);
    let code = engine.podman(&["inspect", "hydrant", "--format={{.State.ExitCode}}"]).await.text();
    assert_eq!(code.trim(), "0", "it ends by itself when told to");
}

async fn says_what_it_is(engine: &Engine) {
    let told = engine.podman(&["inspect", "--type=image", IMAGE]).await.success();
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let config = &told[0]["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/usr/local/bin/hydrant"]));
    assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(told[0]["Healthcheck"]["Test"], json!(["CMD", "/usr/local/bin/hydrant", "health"]));
}

async fn holds_no_symbols(engine: &Engine) {
    let size = engine.podman(&["inspect", "--type=image", IMAGE, "--format={{.Size}}"]).await;
    let size: u64 = size.success().text().trim().parse().unwrap();
    assert!(size < LARGEST, "the image has {size} bytes");
    let made = engine.podman(&["create", IMAGE]).await.success().text();
    let shipped = engine.path("shipped");
    let from = format!("{}:/usr/local/bin/hydrant", made.trim());
    engine.podman(&["cp", &from, &shipped.to_string_lossy()]).await.success();
    let shipped = fs::read(shipped).unwrap();
    let has = |section: &[u8]| shipped.windows(section.len()).any(|window| window == section);
    assert!(has(b".shstrtab\0"), "it has names of sections");
    assert!(!has(b"\0.symtab\0") && !has(b"\0.debug_line\0"), "it has symbols");
}
