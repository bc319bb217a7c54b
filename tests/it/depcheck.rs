//! The shape of the workspace: arrows point from services to crates to proto, and each outside
//! library has one home (ARCHITECTURE.md, "Rooms").

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use hydrant_testkit::binaries::workspace_root;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Outside libraries and the only packages that may name them, tests included.
const HOMES: [(&str, &[&str]); 15] = [
    ("async-nats", &["hydrant-bus"]),
    ("object_store", &["hydrant-store"]),
    ("oci-client", &["hydrant-upstream"]),
    ("hyper-rustls", &["hydrant-egress"]),
    ("rustls-platform-verifier", &["hydrant-egress"]),
    ("rmp-serde", &["hydrant-proto"]),
    ("backoff", &["hydrant-boot"]),
    ("hmac", &["hydrant-notifier"]),
    ("opentelemetry", &["hydrant-telemetry"]),
    ("opentelemetry_sdk", &["hydrant-telemetry"]),
    ("opentelemetry-otlp", &["hydrant-telemetry"]),
    ("opentelemetry-prometheus", &["hydrant-telemetry"]),
    ("opentelemetry-proto", &["hydrant-testkit"]),
    ("hdrhistogram", &["hydrant-loadtest"]),
    ("rustix", &["hydrant-boot", "hydrant-store"]),
];

/// Words in the source that only one file may hold.
const WORDS: [(&str, &str); 2] =
    [("rmp_serde", "proto/src/codec.rs"), ("backoff::", "crates/hydrant-boot/src/retry.rs")];

/// Packages below `crates` that nothing customers run may name.
const OUTSIDE: [&str; 2] = ["hydrant-testkit", "hydrant-demo"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] =
    ["util", "utils", "common", "helper", "helpers", "manager", "managers"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Proto,
    Crate,
    Service,
    /// The one binary, where the services meet.
    Binary,
    /// Tests, chores, and what shows hydrant to people or measures it.
    Outside,
}

struct Workspace {
    root: PathBuf,
    metadata: Metadata,
}

impl Workspace {
    fn read() -> Self {
        let root = workspace_root();
        let manifest = root.join("Cargo.toml");
        let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
        Self { root, metadata }
    }

    fn packages(&self) -> impl Iterator<Item = &Package> {
        self.metadata.packages.iter()
    }

    fn room(&self, package: &Package) -> Room {
        let path = package.manifest_path.strip_prefix(&self.root).unwrap();
        match path.components().next().unwrap().as_str() {
            "proto" => Room::Proto,
            "crates" if OUTSIDE.contains(&package.name.as_str()) => Room::Outside,
            "crates" => Room::Crate,
            "services" if package.name.as_str() == "hydrant" => Room::Binary,
            "services" => Room::Service,
            _ => Room::Outside,
        }
    }

    /// The packages of this workspace that `package` names, tests included.
    fn ours(&self, package: &Package) -> Vec<&Package> {
        let named = |name: &str| self.packages().find(|other| other.name.as_str() == name);
        package.dependencies.iter().filter_map(|dependency| named(&dependency.name)).collect()
    }
}

#[test]
fn arrows_point_from_services_to_crates_to_proto() {
    let workspace = Workspace::read();
    for package in workspace.packages() {
        for other in workspace.ours(package) {
            let (from, to) = (workspace.room(package), workspace.room(other));
            let allowed = match (from, to) {
                (Room::Binary | Room::Outside, _) => true,
                (Room::Proto, _) => false,
                (Room::Crate | Room::Service, Room::Proto | Room::Crate) => true,
                (Room::Crate | Room::Service, Room::Service | Room::Binary) => false,
                (Room::Crate | Room::Service, Room::Outside) => is_for_tests(package, other),
            };
            assert!(allowed, "{} ({from:?}) names {} ({to:?})", package.name, other.name);
        }
    }
}

fn is_for_tests(package: &Package, other: &Package) -> bool {
    let mut named = package.dependencies.iter().filter(|d| d.name == other.name.as_str());
    named.all(|dependency| dependency.kind == DependencyKind::Development)
}

#[test]
fn bus_store_and_upstream_do_not_know_each_other() {
    const STRANGERS: [&str; 3] = ["hydrant-bus", "hydrant-store", "hydrant-upstream"];
    let workspace = Workspace::read();
    for package in workspace.packages().filter(|p| STRANGERS.contains(&p.name.as_str())) {
        for other in workspace.ours(package) {
            assert!(
                !STRANGERS.contains(&other.name.as_str()),
                "{} names {}",
                package.name,
                other.name
            );
        }
    }
}

#[test]
fn each_outside_library_has_one_home() {
    let workspace = Workspace::read();
    for package in workspace.packages() {
        for dependency in &package.dependencies {
            let home = HOMES.iter().find(|(library, _)| *library == dependency.name);
            let at_home = home.is_none_or(|(_, homes)| homes.contains(&package.name.as_str()));
            assert!(at_home, "{} names {}", package.name, dependency.name);
        }
    }
}

#[test]
fn some_words_occur_in_one_file_only() {
    let root = workspace_root();
    for file in sources(&root).into_iter().filter(|file| !file.ends_with("tests/it/depcheck.rs")) {
        let text = fs::read_to_string(&file).unwrap();
        for (word, home) in WORDS {
            assert!(
                !text.contains(word) || file == root.join(home),
                "{word} in {}",
                file.display()
            );
        }
    }
}

#[test]
fn every_name_says_what_is_inside() {
    let workspace = Workspace::read();
    let packages = workspace.packages().map(|package| package.name.to_string());
    let files = sources(&workspace.root);
    let files = files.iter().map(|file| file.strip_prefix(&workspace.root).unwrap());
    let names = packages.chain(files.map(|file| file.with_extension("").display().to_string()));
    for name in names {
        let mut words = name.split(['-', '/', '_']);
        assert!(!words.any(|word| EMPTY_NAMES.contains(&word)), "{name} says nothing");
    }
}

/// Every Rust file of the workspace.
fn sources(root: &Path) -> Vec<PathBuf> {
    let rooms = ["proto", "crates", "services", "tests", "xtask", "loadtest"];
    let mut waiting: Vec<_> = rooms.iter().map(|room| root.join(room)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
