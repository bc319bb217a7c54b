//! The plain HTTP client with which the parts of the kit ask each other.

/// A client that follows no redirect and heeds no proxy setting. Each part has its own, because a
/// connection pool belongs to the runtime of one test.
pub(crate) fn plain() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client without options can be built")
}
