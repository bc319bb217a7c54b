//! The configuration `cargo xtask up` starts with is one hydrant accepts.

use hydrant_rules::{Resources, Table};
use hydrant_testkit::binaries::workspace_root;
use std::fs;

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
