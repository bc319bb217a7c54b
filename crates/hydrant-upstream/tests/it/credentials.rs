//! Tokens and passwords: asked for once, renewed once, shown never.

use crate::lab::{Lab, PASSWORD, Setup, USER, app, tag};
use futures::future::join_all;
use hydrant_proto::FailureClass;
use hydrant_testkit::{Bearer, Fault};
use hydrant_upstream::Priority::Interactive;
use std::time::Duration;

fn bearer() -> Bearer {
    Bearer::new().user(USER, PASSWORD)
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_and_reused() {
    let lab = Lab::start().await;
    lab.fake.require_bearer(Bearer::new());
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();
    assert_eq!(lab.fake.gets("/token"), 1);
    assert_eq!(
        lab.fake.requests_of("GET", "/token")[0].query,
        "service=testkit&scope=repository%3Alab%2Fapp%3Apull"
    );
    // The way in was learned from /v2/, so that content is asked for once.
    assert_eq!((lab.fake.gets("/v2/"), lab.fake.gets("*/manifests/*")), (1, 1));
    assert_eq!(lab.fake.gets("*/blobs/*"), 1);
}

#[tokio::test]
async fn a_head_finds_the_way_in_by_itself() {
    let lab = Lab::start().await;
    lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap();
    lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();
    assert_eq!((lab.fake.gets("/v2/"), lab.fake.heads("*/blobs/*")), (0, 1));
    let lab = Lab::start().await;
    lab.fake.require_bearer(Bearer::new());
    lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap();
    lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();
    assert_eq!((lab.fake.gets("/v2/"), lab.fake.gets("/token")), (0, 1));
    assert_eq!((lab.fake.heads("*/blobs/*"), lab.fake.gets("*/blobs/*")), (2, 1));
}

#[tokio::test]
async fn a_hundred_calls_cost_one_token() {
    let lab = Lab::with_credential().await;
    lab.fake.require_bearer(bearer());
    lab.fake.inject("/token", Fault::delay(Duration::from_millis(100)));
    let (repository, layer) = (app(), lab.layer());
    let all = join_all((0..100).map(|_| lab.client.head_blob(&repository, layer, Interactive)));
    assert!(all.await.into_iter().all(|size| size == Ok(Some(300_000))));
    assert_eq!((lab.fake.gets("/v2/"), lab.fake.gets("/token")), (1, 1));
}

#[tokio::test]
async fn a_failing_token_service_is_not_asked_once_per_waiter() {
    let lab = Lab::with_credential().await;
    lab.fake.require_bearer(bearer());
    lab.fake.inject("/token", Fault::status(503).and(Fault::delay(Duration::from_millis(100))));
    let (repository, layer) = (app(), lab.layer());
    let all = join_all((0..50).map(|_| lab.client.head_blob(&repository, layer, Interactive)));
    let classes: Vec<_> = all.await.into_iter().map(|size| size.unwrap_err().class()).collect();
    assert!(classes.contains(&FailureClass::UpstreamDown), "{classes:?}");
    assert!(lab.fake.gets("/token") <= 3, "{}", lab.fake.gets("/token"));
}

#[tokio::test]
async fn tokens_are_renewed_when_they_expire_or_are_revoked() {
    let lab = Lab::with_credential().await;
    lab.fake.require_bearer(bearer().lifetime(Duration::ZERO));
    assert!(lab.client.head_blob(&app(), lab.layer(), Interactive).await.is_err());
    lab.fake.require_bearer(bearer());
    assert!(lab.client.head_blob(&app(), lab.layer(), Interactive).await.is_ok());
    lab.fake.revoke_tokens();
    lab.fake.forget_requests();
    assert!(lab.client.head_blob(&app(), lab.layer(), Interactive).await.is_ok());
    assert_eq!((lab.fake.gets("/token"), lab.fake.heads("*/blobs/*")), (1, 2));
}

#[tokio::test]
async fn a_401_for_ever_costs_exactly_one_renewal() {
    let lab = Lab::with_credential().await;
    lab.fake.require_bearer(bearer());
    let challenge = format!(r#"Bearer realm="{}/token",service="testkit""#, lab.fake.url());
    lab.fake.inject("*/blobs/*", Fault::status(401).header("www-authenticate", &challenge));
    let error = lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::UpstreamAuth, "{error}");
    assert_eq!((lab.fake.gets("/token"), lab.fake.heads("*/blobs/*")), (2, 2));

    // The credential is fine but does not reach this far: that is no reason to alarm anybody.
    let narrow = format!(r#"{challenge},error="insufficient_scope""#);
    lab.fake.heal();
    lab.fake.inject("*/blobs/*", Fault::status(401).header("www-authenticate", &narrow));
    let error = lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Denied, "{error}");
}

#[tokio::test]
async fn a_401_without_a_credential_is_a_denial() {
    let lab = Lab::start().await;
    lab.fake.require_bearer(bearer());
    let error = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Denied, "{error}");
    let lab = Lab::start().await;
    lab.fake.require_basic(USER, PASSWORD);
    let error = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Denied, "{error}");
}

#[tokio::test]
async fn an_upstream_may_change_how_it_wants_to_be_asked() {
    let lab = Lab::with_credential().await;
    for _ in 0..2 {
        lab.fake.require_bearer(bearer());
        lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap();
        lab.fake.require_basic(USER, PASSWORD);
        lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap();
    }
    // Without its token service the old way in fails once, and is then learned anew.
    lab.fake.require_bearer(bearer());
    lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap();
    let other = "lab/other".parse().unwrap();
    lab.fake.require_basic(USER, PASSWORD);
    lab.client.head_blob(&other, lab.layer(), Interactive).await.unwrap_err();
    assert_eq!(lab.client.head_blob(&other, lab.layer(), Interactive).await, Ok(None));
}

#[tokio::test]
async fn basic_works_and_a_wrong_password_is_sent_once() {
    let lab = Lab::with_credential().await;
    lab.fake.require_basic(USER, PASSWORD);
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    lab.fake.require_basic(USER, "another");
    lab.fake.forget_requests();
    let error = lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::UpstreamAuth, "{error}");
    assert_eq!(lab.fake.requests().len(), 1);
}

#[tokio::test]
async fn a_token_service_that_misbehaves_is_an_auth_failure() {
    for fault in [
        Fault::redirect("/elsewhere"),
        Fault::html(),
        Fault::status(200).body("{}"),
        Fault::status(200).body(r#"{"token":"a\r\nb: c"}"#),
        Fault::status(400),
    ] {
        let lab = Lab::with_credential().await;
        lab.fake.require_bearer(bearer());
        lab.fake.inject("/token", fault);
        let error = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
        assert_eq!(error.class(), FailureClass::UpstreamAuth, "{error}");
        assert_eq!(lab.fake.count("*", "/elsewhere"), 0);
    }
}

#[tokio::test]
async fn an_endless_token_is_given_up() {
    let lab = Lab::with_credential().await;
    lab.fake.require_bearer(bearer());
    lab.fake.inject("/token", Fault::endless());
    assert!(lab.client.manifest(&app(), &tag("1"), Interactive).await.is_err());
}

#[tokio::test]
async fn secrets_show_in_no_error_and_no_debug() {
    let lab = Lab::with(Setup { credential: true, ..Setup::default() }).await;
    lab.fake.require_bearer(bearer());
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    lab.fake.inject("*", Fault::status(403).body(format!("you sent {PASSWORD} and token-1")));
    let error = lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap_err();
    lab.fake.require_basic(USER, PASSWORD);
    let _ = lab.client.manifest(&app(), &tag("1"), Interactive).await;
    let shown = format!("{error} {error:?} {:#?} {:#?}", lab.client, lab.upstreams);
    for secret in [PASSWORD, "token-1", "aHVudGVy", "bGFiLXVzZXI6"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}
