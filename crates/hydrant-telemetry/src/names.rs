//! Every metric name and every label key, as OpenTelemetry spells them. Prometheus reads them with
//! underscores, the unit and, for counters, `_total`: `hydrant.pulls` is `hydrant_pulls_total`,
//! `hydrant.pull.duration` is `hydrant_pull_duration_seconds`.
//!
//! Names that begin with `http.` or `messaging.` are OpenTelemetry semantic conventions.

pub const HTTP_SERVER_DURATION: &str = "http.server.request.duration";
pub const HTTP_SERVER_ACTIVE: &str = "http.server.active_requests";

pub const HTTP_CLIENT_DURATION: &str = "http.client.request.duration";

pub const PULLS: &str = "hydrant.pulls";
pub const PULL_DURATION: &str = "hydrant.pull.duration";
pub const PULL_BYTES: &str = "hydrant.pull.served";

pub const MISSES: &str = "hydrant.misses";
pub const MISSES_WAITING: &str = "hydrant.misses.waiting";

pub const UPSTREAM_REQUESTS: &str = "hydrant.upstream.requests";
pub const UPSTREAM_DURATION: &str = "hydrant.upstream.request.duration";
pub const UPSTREAM_BYTES: &str = "hydrant.upstream.fetched";
pub const UPSTREAM_RETRIES: &str = "hydrant.upstream.retries";
pub const UPSTREAM_SPARED: &str = "hydrant.upstream.spared";
pub const UPSTREAM_QUOTA_REMAINING: &str = "hydrant.upstream.quota.remaining";
pub const UPSTREAM_QUOTA_LIMIT: &str = "hydrant.upstream.quota.limit";
pub const UPSTREAM_CONCURRENCY: &str = "hydrant.upstream.concurrency.limit";
pub const UPSTREAM_BREAKER: &str = "hydrant.upstream.breaker.state";

pub const HYDRATION_JOBS: &str = "hydrant.hydration.jobs";
pub const HYDRATION_DURATION: &str = "hydrant.hydration.duration";
pub const HYDRATION_TIME_TO_LOCAL: &str = "hydrant.hydration.time_to_local";
pub const HYDRATION_ATTEMPTS: &str = "hydrant.hydration.attempts";
pub const HYDRATION_BYTES: &str = "hydrant.hydration.stored";
pub const HYDRATION_QUEUE: &str = "hydrant.hydration.queue.depth";
pub const HYDRATION_AGE: &str = "hydrant.hydration.queue.age";
pub const RULE_HYDRATIONS: &str = "hydrant.rule.hydrations";
pub const DEAD_LETTERS: &str = "hydrant.dead_letters";

pub const FLIGHTS: &str = "hydrant.flights";
pub const FLIGHTS_ACTIVE: &str = "hydrant.flights.active";
pub const FLIGHT_SPOOL: &str = "hydrant.flights.spool";
pub const FLIGHT_SPOOL_LIMIT: &str = "hydrant.flights.spool.limit";
pub const FLIGHT_JOINS: &str = "hydrant.flights.joins";
pub const FLIGHT_PARTS: &str = "hydrant.flights.parts";
pub const FLIGHT_FAR: &str = "hydrant.flights.far";
pub const FLIGHT_FAR_BYTES: &str = "hydrant.flights.far.bytes";

pub const WEBHOOK_DELIVERIES: &str = "hydrant.webhook.deliveries";
pub const WEBHOOK_DURATION: &str = "hydrant.webhook.delivery.duration";
pub const WEBHOOK_FAILING_FOR: &str = "hydrant.webhook.failing_for";
pub const WEBHOOK_LAG: &str = "hydrant.webhook.lag";

pub const STORE_OPERATIONS: &str = "hydrant.store.operations";
pub const STORE_DURATION: &str = "hydrant.store.operation.duration";

pub const BUS_CONNECTED: &str = "hydrant.bus.connected";
pub const BUS_REPLICAS_MISSING: &str = "hydrant.bus.replicas.missing";
pub const BUS_SENT: &str = "messaging.client.sent.messages";
pub const BUS_CONSUMED: &str = "messaging.client.consumed.messages";
pub const BUS_PROCESS: &str = "messaging.process.duration";

pub const BUILD: &str = "hydrant.build.info";

pub const CONFIG_REVISION: &str = "hydrant.config.revision";
pub const CONFIG_REJECTED: &str = "hydrant.config.rejected";

pub mod label {
    //! Label keys. Values come from enums and configured names only, never from requests: no
    //! repository, tag or digest is a label.

    pub const CLASS: &str = "class";
    pub const KIND: &str = "kind";
    pub const LANE: &str = "lane";
    pub const OPERATION: &str = "operation";
    pub const REASON: &str = "reason";
    pub const OUTCOME: &str = "outcome";
    pub const RULE: &str = "rule";
    pub const PART: &str = "part";
    pub const UPSTREAM: &str = "upstream";
    pub const VERDICT: &str = "verdict";
    pub const VERSION: &str = "version";
    pub const WEBHOOK: &str = "webhook";

    pub const MESSAGING_SYSTEM: &str = "messaging.system";
    pub const MESSAGING_OPERATION: &str = "messaging.operation.name";
    pub const DESTINATION: &str = "messaging.destination.name";
    pub const ERROR_TYPE: &str = "error.type";
    pub const SERVER_ADDRESS: &str = "server.address";
    pub const SERVER_PORT: &str = "server.port";
    pub const URL_SCHEME: &str = "url.scheme";
    pub const HTTP_METHOD: &str = "http.request.method";
    pub const HTTP_ROUTE: &str = "http.route";
    pub const HTTP_STATUS: &str = "http.response.status_code";
}
