//! Through whom a request came: told to registries, and to nobody else; and what it means when one
//! says that it came back.

use crate::lab::{Lab, PASSWORD, Setup, USER, app, tag};
use hydrant_proto::{FailureClass, Via};
use hydrant_testkit::{Bearer, FakeUpstream, Fault};
use hydrant_upstream::{BreakerState, Options, Priority::Interactive};

const BEFORE: &str = "1.1 hydrant-01J0000000000000000000000A";

#[tokio::test]
async fn registries_are_told_through_whom_a_request_came_and_nobody_else_is() {
    let options = Options::default();
    let own = options.identity.current();
    let lab = Lab::with(Setup { options, credential: true, ..Setup::default() }).await;
    lab.fake.require_bearer(Bearer::new().user(USER, PASSWORD));
    let cdn = FakeUpstream::start().await;
    cdn.insert(&lab.image, "any", "1");
    lab.fake.redirect_blobs(Some(&cdn.url()));
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    let client = lab.client.forwarding(Via::read([BEFORE.as_bytes()]));
    client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();

    let via = |path: &str| lab.fake.requests_of("GET", path)[0].header("via").map(str::to_owned);
    assert_eq!(via("*/manifests/*"), Some(format!("1.1 hydrant-{own}")));
    assert_eq!(via("*/blobs/*"), Some(format!("{BEFORE}, 1.1 hydrant-{own}")));
    assert_eq!(via("/token*"), None);
    assert_eq!(cdn.requests().len(), 1);
    assert_eq!(cdn.requests()[0].header("via"), None);
}

#[tokio::test]
async fn a_request_that_came_back_is_no_failure_of_the_upstream_and_not_repeated() {
    let lab = Lab::start().await;
    lab.fake.inject("*/manifests/*", Fault::status(508));
    for n in 1..=20 {
        let error = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
        assert_eq!(error.class(), FailureClass::UpstreamLoop, "{error}");
        assert!(error.to_string().contains("name the registry itself"), "{error}");
        assert_eq!(lab.fake.gets("*/manifests/*"), n, "asked once each");
    }
    assert_eq!(lab.client.breaker().state(), BreakerState::Closed);
    lab.fake.heal();
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
}
