//! One trace from the client's pull to the webhook's delivery.

use crate::lab::{SOON, config_with_hook, role};
use hydrant_testkit::{
    FakeUpstream, ImageBuilder, NatsServer, OtlpReceiver, SeaweedFs, WebhookSink,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_and_its_hydration_and_its_webhook_are_one_trace() {
    let (upstream, s3, nats) =
        (FakeUpstream::start().await, SeaweedFs::start().await, NatsServer::start().await);
    let (sink, traces) = (WebhookSink::start().await, OtlpReceiver::start().await);
    upstream.insert(&ImageBuilder::new(1).layers(&[1000]).build(), "app", "1");
    let config = config_with_hook(&upstream.url(), &sink);
    let start = |name| {
        let options = role(name, &config).s3(&s3, "cache").nats(&nats.url());
        traces.env().into_iter().fold(options, |o, (name, value)| o.env(name, &value)).start()
    };
    let _notifier = start("notifier").await;
    let (_importer, frontend) = (start("importer").await, start("frontend").await);

    let trace = "0af7651916cd43dd8448eb211c80319c";
    let answer = reqwest::Client::new()
        .get(format!("{}/v2/lab/app/manifests/1", frontend.url()))
        .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"))
        .send()
        .await
        .expect("the frontend answers");
    assert_eq!(answer.status(), 200);
    let services = traces
        .wait_until("frontend, importer and notifier in one trace", SOON, |spans| {
            let mut of_trace: Vec<_> = spans
                .iter()
                .filter(|span| span.trace_id == trace)
                .map(|span| span.service.clone())
                .collect();
            of_trace.sort();
            of_trace.dedup();
            (of_trace.len() >= 3).then_some(of_trace)
        })
        .await;
    assert_eq!(services, ["hydrant-frontend", "hydrant-importer", "hydrant-notifier"]);
    let told = sink.wait_for(1, SOON).await;
    assert!(told[0].header("traceparent").contains(trace), "{:?}", told[0].headers);
}
