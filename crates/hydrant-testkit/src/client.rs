//! The plain HTTP client with which the parts of the kit ask each other.

/// A client that follows no redirect and heeds no proxy setting. It opens a connection for each
/// request: one kept from before a server was killed, frozen or slow tells nothing about it now.
pub(crate) fn plain() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .build()
        .expect("a client without options can be built")
}
