//! That a digest is stored, or flying, gives nobody the right to read it.

use crate::lab::{Lab, SOON, header};
use hydrant_proto::Digest;
use hydrant_testkit::{Fault, ImageBuilder, until};

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
