//! Hostile token realms and addresses: no credential goes there, nothing private is dialled.

use crate::lab::{Lab, PASSWORD, Setup, USER, app, credential, secrets, tag, upstream};
use hydrant_egress::{Resolve, Resolving};
use hydrant_proto::FailureClass;
use hydrant_testkit::{Bearer, FakeUpstream, TestCertificate};
use hydrant_upstream::{Options, Priority::Interactive, UpstreamError, Upstreams};
use serde_json::json;
use std::{net::SocketAddr, sync::Arc};

/// Leads every name to one address.
struct LeadsTo(SocketAddr);

impl Resolve for LeadsTo {
    fn resolve(&self, _: String) -> Resolving {
        let address = self.0;
        Box::pin(async move { Ok(vec![address]) })
    }
}

fn leading_to(fake: &FakeUpstream) -> Options {
    let resolver = Arc::new(LeadsTo(fake.host().parse().unwrap()));
    Options { resolver: Some(resolver), ..Options::default() }
}

#[tokio::test]
async fn a_realm_elsewhere_never_sees_the_credential() {
    let thief = FakeUpstream::start().await;
    let port = thief.host().rsplit_once(':').unwrap().1.to_owned();
    // Every spelling leads to the thief, if it were asked.
    let setup = || Setup { credential: true, options: leading_to(&thief), ..Setup::default() };
    for realm in [
        format!("http://localhost:{port}/token"),
        format!("http://thief.example:{port}/token"),
        format!("https://thief.example:{port}/token"),
        format!("http://127.0.0.2:{port}/token"),
        format!("http://[::ffff:127.0.0.1]:{port}/token"),
        format!("http://[::1]:{port}/token"),
        format!("http://lab:pw@127.0.0.1:{port}/token"),
        format!("http://127.0.0.1@localhost:{port}/token"),
        format!("http://127.0.0.1.thief.example:{port}/token"),
        format!("ftp://127.0.0.1:{port}/token"),
        "/token".to_owned(),
        "\\\\thief".to_owned(),
    ] {
        let lab = Lab::with(setup()).await;
        lab.fake.require_bearer(Bearer::new().user(USER, PASSWORD).realm(&realm));
        let error = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
        assert_eq!(error.class(), FailureClass::UpstreamAuth, "{realm}: {error}");
        let sent = lab.fake.requests();
        assert!(sent.iter().all(|request| request.header("authorization").is_none()), "{realm}");
    }
    assert!(thief.requests().is_empty());
}

#[tokio::test]
async fn a_listed_realm_is_asked() {
    let auth = FakeUpstream::start().await;
    auth.require_bearer(Bearer::new().user(USER, PASSWORD));
    let port = auth.host().rsplit_once(':').unwrap().1.to_owned();
    let lab = Lab::with(Setup {
        extra: json!({"token_hosts": [format!("localhost:{port}")]}),
        credential: true,
        ..Setup::default()
    })
    .await;
    let realm = format!("http://localhost:{port}/token");
    lab.fake.require_bearer(Bearer::new().realm(&realm));
    // Its tokens are not the upstream's, so the call fails in the end; but it was asked.
    let error = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::UpstreamAuth, "{error}");
    assert_eq!(auth.gets("/token"), 2);
    assert!(auth.requests()[0].header("authorization").is_some());
}

#[tokio::test]
async fn a_name_that_leads_inside_is_refused_at_connect() {
    let fake = FakeUpstream::start().await;
    let upstreams = Upstreams::with_options(secrets(), leading_to(&fake));
    let port = fake.host().rsplit_once(':').unwrap().1.to_owned();
    for endpoint in [
        format!("https://registry.example:{port}"),
        format!("http://registry.example:{port}"),
        format!("https://127.0.0.1:{port}"),
        format!("https://2130706433:{port}"),
        format!("https://[::ffff:7f00:1]:{port}"),
        format!("https://[64:ff9b::7f00:1]:{port}"),
    ] {
        let upstream = upstream(&endpoint, json!({"allow_private": false}));
        let client = upstreams.get(&upstream, Some(&credential())).unwrap();
        let error = client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Egress { .. }), "{endpoint}: {error}");
    }
    assert!(fake.requests().is_empty());
}

#[tokio::test]
async fn a_bad_certificate_fails_closed() {
    let fake = FakeUpstream::start_tls(&TestCertificate::generate()).await;
    fake.require_basic(USER, PASSWORD);
    let upstreams = Upstreams::new(secrets());
    let client = upstreams.get(&upstream(&fake.url(), json!({})), Some(&credential())).unwrap();
    let error = client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::UpstreamDown, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(fake.requests().is_empty());
}

#[tokio::test]
async fn one_client_per_upstream_and_credential() {
    let upstreams = Upstreams::new(secrets());
    let (lab, same) =
        (upstream("http://127.0.0.1:1", json!({})), upstream("http://127.0.0.1:1", json!({})));
    let other = upstream("http://127.0.0.1:2", json!({}));
    let first = upstreams.get(&lab, None).unwrap();
    assert!(Arc::ptr_eq(&first, &upstreams.get(&same, None).unwrap()));
    let changed = upstreams.get(&other, None).unwrap();
    assert!(!Arc::ptr_eq(&first, &changed));
    // A call under the old configuration does not undo the change.
    assert!(Arc::ptr_eq(&first, &upstreams.get(&lab, None).unwrap()));
    assert!(Arc::ptr_eq(&changed, &upstreams.get(&other, None).unwrap()));
    assert_eq!(upstreams.all().len(), 1);
}
