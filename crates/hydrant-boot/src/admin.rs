//! The admin port: `/metrics`, `/healthz`, `/readyz`, and whatever routes the role adds.

use crate::{
    readiness::Readiness,
    serve::{Limits, serve},
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, RawQuery, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::timeout::TimeoutLayer;

/// Largest request body, in bytes: a whole resource document fits.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// Longest time until the headers of an answer. Long polls wait for less; streams may go on.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

const LIMITS: Limits = Limits {
    connections: 512,
    header_read: Duration::from_secs(30),
    standstill: Duration::from_secs(600),
    header_bytes: 16 * 1024,
};

/// The media type of the Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves the admin port until `shutdown`, with `routes` beside its own.
pub async fn serve_admin(
    listener: TcpListener,
    readiness: Readiness,
    routes: Router,
    shutdown: CancellationToken,
) {
    serve(listener, router(readiness, routes), LIMITS, shutdown).await;
}

/// The routes of the admin port, limits included.
pub fn router(readiness: Readiness, routes: Router) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(readiness)
        .merge(routes)
        // Where a body is read, so that whoever reads it answers in its own words.
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, ANSWER_TIMEOUT))
}

async fn metrics() -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], hydrant_telemetry::metrics_text())
}

/// Alive: the process answers. What it depends on does not matter here, so that an orchestrator
/// does not restart it for the failure of others.
async fn healthz() -> &'static str {
    "ok\n"
}

/// 200 or 503; every check by name with `?verbose`, and always when something fails.
async fn readyz(
    State(readiness): State<Readiness>,
    RawQuery(query): RawQuery,
) -> impl IntoResponse {
    let verbose = query.is_some_and(|query| query.split('&').any(|key| key.starts_with("verbose")));
    match readiness.is_ready() {
        true if !verbose => (StatusCode::OK, "ok\n".to_owned()),
        true => (StatusCode::OK, format!("{}ready\n", readiness.report())),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("{}not ready\n", readiness.report())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::Importance;
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    async fn ask(readiness: &Readiness, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let routes = Router::new().route("/more", get(async || "more"));
        let answer = router(readiness.clone(), routes).oneshot(request).await.unwrap();
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_follows_its_checks_and_health_does_not() {
        let readiness = Readiness::default();
        let bus = readiness.check("bus", Importance::Required);
        bus.fail("nats is not connected");
        let (status, text) = ask(&readiness, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("[-] bus: nats is not connected"), "{text}");
        assert_eq!(ask(&readiness, "/healthz").await, (StatusCode::OK, "ok\n".into()));
        bus.ok();
        assert_eq!(ask(&readiness, "/readyz").await, (StatusCode::OK, "ok\n".into()));
        assert!(ask(&readiness, "/readyz?verbose").await.1.contains("[+] bus: ok"));
    }

    #[tokio::test]
    async fn metrics_and_added_routes_are_there() {
        let readiness = Readiness::default();
        hydrant_telemetry::metrics().config.applied(3);
        assert!(ask(&readiness, "/metrics").await.1.contains("hydrant_config_revision 3"));
        assert_eq!(ask(&readiness, "/more").await.1, "more");
    }
}
