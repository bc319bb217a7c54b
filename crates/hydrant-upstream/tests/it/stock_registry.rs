//! The same client against the registry everybody runs (CNCF distribution).

use crate::lab::{app, tag, upstream};
use futures::TryStreamExt;
use hydrant_proto::{Digest, FailureClass, Reference};
use hydrant_rules::Credential;
use hydrant_testkit::{ImageBuilder, Registry};
use hydrant_upstream::{Priority::Interactive, SecretSource, Upstreams};
use serde_json::json;

#[tokio::test]
async fn an_image_behind_a_password_is_read_whole() {
    let registry = Registry::start_with_password().await;
    let image = ImageBuilder::new(3).layers(&[100_000, 5_000]).build();
    registry.push(&image, "lab/app", "1").await;
    let (user, password) = registry.user().unwrap();
    let secrets =
        SecretSource::with_variables([("U".into(), user.into()), ("P".into(), password.into())]);
    let credential: Credential = serde_json::from_value(
        json!({"name": "lab-user", "username": {"env": "U"}, "password": {"env": "P"}}),
    )
    .unwrap();
    let (upstreams, lab) = (Upstreams::new(secrets), upstream(&registry.url(), json!({})));
    let client = upstreams.get(&lab, Some(&credential)).unwrap();

    let manifest = client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    assert_eq!(manifest.bytes, image.manifest);
    for blob in &image.blobs {
        let body = client.blob(&app(), &blob.digest, 10, Interactive).await.unwrap();
        let chunks: Vec<_> = body.stream.try_collect().await.unwrap();
        assert_eq!(chunks.concat(), blob.content.bytes()[10..]);
    }
    assert_eq!(client.tags(&app(), None, None, Interactive).await.unwrap().tags.len(), 1);
    assert_eq!(client.referrers(&app(), &image.digest, Interactive).await.unwrap(), None);
    let budget = std::time::Duration::from_secs(2);
    let missing = client.head_manifest(&app(), &tag("nope"), Interactive, budget).await;
    let missing = missing.unwrap_err();
    assert_eq!(missing.class(), FailureClass::Unknown, "{missing}");
    let digest = Reference::Digest(Digest::of(b"nobody has this"));
    let missing = client.manifest(&app(), &digest, Interactive).await.unwrap_err();
    assert_eq!(missing.class(), FailureClass::Unknown, "{missing}");

    let anonymous = upstreams.get(&lab, None).unwrap();
    let denied = anonymous.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    assert_eq!(denied.class(), FailureClass::Denied, "{denied}");
}
