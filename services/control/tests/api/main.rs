//! The API over real HTTP, against a real nats-server and a store in a directory.

// Helpers of tests fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod control;

use control::{Control, SOON, field, silent_store, told};
use hydrant_proto::{Event, HydrationRequested, JobPhase, JobState, Lane};
use hydrant_store::{DeadLetter, DeadLetterId, GivenUp, Wanted};
use hydrant_testkit::until;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[tokio::test]
async fn resources_are_made_read_changed_and_deleted() {
    let control = Control::start().await.with_lab().await;
    let (status, rule) = control.get("/rules/lab").await;
    assert_eq!((status, &rule["fresh_for"]), (StatusCode::OK, &json!("5m")));
    let changed =
        json!({"name": "lab", "downstream": "lab/*", "upstream": "lab", "fresh_for": "9m"});
    assert_eq!(control.put("/rules/lab", changed).await.0, StatusCode::OK);
    let (_, list) = control.get("/rules").await;
    assert_eq!(list["items"][0]["fresh_for"], "9m");
    let (status, body) = control.send(Method::DELETE, "/upstreams/lab", Value::Null).await;
    assert_eq!((status, field(&body)), (StatusCode::CONFLICT, "rule.lab.upstream"));
    for path in ["/rules/lab", "/upstreams/lab"] {
        let (status, _) = control.send(Method::DELETE, path, Value::Null).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        assert_eq!(control.get(path).await.0, StatusCode::NOT_FOUND);
    }
    control.end().await;
}

#[tokio::test]
async fn a_wrong_request_is_refused_with_its_field_and_changes_nothing() {
    let control = Control::start().await.with_lab().await;
    let good = json!({"downstream": "x/*", "upstream": "lab"});
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    for (path, body, expected) in [
        ("/rules/x", with("freshfor", json!("5m")), "freshfor"),
        ("/rules/x", with("fresh_for", json!("-1s")), "fresh_for"),
        ("/rules/x", with("name", json!("y")), "name"),
        ("/rules/x", with("downstream", json!("x/*/y")), "rule.x.downstream"),
        ("/rules/x", with("upstream", json!("nowhere")), "rule.x.upstream"),
        ("/rules/X", good.clone(), "name"),
        ("/rules/%3E", good.clone(), "name"),
        ("/rules/x", json!([]), "body"),
        ("/upstreams/x", json!({"endpoint": "https://u:p@lab.example"}), "upstream.x.endpoint"),
        ("/upstreams/x", json!({"endpoint": "file:///etc"}), "upstream.x.endpoint"),
        ("/upstreams/x", json!({"endpoint": "https://10.0.0.1"}), "upstream.x.endpoint"),
        ("/upstreams/x", json!({}), "endpoint"),
        ("/credentials/x", json!({"username": {"env": "U"}, "password": "hunter2"}), "password"),
        (
            "/webhooks/x",
            json!({"url": "http://a.example", "secret": {"env": "S"}}),
            "webhook.x.url",
        ),
    ] {
        let (status, answer) = control.put(path, body).await;
        assert_eq!((status, field(&answer)), (StatusCode::BAD_REQUEST, expected), "{answer}");
        assert!(!answer["error"]["remedy"].as_str().unwrap_or_default().is_empty(), "{answer}");
    }
    let clash = json!({"downstream": "lab/*", "upstream": "lab"});
    assert_eq!(control.put("/rules/other", clash).await.0, StatusCode::CONFLICT);
    let (_, rules) = control.get("/rules").await;
    assert_eq!(rules["items"].as_array().unwrap().len(), 1);
    let large = control.request(Method::PUT, "/api/v1/rules/x").body(vec![b' '; 2 << 20]).send();
    // The server may cut the upload short.
    if let Ok(answer) = large.await {
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    for (path, expected) in
        [("/events?sinc=1h", "sinc"), ("/events?since=soon", "since"), ("/status", "image")]
    {
        let (status, answer) = control.get(path).await;
        assert_eq!((status, field(&answer)), (StatusCode::BAD_REQUEST, expected), "{answer}");
    }
    control.end().await;
}

#[tokio::test]
async fn a_large_request_is_refused_in_the_words_of_the_api_and_echoed_short() {
    let control = Control::start().await;
    let mut raw = TcpStream::connect(control.address).await.unwrap();
    let head = "PUT /api/v1/rules/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                content-length: 2097152\r\n\r\n";
    raw.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, raw.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("{\"error\":{\"field\":\"body\""), "{answer}");
    let long = "x".repeat(100_000);
    let asked = json!({"image": format!("{long}:1")});
    let (status, answer) = control.send(Method::POST, "/hydrations", asked).await;
    assert_eq!((status, field(&answer)), (StatusCode::BAD_REQUEST, "image"));
    assert!(answer.to_string().len() < 1_000, "{answer}");
    control.end().await;
}

#[tokio::test]
async fn an_old_revision_is_refused() {
    let control = Control::start().await.with_lab().await;
    let read = control.request(Method::GET, "/api/v1/rules/lab").send().await.unwrap();
    let tag = read.headers()[header::ETAG].clone();
    let body = json!({"downstream": "lab/*", "upstream": "lab", "fresh_for": "7m"});
    let put = |name: header::HeaderName, value: header::HeaderValue| {
        let request = control.request(Method::PUT, "/api/v1/rules/lab").header(name, value);
        request.json(&body).send()
    };
    let fresh = put(header::IF_MATCH, tag.clone()).await.unwrap();
    assert_eq!(fresh.status(), StatusCode::OK);
    let stale = put(header::IF_MATCH, tag.clone()).await.unwrap();
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);
    let create = put(header::IF_NONE_MATCH, "*".parse().unwrap()).await.unwrap();
    assert_eq!(create.status(), StatusCode::PRECONDITION_FAILED);
    let delete = control.request(Method::DELETE, "/api/v1/rules/lab").header(header::IF_MATCH, tag);
    assert_eq!(delete.send().await.unwrap().status(), StatusCode::PRECONDITION_FAILED);
    let same = control
        .request(Method::GET, "/api/v1/rules/lab")
        .header(header::IF_NONE_MATCH, fresh.headers()[header::ETAG].clone());
    assert_eq!(same.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    control.end().await;
}

#[tokio::test]
async fn every_route_needs_the_token_when_there_is_one() {
    let control = Control::start_with(Some("a-token-of-ours"), &[]).await;
    let document = control.request(Method::GET, "/api/v1/openapi.json");
    let document = document.bearer_auth("a-token-of-ours").send().await.unwrap();
    let document: Value = document.json().await.unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let method: Method = method.to_uppercase().parse().unwrap();
            let path = path.replace("{name}", "lab").replace("{id}", "x");
            let answer = control.request(method.clone(), &path).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            let wrong = control.request(method, &path).bearer_auth("other").send().await.unwrap();
            assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{path}");
        }
    }
    let nowhere = control.request(Method::GET, "/api/v1/nowhere").send().await.unwrap();
    assert_eq!(nowhere.status(), StatusCode::UNAUTHORIZED);
    for path in ["/healthz", "/readyz", "/metrics"] {
        let open = control.request(Method::GET, path).send().await.unwrap();
        assert_ne!(open.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    control.end().await;
}

#[tokio::test]
async fn without_a_token_the_api_is_for_loopback_alone() {
    let open = Control::start().await;
    assert_eq!(open.get("/rules").await.0, StatusCode::OK);
    let page = open.request(Method::GET, "/api/v1/rules").header("origin", "https://evil.example");
    assert_eq!(page.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    open.end().await;
    let exposed = Control::start_with(None, &["--admin=0.0.0.0:9464"]).await;
    let (status, body) = exposed.get("/rules").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body["error"]["remedy"].as_str().unwrap().contains("HYDRANT_ADMIN_TOKEN"));
    let healthy = exposed.request(Method::GET, "/healthz").send().await.unwrap();
    assert_eq!(healthy.status(), StatusCode::OK);
    exposed.end().await;
}

#[tokio::test]
async fn a_document_is_applied_in_one_change_or_not_at_all() {
    let control = Control::start().await.with_lab().await;
    let toml = "[[upstream]]\nname='hub'\nendpoint='https://hub.example'\n\
                [[rule]]\nname='hub'\ndownstream='hub/*'\nupstream='hub'\n";
    let apply = |query: &str, body: String| {
        let path = format!("/api/v1/apply{query}");
        let request =
            control.request(Method::POST, &path).header("content-type", "application/toml");
        async move { told(request.body(body).send().await.unwrap()).await }
    };
    let (status, body) = apply("?dry_run=true&prune=true", toml.to_owned()).await;
    assert_eq!(status, StatusCode::OK);
    let actions: Vec<_> =
        body["changes"].as_array().unwrap().iter().map(|c| c["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["created", "deleted", "created", "deleted"]);
    assert_eq!(control.get("/rules").await.1["items"].as_array().unwrap().len(), 1);
    let (status, body) = apply("", format!("{toml}\nunknown = 1")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body["error"]["message"].as_str().unwrap().contains("unknown"), "{body}");
    let (status, _) = apply("", toml.replace("upstream='hub'", "upstream='gone'")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(control.get("/upstreams/hub").await.0, StatusCode::NOT_FOUND);
    assert_eq!(apply("", toml.to_owned()).await.0, StatusCode::OK);
    assert_eq!(control.get("/rules").await.1["items"].as_array().unwrap().len(), 2);
    assert_eq!(apply("?prune=true", toml.to_owned()).await.0, StatusCode::OK);
    assert_eq!(control.get("/rules/lab").await.0, StatusCode::NOT_FOUND);
    control.end().await;
}

#[tokio::test]
async fn a_document_that_is_empty_or_names_one_twice_is_refused() {
    let control = Control::start().await.with_lab().await;
    let empty = json!({});
    for query in ["prune=true", "prune=true&dry_run=true"] {
        let (status, body) =
            control.send(Method::POST, &format!("/apply?{query}"), empty.clone()).await;
        assert_eq!((status, field(&body)), (StatusCode::BAD_REQUEST, "prune"), "{body}");
    }
    let twice = |path: &str| json!({"name": "x", "downstream": path, "upstream": "lab"});
    let document = json!({"rule": [twice("a/*"), twice("b/*")]});
    let (status, body) = control.send(Method::POST, "/apply", document).await;
    assert_eq!((status, field(&body)), (StatusCode::CONFLICT, "rule.x.name"), "{body}");
    assert_eq!(control.get("/rules").await.1["items"].as_array().unwrap().len(), 1);
    let meant = "/apply?prune=true&allow_empty=true";
    assert_eq!(control.send(Method::POST, meant, empty).await.0, StatusCode::OK);
    assert_eq!(control.get("/rules").await.1["items"], json!([]));
    control.end().await;
}

#[tokio::test]
async fn an_empty_reason_disables_no_webhook() {
    let control = Control::start().await;
    let webhook = json!({"url": "https://ci.example", "secret": {"env": "S"}, "disabled": "gone"});
    assert_eq!(control.put("/webhooks/ci", webhook.clone()).await.0, StatusCode::CREATED);
    let mut enabled = webhook;
    enabled["disabled"] = json!("");
    assert_eq!(control.put("/webhooks/ci", enabled).await.0, StatusCode::OK);
    assert_eq!(control.get("/webhooks/ci").await.1["disabled"], Value::Null);
    control.end().await;
}

fn job(control: &Control) -> HydrationRequested {
    let route = control.context.feed.current().route(&"lab/app".parse().unwrap()).unwrap();
    HydrationRequested {
        rule: "lab".into(),
        generation: route.generation.to_string(),
        upstream: "lab".into(),
        repository: "lab/app".parse().unwrap(),
        reference: "1".parse().unwrap(),
        lane: Lane::Background,
        platforms: Vec::new(),
        requested_at: jiff::Timestamp::now(),
    }
}

#[tokio::test]
async fn the_queue_is_counted_where_no_importer_runs_and_forgotten_with_its_upstream() {
    let control = Control::start().await.with_lab().await;
    let queued = HydrationRequested { upstream: "next".into(), ..job(&control) };
    control.context.bus.publish_job(&queued).await.unwrap();
    let told = async || {
        let text = control.request(Method::GET, "/metrics").send().await.unwrap();
        text.text().await.unwrap()
    };
    let tells = async |series: &str| told().await.contains(series).then_some(());
    let depth = "hydrant_hydration_queue_depth{lane=\"background\",upstream=\"next\"} 1\n";
    assert_eq!(tells(depth).await, None, "nobody takes such jobs");
    // The document changes, and the consumers are there.
    let upstream = json!({"endpoint": "https://next.example"});
    assert_eq!(control.put("/upstreams/next", upstream).await.0, StatusCode::CREATED);
    until("the depth of the new queue", SOON, async || tells(depth).await).await;
    let text = told().await;
    for lane in ["interactive", "background"] {
        let age =
            format!("hydrant_hydration_queue_age_seconds{{lane=\"{lane}\",upstream=\"next\"}}");
        assert!(text.contains(&age), "{text}");
    }
    for stream in [
        "HYDRANT_JOBS",
        "HYDRANT_EVENTS",
        "HYDRANT_DELIVERIES",
        "KV_hydrant_config",
        "KV_hydrant_jobs",
        "KV_hydrant_state",
    ] {
        let copies =
            format!("hydrant_bus_replicas_missing{{messaging_destination_name=\"{stream}\"}} 0");
        assert!(text.contains(&copies), "{stream}: {text}");
    }
    let (status, _) = control.send(Method::DELETE, "/upstreams/next", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    until("the queue being forgotten", SOON, async || {
        (!told().await.contains("upstream=\"next\"")).then_some(())
    })
    .await;
    control.end().await;
}

#[tokio::test]
async fn a_hydration_is_recorded_queued_and_followed() {
    let control = Control::start().await.with_lab().await;
    let asked = json!({"image": "lab/app:1", "platforms": ["linux/amd64"]});
    let (status, accepted) = control.send(Method::POST, "/hydrations", asked).await;
    assert_eq!((status, &accepted["outcome"]), (StatusCode::ACCEPTED, &json!("queued")));
    let request = job(&control);
    assert_eq!(accepted["id"], request.id().to_string());
    assert_eq!(control.context.store.misses(&request.id()).await.unwrap().len(), 1);
    let path = format!("/hydrations/{}", request.id());
    let (_, queued) = control.get(&path).await;
    assert_eq!(queued["phase"], "queued");
    let after = format!("{path}?wait=30s&after={}", queued["revision"]);
    let (news, ()) = tokio::join!(control.get(&after), async {
        let mut state = JobState::queued(request.clone(), jiff::Timestamp::now());
        state.phase = JobPhase::Done;
        control.context.bus.job_states().put(&state).await.unwrap();
    });
    assert_eq!((&news.1["phase"], &news.1["final"]), (&json!("done"), &json!(true)));
    let (_, status) = control.get("/status?image=lab/app:1").await;
    assert_eq!((&status["hydrated"], &status["misses"]), (&json!(false), &json!(1)));
    for (body, code, name) in [
        (json!({"image": "other/app:1"}), StatusCode::NOT_FOUND, "image"),
        (json!({"image": "lab/App:1"}), StatusCode::BAD_REQUEST, "image"),
        (json!({"image": "lab/app:1", "platform": "x"}), StatusCode::BAD_REQUEST, "platform"),
        (json!({"image": "lab/app:1", "platforms": ["x"]}), StatusCode::BAD_REQUEST, "platforms"),
    ] {
        let (status, answer) = control.send(Method::POST, "/hydrations", body).await;
        assert_eq!((status, field(&answer)), (code, name), "{answer}");
    }
    control.end().await;
}

#[tokio::test]
async fn what_is_wanted_of_an_index_follows_the_request_then_the_rule() {
    let control = Control::start().await.with_lab().await;
    let fixed = json!({"downstream": "arm/*", "upstream": "lab", "platforms": ["linux/arm64"]});
    assert_eq!(control.put("/rules/arm", fixed).await.0, StatusCode::CREATED);
    let (amd, arm) = ("linux/amd64", "linux/arm64");
    let platform = |text: &str| Wanted::Platform(text.parse().unwrap());
    for (asked, expected) in [
        (json!({"image": "lab/app:1"}), vec![Wanted::All]),
        (json!({"image": "arm/app:1"}), vec![Wanted::Whole]),
        (json!({"image": "lab/app:2", "platforms": [amd]}), vec![platform(amd)]),
        (
            json!({"image": "lab/app:3", "platforms": [amd, arm]}),
            vec![platform(amd), platform(arm)],
        ),
    ] {
        let (status, accepted) = control.send(Method::POST, "/hydrations", asked).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{accepted}");
        let id = accepted["id"].as_str().unwrap().parse().unwrap();
        let misses = control.context.store.misses(&id).await.unwrap();
        let mut found: Vec<_> = misses.into_iter().map(|miss| miss.wanted).collect();
        found.sort_by_key(|wanted| format!("{wanted:?}"));
        assert_eq!(found, expected);
    }
    control.end().await;
}

#[tokio::test]
async fn a_hydration_asked_for_without_nats_is_recorded() {
    let mut control = Control::start().await.with_lab().await;
    control.nats.kill9();
    let mut connected = control.context.bus.connected();
    connected.wait_for(|connected| !connected).await.unwrap();
    let asked = json!({"image": "lab/app:1"});
    let (status, accepted) = control.send(Method::POST, "/hydrations", asked).await;
    assert_eq!((status, &accepted["outcome"]), (StatusCode::ACCEPTED, &json!("recorded")));
    assert_eq!(control.context.store.misses(&job(&control).id()).await.unwrap().len(), 1);
    let (status, _) =
        control.put("/rules/lab", json!({"downstream": "l/*", "upstream": "lab"})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let read = control.request(Method::GET, "/api/v1/rules/lab").send().await.unwrap();
    assert_eq!(read.status(), StatusCode::OK);
    assert!(read.headers().contains_key("x-hydrant-last-known-good"));
    control.end().await;
}

#[tokio::test]
async fn storage_that_does_not_answer_is_told_soon() {
    let (_silent, store) = silent_store();
    let control = Control::start_over(Some(store), None, &[]).await.with_lab().await;
    let ask = async |method: Method, path: &str| {
        let request = control.request(method, path).json(&json!({"image": "lab/app:1"}));
        let answer = tokio::time::timeout(SOON, request.send()).await.expect(path).unwrap();
        assert!(answer.headers().contains_key(header::RETRY_AFTER), "{path}");
        let (status, body) = told(answer).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {body}");
        assert_eq!(body["error"]["class"], "storage", "{path}: {body}");
    };
    tokio::join!(
        ask(Method::GET, "/api/v1/status?image=lab/app:1"),
        ask(Method::POST, "/api/v1/hydrations"),
        ask(Method::GET, "/api/v1/dead-letters"),
        ask(Method::DELETE, "/api/v1/dead-letters/job-00000000000000000000000000000000"),
    );
    control.context.store.settled().await;
    control.end().await;
}

#[tokio::test]
async fn dead_letters_are_tried_again_or_dropped() {
    let control = Control::start().await.with_lab().await;
    let request = job(&control);
    let letter = DeadLetter {
        id: DeadLetterId::of_job(&request.id()),
        given_up: GivenUp::Job { request: request.clone() },
        class: Some(hydrant_proto::FailureClass::Unknown),
        reason: "no such tag".into(),
        attempts: 3,
        at: jiff::Timestamp::now(),
    };
    let path = format!("/dead-letters/{}", letter.id);
    control.context.store.put_dead_letter(&letter).await.unwrap();
    let (_, list) = control.get("/dead-letters").await;
    assert_eq!((&list["total"], &list["items"][0]["class"]), (&json!(1), &json!("unknown")));
    let (status, told) = control.send(Method::POST, &format!("{path}/retry"), Value::Null).await;
    assert_eq!((status, &told["outcome"]), (StatusCode::ACCEPTED, &json!("queued")));
    let misses = control.context.store.misses(&request.id()).await.unwrap();
    assert_eq!(misses.iter().map(|miss| &miss.wanted).collect::<Vec<_>>(), [&Wanted::All]);
    assert_eq!(control.get(&path).await.0, StatusCode::NOT_FOUND);
    control.context.store.put_dead_letter(&letter).await.unwrap();
    let dropped = control.send(Method::DELETE, &path, Value::Null).await.0;
    assert_eq!(dropped, StatusCode::NO_CONTENT);
    for missing in ["job-..%2F..%2Fx", "x"] {
        let path = format!("/dead-letters/{missing}");
        assert_eq!(control.get(&path).await.0, StatusCode::NOT_FOUND, "{missing}");
    }
    control.end().await;
}

#[tokio::test]
async fn many_dead_letters_are_paged_and_dropped_or_tried_again_together() {
    let control = Control::start().await.with_lab().await;
    let unknown = hydrant_proto::FailureClass::Unknown;
    for n in 0..230 {
        let mut request = job(&control);
        request.reference = format!("v{n}").parse().unwrap();
        if n >= 210 {
            request.rule = "former".to_owned();
        }
        let letter = DeadLetter {
            id: DeadLetterId::of_job(&request.id()),
            given_up: GivenUp::Job { request },
            class: (n % 2 == 0).then_some(unknown),
            reason: "no such tag".into(),
            attempts: 3,
            at: jiff::Timestamp::now(),
        };
        control.context.store.put_dead_letter(&letter).await.unwrap();
    }
    let (mut ids, mut query) = (std::collections::BTreeSet::new(), "?limit=99".to_owned());
    for expected in [99, 99, 32] {
        let (_, page) = control.get(&format!("/dead-letters{query}")).await;
        let items = page["items"].as_array().unwrap();
        assert_eq!((items.len(), &page["total"]), (expected, &json!(230)));
        ids.extend(items.iter().map(|letter| letter["id"].to_string()));
        query = format!("?limit=99&after={}", page["next"].as_str().unwrap_or_default());
    }
    assert_eq!((ids.len(), query.as_str()), (230, "?limit=99&after="));
    for (body, field) in [
        (json!({"all": true}), "confirm"),
        (json!({"confirm": true}), "all"),
        (json!({"all": true, "rule": "x", "confirm": true}), "all"),
        (json!({"all": true, "confirm": true, "after": "x"}), "after"),
    ] {
        let (status, told) = control.send(Method::POST, "/dead-letters/drop", body).await;
        assert_eq!((status, &told["error"]["field"]), (StatusCode::BAD_REQUEST, &json!(field)));
    }
    let left = async || control.get("/dead-letters?limit=0").await.1["total"].as_u64().unwrap();
    assert_eq!(left().await, 230);
    let through = async |path: &str, mut body: Value| {
        let mut done = 0;
        loop {
            let (status, told) = control.send(Method::POST, path, body.clone()).await;
            assert_eq!((status, &told["failed"]), (StatusCode::OK, &json!([])));
            done += told["done"].as_u64().unwrap();
            match &told["next"] {
                Value::Null => return done,
                next => body["after"] = next.clone(),
            }
        }
    };
    let body = json!({"rule": "former", "class": "unknown", "confirm": true});
    assert_eq!((through("/dead-letters/drop", body).await, left().await), (10, 220));
    let body = json!({"class": "unknown", "confirm": true});
    assert_eq!((through("/dead-letters/retry", body).await, left().await), (105, 115));
    let body = json!({"all": true, "confirm": true});
    assert_eq!((through("/dead-letters/drop", body).await, left().await), (115, 0));
    control.end().await;
}

#[tokio::test]
async fn events_stream_as_lines_and_end_with_the_process() {
    let control = Control::start().await.with_lab().await;
    let secret = json!({"url": "https://ci.example", "secret": {"env": "S"}});
    assert_eq!(control.put("/webhooks/ci", secret).await.0, StatusCode::CREATED);
    let follow = control.request(Method::GET, "/api/v1/events?follow=true&since=1h");
    let mut follow = follow.send().await.unwrap();
    let (status, told) = control.send(Method::POST, "/webhooks/ci/test", Value::Null).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let line = tokio::time::timeout(SOON, follow.chunk()).await.unwrap().unwrap().unwrap();
    let event: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&event["id"], &event["type"]), (&told["event"], &json!("webhook.test")));
    let past = control.request(Method::GET, "/api/v1/events?since=1h").send().await.unwrap();
    assert_eq!(past.text().await.unwrap().lines().count(), 1);
    let event = Event::test("ci", jiff::Timestamp::now());
    control.context.bus.publish_event(&event).await.unwrap();
    tokio::time::timeout(SOON, follow.chunk()).await.unwrap().unwrap().unwrap();
    let (status, log) = control.get("/webhooks/ci/deliveries").await;
    assert_eq!((status, &log["items"]), (StatusCode::OK, &json!([])));
    assert_eq!(control.get("/webhooks/other/deliveries").await.0, StatusCode::NOT_FOUND);
    control.end().await;
    assert_eq!(follow.chunk().await.unwrap_or(None), None);
}

#[tokio::test]
async fn an_upstream_tells_how_it_is_doing() {
    let control = Control::start().await.with_lab().await;
    let (status, told) = control.get("/upstreams/lab/status").await;
    assert_eq!((status, &told["breaker"]), (StatusCode::OK, &Value::Null));
    assert!(told["queue"].is_array());
    assert_eq!(control.get("/upstreams/x/status").await.0, StatusCode::NOT_FOUND);
    control.end().await;
}

#[tokio::test]
async fn tags_are_steered_only_where_that_makes_sense() {
    let control = Control::start().await.with_lab().await;
    let (name, tag) = ("lab/app".parse().unwrap(), "pushed".parse().unwrap());
    let kind = hydrant_proto::MediaType::OciManifest;
    let digest = hydrant_proto::Digest::of(b"pushed");
    let (owner, at) = (hydrant_store::Owner::Push, jiff::Timestamp::now());
    let pushed = hydrant_store::TagRecord::new(owner, digest.clone(), kind, 6, at);
    control.context.store.put_tag(&name, &tag, pushed, None).await.unwrap();
    for act in ["refresh", "freeze", "unfreeze", "rollback"] {
        let path = format!("/tags/{act}");
        let send = |body| control.send(Method::POST, &path, body);
        for (body, status, named) in [
            (json!({}), 400, "image"),
            (json!({"image": "lab/app:1", "force": true}), 400, "force"),
            (json!({"image": format!("lab/app@{digest}")}), 400, "image"),
            (json!({"image": "lab/app:.x"}), 400, "image"),
            (json!({"image": "other/app:1"}), 404, "image"),
            (json!({"image": "lab/app:pushed"}), 409, "image"),
        ] {
            let (found, told) = send(body.clone()).await;
            assert_eq!((found.as_u16(), field(&told)), (status, named), "{act} {body}: {told}");
        }
        if act != "refresh" {
            assert_eq!(send(json!({"image": "lab/app:none"})).await.0, 404, "{act}");
            for reason in ["x".repeat(201), "a\nb".to_owned()] {
                let (found, told) = send(json!({"image": "lab/app:1", "reason": reason})).await;
                assert_eq!((found.as_u16(), field(&told)), (400, "reason"), "{act}");
            }
        }
    }
    let (status, history) = control.get("/tags/history?image=lab/app:pushed").await;
    assert_eq!((status.as_u16(), &history["items"][0]["act"]), (200, &json!("pushed")));
    let (status, told) = control.get("/tags/history").await;
    assert_eq!((status.as_u16(), field(&told)), (400, "image"));
    let (_, none) = control.get("/tags/history?image=lab/app:none").await;
    assert_eq!(none["items"], json!([]));
    control.end().await;
}
