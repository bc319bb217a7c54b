//! Clients that take the frontend for a mirror.

use crate::lab::{Lab, Setup, header};
use hydrant_testkit::{Fault, ImageBuilder};

fn hub() -> Setup {
    Lab::setup().more(
        "[[upstream]]\nname='hub'\nendpoint='{upstream}'\nallow_private=true\n\
         namespace='docker.io'\n[[rule]]\nname='hub'\ndownstream='docker/*'\nupstream='hub'\n",
    )
}

#[tokio::test]
async fn containerd_and_docker_find_docker_hub() {
    let lab = hub().start().await;
    let node = ImageBuilder::new(1).build();
    lab.upstream.insert(&node, "library/node", "22");
    for path in [
        "docker/library/node/manifests/22",
        "docker/node/manifests/22",
        "library/node/manifests/22",
        "node/manifests/22",
        "library/node/manifests/22?ns=docker.io",
    ] {
        let (headers, body) = lab.pull(path).await;
        assert_eq!(body, node.manifest, "{path}");
        assert_eq!(header(&headers, "x-hydrant-rule"), "hub");
    }
    assert_eq!(lab.upstream.gets("*/manifests/*"), 1, "one place, whatever it is called");
    let misses = lab.misses(1).await;
    assert_eq!(misses[0].request.repository.as_str(), "docker/library/node");
}

#[tokio::test]
async fn a_namespace_without_a_rule_is_404() {
    let lab = hub().start().await;
    for path in ["library/node/manifests/22?ns=quay.io", "lab/app/manifests/1?ns=ghcr.io"] {
        assert_eq!(lab.refusal(path).await, (404, "unknown".to_owned()), "{path}");
    }
    assert!(lab.upstream.requests().is_empty());
}

#[tokio::test]
async fn a_mirrors_client_is_never_told_429() {
    let lab = hub().start().await;
    lab.upstream.inject("*", Fault::status(429).header("retry-after", "9"));
    let limited = lab.get("library/node/manifests/22?ns=docker.io").send().await.unwrap();
    assert_eq!(limited.status(), 503);
    assert_eq!(header(limited.headers(), "retry-after"), "9");
}

#[tokio::test]
async fn an_open_breaker_is_503_with_a_time_and_leaves_local_content_alone() {
    let lab = hub().start().await;
    let image = ImageBuilder::new(1).build();
    lab.hydrate(&image, "lab/app", "1").await;
    lab.upstream.inject("*", Fault::status(500));
    let mut last = (0, String::new());
    for n in 0..40 {
        last = lab.refusal(&format!("docker/node/manifests/{n}")).await;
        if last.1 == "breaker-open" {
            break;
        }
    }
    assert_eq!(last, (503, "breaker-open".to_owned()));
    lab.pull("lab/app/manifests/1").await;
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_not_a_registry_that_has_nothing() {
    let more = "[[upstream]]\nname='gone'\nendpoint='https://registry.invalid'\n\
                [[rule]]\nname='gone'\ndownstream='gone/*'\nupstream='gone'\n";
    let lab = Lab::setup().more(more).start().await;
    let digest = hydrant_proto::Digest::of(b"x");
    for path in ["manifests/1".to_owned(), format!("blobs/{digest}"), "tags/list".to_owned()] {
        let (status, class) = lab.refusal(&format!("gone/app/{path}")).await;
        // 503 once the breaker is open.
        assert!(matches!(status, 502 | 503), "{path}: {status} {class}");
        assert!(matches!(&*class, "upstream-down" | "breaker-open"), "{path}: {class}");
    }
}
