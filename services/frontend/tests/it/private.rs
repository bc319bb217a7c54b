//! That a digest is stored, or flying, gives nobody the right to read it.

use crate::lab::{Lab, SOON, assert_manifest, header, table};
use hydrant_proto::{Digest, RepositoryName};
use hydrant_testkit::{FakeUpstream, Fault, ImageBuilder, until};
use std::{io::Write, time::Duration};

/// Where `lab/*` leads: one upstream, anonymously or with the password in a file.
fn leading(upstream: &FakeUpstream, password: Option<&str>) -> hydrant_rules::Table {
    let (url, mut text) = (upstream.url(), String::new());
    let mut named = "";
    if let Some(file) = password {
        text = format!(
            "[[credential]]\nname='team'\nusername={{file='{file}'}}\npassword={{file='{file}'}}\n"
        );
        named = "credential='team'\n";
    }
    table(&format!(
        "{text}[[upstream]]\nname='lab'\nendpoint='{url}'\nallow_private=true\n{named}\
         [[rule]]\nname='lab'\ndownstream='lab/*'\nupstream='lab'\n"
    ))
}

/// All that tells one answer from another, but for what is of the request or of its moment.
async fn told(lab: &Lab, path: &str) -> (u16, reqwest::header::HeaderMap, bytes::Bytes) {
    let answer = lab.get(path).send().await.unwrap();
    let (status, mut headers) = (answer.status().as_u16(), answer.headers().clone());
    headers.remove("x-hydrant-request-id");
    headers.remove("date");
    (status, headers, answer.bytes().await.unwrap())
}

#[tokio::test]
async fn what_a_former_upstream_brought_is_absent_under_another() {
    let (lab, other) = (Lab::start().await, FakeUpstream::start().await);
    let mut secret_file = tempfile::NamedTempFile::new().unwrap();
    secret_file.write_all(b"team").unwrap();
    let password = secret_file.path().to_str().unwrap().to_owned();
    lab.upstream.require_basic("team", "team");
    lab.feed.replace(leading(&lab.upstream, Some(&password)));
    let secret = ImageBuilder::new(1).layer(300_000).build();
    lab.upstream.insert(&secret, "app", "1");
    lab.hydrate(&secret, "lab/app", "1").await;
    let (layer, random) = (&secret.blobs[1].digest, Digest::of(b"random"));
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &secret);
    lab.pull(&format!("lab/app/manifests/{}", secret.digest)).await;
    lab.pull(&format!("lab/app/blobs/{layer}")).await;
    lab.pull("lab/app/tags/list").await;

    // To another upstream, then to the same one without the credential.
    for elsewhere in [leading(&other, None), leading(&lab.upstream, None)] {
        let known_upstream = elsewhere.resources().upstream[0].endpoint.clone();
        lab.feed.replace(elsewhere);
        for (known, unknown) in [
            ("manifests/1".to_owned(), "manifests/random".to_owned()),
            (format!("manifests/{}", secret.digest), format!("manifests/{random}")),
            (format!("blobs/{layer}"), format!("blobs/{random}")),
        ] {
            let known = told(&lab, &format!("lab/app/{known}")).await;
            assert!((400..=502).contains(&known.0), "{known_upstream}: {known:?}");
            assert_eq!(known, told(&lab, &format!("lab/app/{unknown}")).await);
        }
        let known = told(&lab, "lab/app/tags/list").await;
        assert_eq!(known, told(&lab, "lab/none/tags/list").await);
        let referrers = |of: &Digest| format!("lab/app/referrers/{of}");
        let known = told(&lab, &referrers(&secret.digest)).await;
        assert_eq!(known, told(&lab, &referrers(&random)).await);
    }
    lab.feed.replace(leading(&other, None));
    assert_eq!(lab.refusal("lab/app/manifests/1").await, (404, "unknown".to_owned()));
    assert_eq!(lab.refusal("lab/app/tags/list").await.0, 404);

    // And back: it was theirs all the time.
    lab.feed.replace(leading(&lab.upstream, Some(&password)));
    lab.upstream.stop().await;
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &secret);
}

#[tokio::test]
async fn a_repository_that_was_taken_over_is_local_again_a_moment_later() {
    let (lab, other) = (Lab::start().await, FakeUpstream::start().await);
    let (old, new) = (ImageBuilder::new(1).layer(10).build(), ImageBuilder::new(2).build());
    lab.hydrate(&old, "lab/app", "1").await;
    lab.feed.replace(leading(&other, None));
    assert_eq!(lab.refusal("lab/app/manifests/1").await.0, 404);
    lab.hydrate(&new, "lab/app", "2").await;
    until("what was brought since is seen", Duration::from_secs(5), async || {
        let answer = lab.get("lab/app/manifests/2").send().await.unwrap();
        (answer.status() == 200).then_some(())
    })
    .await;
    assert_eq!(lab.refusal("lab/app/manifests/1").await.0, 404);
}

#[tokio::test]
async fn what_is_relayed_is_claimed_for_its_origin() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(10).build();
    lab.upstream.insert(&image, "app", "1");
    lab.upstream.insert(&image, "blob", "1");
    let claimed = async |name: &str| {
        let name: RepositoryName = name.parse().unwrap();
        let origin = lab.feed.current().route(&name).unwrap().origin;
        until("what was relayed is claimed", Duration::from_secs(5), async || {
            let claimed = lab.store.origin(&name).await.unwrap()?;
            assert_eq!(claimed, *origin);
            Some(())
        })
        .await;
    };
    lab.pull("lab/app/manifests/1").await;
    lab.misses(1).await;
    claimed("lab/app").await;
    lab.pull(&format!("lab/blob/blobs/{}", image.blobs[1].digest)).await;
    claimed("lab/blob").await;
}

#[tokio::test]
async fn a_flight_of_a_former_upstream_is_no_way_in_either() {
    let (lab, other) = (Lab::start().await, FakeUpstream::start().await);
    let secret = ImageBuilder::new(1).layer(1_000_000).build();
    lab.upstream.insert(&secret, "app", "1");
    lab.upstream.inject("*", Fault::slow(500_000).method("GET"));
    let path = format!("lab/app/blobs/{}", secret.blobs[1].digest);
    let mut flying = lab.get(&path).send().await.unwrap();
    flying.chunk().await.unwrap().unwrap();
    lab.feed.replace(leading(&other, None));
    assert_eq!(lab.refusal(&path).await, (404, "unknown".to_owned()));
}

#[tokio::test]
async fn private_content_is_absent_for_other_repositories() {
    let lab = Lab::start().await;
    let secret = ImageBuilder::new(1).layer(300_000).build();
    lab.upstream.insert(&ImageBuilder::new(2).build(), "public", "1");
    lab.hydrate(&secret, "lab/private", "1").await;
    let (layer, random) = (&secret.blobs[1].digest, Digest::of(b"random"));
    for kind in ["blobs", "manifests"] {
        let known = if kind == "blobs" { layer } else { &secret.digest };
        for method in [reqwest::Method::GET, reqwest::Method::HEAD] {
            let ask = async |digest: &Digest| {
                let url = format!("http://{}/v2/lab/public/{kind}/{digest}", lab.address);
                let answer = lab.client.request(method.clone(), url).send().await.unwrap();
                let mut headers = answer.headers().clone();
                headers.remove("x-hydrant-request-id");
                headers.remove("date");
                (answer.status().as_u16(), headers, answer.bytes().await.unwrap())
            };
            let known = ask(known).await;
            assert_eq!(known.0, 404);
            assert_eq!(known, ask(&random).await, "{method} {kind}");
        }
    }
    let (_, referrers) = lab.pull(&format!("lab/public/referrers/{}", secret.digest)).await;
    assert_eq!(referrers, lab.pull(&format!("lab/public/referrers/{random}")).await.1);
}

#[tokio::test]
async fn a_flight_is_no_way_into_a_private_blob() {
    let lab = Lab::start().await;
    let secret = ImageBuilder::new(1).layer(1_000_000).build();
    lab.upstream.insert(&secret, "private", "1");
    lab.upstream.insert(&ImageBuilder::new(2).build(), "public", "1");
    lab.upstream.inject("/v2/private/*", Fault::slow(500_000).method("GET"));
    let layer = &secret.blobs[1].digest;
    let mut flying = lab.get(&format!("lab/private/blobs/{layer}")).send().await.unwrap();
    flying.chunk().await.unwrap().unwrap();
    assert!(lab.flights.get(layer).is_some());
    let refused = lab.refusal(&format!("lab/public/blobs/{layer}")).await;
    assert_eq!(refused, (404, "unknown".to_owned()));
}

#[tokio::test]
async fn a_blob_stored_for_another_is_shared_when_the_upstream_has_it_here_too() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(300_000).build();
    lab.hydrate(&image, "lab/one", "1").await;
    lab.upstream.insert(&image, "two", "1");
    let layer = &image.blobs[1];
    let (headers, body) = lab.pull(&format!("lab/two/blobs/{}", layer.digest)).await;
    assert_eq!(body, layer.content.bytes());
    assert_eq!(header(&headers, "x-hydrant-cache"), "hit");
    assert_eq!((lab.upstream.gets("*/blobs/*"), lab.upstream.heads("*")), (0, 1));
    let name = "lab/two".parse().unwrap();
    until("it is linked", SOON, async || {
        lab.store.has_link(&name, &layer.digest).await.unwrap().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_upstream_in_trouble_is_not_asked_twice_for_what_is_stored_for_another() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(300_000).build();
    lab.hydrate(&image, "lab/one", "1").await;
    lab.upstream.insert(&image, "two", "1");
    let path = format!("lab/two/blobs/{}", image.blobs[1].digest);
    lab.upstream.inject("*/blobs/*", Fault::status(503).method("HEAD"));
    assert_eq!(lab.refusal(&path).await, (502, "upstream-down".to_owned()));
    assert_eq!(lab.upstream.gets("*/blobs/*"), 0);
}

#[tokio::test]
async fn an_upstream_that_refuses_head_tells_by_get() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(300_000).build();
    lab.hydrate(&image, "lab/one", "1").await;
    lab.upstream.insert(&image, "two", "1");
    lab.upstream.inject("*/blobs/*", Fault::status(403).method("HEAD"));
    let (_, body) = lab.pull(&format!("lab/two/blobs/{}", image.blobs[1].digest)).await;
    assert_eq!(body, image.blobs[1].content.bytes());
}
