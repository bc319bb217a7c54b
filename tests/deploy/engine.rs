//! Podman and buildah with a storage of their own, and images of this machine under the names of
//! those the Dockerfile begins with.

use crate::tools::{deploy, tool};
use hydrant_testkit::{
    Finished, Process,
    binaries::{self, workspace_root},
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

/// Stands in for the compiler: a `cargo` that hands out the binary under test.
const CARGO: &str = "#!/bin/sh\n\
    [ -f Cargo.toml ] && [ -f services/hydrant/src/main.rs ] || exit 1\n\
    for target; do :; done\n\
    mkdir -p target/$target/release && cp /prebuilt/hydrant target/$target/release/hydrant\n";

#[derive(Debug)]
pub struct Engine {
    directory: TempDir,
    podman: PathBuf,
    buildah: PathBuf,
}

impl Engine {
    /// `None`, and why, where images cannot be built.
    pub async fn start() -> Option<Self> {
        const WHAT: &str = "the image";
        let (podman, buildah) = (tool("podman", WHAT)?, tool("buildah", WHAT)?);
        tool("runc", WHAT)?;
        let busybox = tool("busybox", WHAT)?;
        tool("strip", WHAT)?;
        let directory = tempfile::tempdir().unwrap();
        let engine = Self { directory, podman, buildah };
        fs::write(
            engine.path("containers.conf"),
            "[containers]\n\
             default_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
             [engine]\n\
             runtime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n",
        )
        .unwrap();
        engine.compiler(&busybox);
        engine.nats();
        engine.libraries();
        for (name, image) in [
            ("rust", "docker.io/library/rust:1.95-bookworm"),
            ("nats", "docker.io/library/nats:2.15.1-alpine"),
            ("libraries", "gcr.io/distroless/cc-debian12:nonroot"),
        ] {
            let root = engine.path(name);
            fs::write(root.join("Dockerfile"), "FROM scratch\nCOPY root/ /\n").unwrap();
            let built = engine.build(image, &root, &root.join("Dockerfile")).await;
            if !built.status.success() {
                eprintln!("SKIPPED: {WHAT}: this machine builds no images: {}", built.stderr);
                return None;
            }
        }
        Some(engine)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a file into the root of an image to be.
    fn put(&self, image: &str, from: &Path, to: &str) {
        let to = self.path(image).join("root").join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }

    /// Puts the shared libraries of a program into the root of an image to be.
    fn put_libraries(&self, image: &str, of: &Path) {
        let listed = std::process::Command::new("ldd").arg(of).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for word in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            self.put(image, Path::new(word), word);
        }
    }

    fn compiler(&self, busybox: &Path) {
        self.put("rust", busybox, "/bin/busybox");
        let bin = self.path("rust").join("root/bin");
        for applet in ["sh", "find", "truncate", "printf", "cp", "cat", "touch", "mkdir", "rm"] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        for (name, text) in
            [("cargo", CARGO), ("rustup", "#!/bin/sh\n"), ("apt-get", "#!/bin/sh\n")]
        {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(self.path("rust").join("root/tmp")).unwrap();
        self.put("rust", &binaries::hydrant(), "/prebuilt/hydrant");
        let strip = Path::new("/usr/bin/strip");
        self.put("rust", strip, &format!("/bin/{}-linux-gnu-strip", std::env::consts::ARCH));
        self.put_libraries("rust", strip);
    }

    fn nats(&self) {
        self.put("nats", &binaries::find("nats-server"), "/usr/local/bin/nats-server");
    }

    /// What distroless's `cc` has of the system: libraries, certificates, a user.
    fn libraries(&self) {
        self.put_libraries("libraries", &binaries::hydrant());
        let certificates = "/etc/ssl/certs/ca-certificates.crt";
        self.put("libraries", Path::new(certificates), certificates);
        let etc = self.path("libraries").join("root/etc");
        fs::write(etc.join("passwd"), "nonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n")
            .unwrap();
    }

    /// Builds the whole Dockerfile of the workspace.
    pub async fn build_hydrant(&self, image: &str) -> Finished {
        self.build(image, &workspace_root(), &deploy("Dockerfile")).await
    }

    async fn build(&self, image: &str, context: &Path, file: &Path) -> Finished {
        let mut buildah = self.process("buildah", &self.buildah);
        // The format that can hold a health check.
        buildah.args([
            "bud",
            "--isolation=chroot",
            "--format=docker",
            "--pull-never",
            "--tag",
            image,
        ]);
        buildah.arg("--file").arg(file).arg(context);
        buildah.run(LIMIT).await
    }

    /// Runs podman to its end.
    pub async fn podman(&self, args: &[&str]) -> Finished {
        let mut podman = self.process("podman", &self.podman);
        podman.args(args);
        podman.run(LIMIT).await
    }

    fn process(&self, name: &str, program: &Path) -> Process {
        let mut process = Process::new(name, program, self.directory.path());
        process.args(["--storage-driver=vfs", "--root"]).arg(self.path("storage"));
        process.arg("--runroot").arg(self.path("run"));
        process.env("CONTAINERS_CONF", self.path("containers.conf"));
        process.env("TMPDIR", self.directory.path());
        process
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let mut podman = std::process::Command::new(&self.podman);
        podman.args(["--storage-driver=vfs", "--root"]).arg(self.path("storage"));
        podman.arg("--runroot").arg(self.path("run"));
        podman.env("CONTAINERS_CONF", self.path("containers.conf"));
        // What it cannot remove goes with the directory.
        let _ = podman.args(["rm", "--all", "--force", "--time=0"]).output();
    }
}
