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

    let port = upstream.url().rsplit(':').next().expect("a port").to_owned();
    let from_upstream = format!("{}/v2/app/manifests/1", upstream.url());
    let server = [
        ("url.path", "/v2/lab/app/manifests/1"),
        ("url.scheme", "http"),
        ("http.request.method", "GET"),
        ("http.route", "/v2/{name}/manifests/{reference}"),
        ("http.response.status_code", "200"),
    ];
    let client = [
        ("url.full", from_upstream.as_str()),
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("server.address", "127.0.0.1"),
        ("server.port", port.as_str()),
    ];
    let webhook = [("http.request.method", "POST"), ("http.response.status_code", "200")];
    let messaging = |operation, destination| {
        [
            ("messaging.system", "nats"),
            ("messaging.operation.name", operation),
            ("messaging.destination.name", destination),
        ]
    };
    let s3 = [
        ("rpc.system", "aws-api"),
        ("rpc.service", "S3"),
        ("rpc.method", "PutObject"),
        ("aws.s3.bucket", "cache"),
        ("http.response.status_code", "200"),
    ];
    for (service, name, attributes) in [
        ("frontend", "GET /v2/{name}/manifests/{reference}", &server[..]),
        ("frontend", "GET", &client),
        ("notifier", "POST", &webhook),
        ("frontend", "publish HYDRANT_JOBS", &messaging("publish", "HYDRANT_JOBS")),
        ("importer", "process HYDRANT_JOBS", &messaging("process", "HYDRANT_JOBS")),
        ("importer", "publish HYDRANT_EVENTS", &messaging("publish", "HYDRANT_EVENTS")),
        ("notifier", "process HYDRANT_EVENTS", &messaging("process", "HYDRANT_EVENTS")),
        ("importer", "S3/PutObject", &s3),
    ] {
        let what = format!("{name} of the {service} with {attributes:?}");
        let span = traces
            .wait_until(&what, SOON, |spans| {
                let mut of_trace = spans.iter().filter(|span| span.trace_id == trace);
                let found = of_trace.find(|span| {
                    let has = |(key, value): &(&str, &str)| {
                        span.attributes.get(*key).is_some_and(|found| found == value)
                    };
                    span.service == format!("hydrant-{service}")
                        && span.name == name
                        && attributes.iter().all(has)
                });
                found.cloned()
            })
            .await;
        assert!(!span.attributes.contains_key("error.type"), "{span:?}");
        if name.starts_with("S3/") {
            assert!(span.attributes.contains_key("aws.s3.key"), "{span:?}");
        }
    }
}
