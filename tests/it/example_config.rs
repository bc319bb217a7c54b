//! The configuration `cargo xtask up` starts with is one hydrant accepts.

use hydrant_rules::{Resources, Table};
use hydrant_testkit::binaries::workspace_root;
use std::{fs, path::Path};

#[test]
fn the_public_registries_are_valid_resources_and_route() {
    let directory = workspace_root().join("deploy/config");
    let text = fs::read_to_string(directory.join("public-registries.toml")).unwrap();
    let table = Table::compile(Resources::from_toml(&text, &directory).unwrap()).unwrap();
    for (downstream, upstream) in [
        ("docker/library/node", "registry-1.docker.io"),
        ("ghcr/home-assistant/home-assistant", "ghcr.io"),
        ("quay/prometheus/prometheus", "quay.io"),
        ("k8s/pause", "registry.k8s.io"),
        ("gcr/distroless/static", "gcr.io"),
        ("ecr/docker/library/redis", "public.ecr.aws"),
        ("mcr/dotnet/runtime", "mcr.microsoft.com"),
    ] {
        let route = table.route(&downstream.parse().unwrap()).unwrap();
        assert_eq!(route.upstream.endpoint.host_str(), Some(upstream));
        let (_, expected) = downstream.split_once('/').unwrap();
        assert_eq!(route.upstream_repository.as_str(), expected);
    }
}

#[test]
fn the_configuration_in_the_readme_is_valid() {
    let readme = fs::read_to_string(workspace_root().join("README.md")).expect("a README");
    let (_, rest) = readme.split_once("```toml\n").expect("a block of TOML");
    let (text, _) = rest.split_once("```").expect("the end of the block");
    let resources = Resources::from_toml(text, Path::new("/etc/hydrant")).expect("it parses");
    Table::compile(resources).expect("it is valid");
}
