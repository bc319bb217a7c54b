//! What an upstream's answer tells of its rate limit, in the spellings that are in use:
//!
//! - `RateLimit-Limit`, `-Remaining`, `-Reset` (IETF draft up to 06), and the same with `X-`;
//! - `RateLimit: limit=100, remaining=50, reset=5` (draft 07);
//! - `RateLimit: "default";r=50;t=5` with `RateLimit-Policy: "default";q=100;w=60` (draft 08 on);
//! - `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 76;w=21600` (Docker Hub).
//!
//! Of several policies the one with the least left counts. What makes no sense is as if absent.

use http::HeaderMap;
use jiff::Timestamp;
use std::time::Duration;

/// What one answer told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub limit: Option<u64>,
    pub remaining: u64,
    /// Time until the budget is whole again.
    pub reset: Option<Duration>,
    /// Length of the window the limit is for.
    pub window: Option<Duration>,
}

/// Longest reset or window believed.
const LONGEST: u64 = 24 * 3600;
/// Larger numbers of seconds are times since 1970, as some write them.
const EPOCH: u64 = 1_000_000_000;

/// What `headers` tell, if they tell what is left.
pub fn seen(headers: &HeaderMap, now: Timestamp) -> Option<Seen> {
    combined(headers, now)
        .or_else(|| separate(headers, "", now))
        .or_else(|| separate(headers, "x-", now))
}

fn separate(headers: &HeaderMap, prefix: &str, now: Timestamp) -> Option<Seen> {
    let items = |name: &str| items(text(headers, &format!("{prefix}ratelimit-{name}")));
    let left = items("remaining");
    let remaining = left.iter().filter_map(|item| item.number()).min()?;
    let least = left.iter().find(|item| item.number() == Some(remaining));
    let limits = items("limit");
    let window = least.and_then(|item| item.get("w"));
    let limit = limits.iter().find(|item| window.is_none() || item.get("w") == window);
    let limit = limit.or(limits.first());
    let window = window.or_else(|| limit?.get("w"));
    Some(Seen {
        limit: limit.and_then(Item::number),
        remaining,
        reset: items("reset").first().and_then(Item::number).and_then(|n| until(n, now)),
        window: window.and_then(seconds),
    })
}

fn combined(headers: &HeaderMap, now: Timestamp) -> Option<Seen> {
    let told = items(text(headers, "ratelimit"));
    let policies = items(text(headers, "ratelimit-policy"));
    if let Some(remaining) = told.iter().find_map(|item| item.named("remaining")) {
        let limit = told.iter().find_map(|item| item.named("limit"));
        let reset = told.iter().find_map(|item| item.named("reset"));
        let policy = policies.iter().find(|policy| limit.is_none() || policy.number() == limit);
        let window = policy.and_then(|policy| policy.get("w")).and_then(seconds);
        return Some(Seen { limit, remaining, reset: reset.and_then(|n| until(n, now)), window });
    }
    let least =
        told.iter().filter(|item| item.get("r").is_some()).min_by_key(|item| item.get("r"))?;
    let policy = policies.iter().find(|policy| policy.value == least.value);
    Some(Seen {
        limit: policy.and_then(|policy| policy.get("q")),
        remaining: least.get("r")?,
        reset: least.get("t").and_then(|n| until(n, now)),
        window: policy.and_then(|policy| policy.get("w")).and_then(seconds),
    })
}

/// One member of a list, with its parameters: `value;name=number;…`.
struct Item<'a> {
    value: &'a str,
    parameters: Vec<(&'a str, u64)>,
}

impl Item<'_> {
    fn number(&self) -> Option<u64> {
        number(self.value)
    }

    fn get(&self, name: &str) -> Option<u64> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// The number of a member that is itself `name=number`.
    fn named(&self, name: &str) -> Option<u64> {
        let (key, value) = self.value.split_once('=')?;
        (key.trim() == name).then(|| number(value.trim())).flatten()
    }
}

fn items(text: &str) -> Vec<Item<'_>> {
    text.split(',').map(item).filter(|item| !item.value.is_empty()).collect()
}

fn item(text: &str) -> Item<'_> {
    let mut parts = text.split(';').map(str::trim);
    let value = parts.next().unwrap_or_default().trim_matches('"');
    let parameters = parts.filter_map(|part| {
        let (key, value) = part.split_once('=')?;
        Some((key.trim(), number(value.trim())?))
    });
    Item { value, parameters: parameters.collect() }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.len() < 19 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn seconds(count: u64) -> Option<Duration> {
    (count > 0).then(|| Duration::from_secs(count.min(LONGEST)))
}

/// Seconds from now, or a time.
fn until(count: u64, now: Timestamp) -> Option<Duration> {
    let now = u64::try_from(now.as_second()).unwrap_or_default();
    let from_now = if count >= EPOCH { count.saturating_sub(now) } else { count };
    Some(Duration::from_secs(from_now.clamp(1, LONGEST)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn read(headers: &[(&'static str, &'static str)]) -> Option<Seen> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        seen(&headers.collect(), "2026-11-23T12:00:00Z".parse().unwrap())
    }

    fn told(limit: u64, remaining: u64, reset: u64, window: u64) -> Option<Seen> {
        let some = |n: u64| (n > 0).then(|| Duration::from_secs(n));
        let limit = (limit > 0).then_some(limit);
        Some(Seen { limit, remaining, reset: some(reset), window: some(window) })
    }

    #[test]
    fn every_spelling_is_read() {
        const LIMIT: &str = "ratelimit-limit";
        const LEFT: &str = "ratelimit-remaining";
        const RESET: &str = "ratelimit-reset";
        const BOTH: &str = "ratelimit";
        const POLICY: &str = "ratelimit-policy";
        for (headers, expected) in [
            (vec![(LIMIT, "100;w=21600"), (LEFT, "76;w=21600")], told(100, 76, 0, 21_600)),
            (vec![(LIMIT, "60"), (LEFT, "0"), (RESET, "30")], told(60, 0, 30, 0)),
            (vec![(LIMIT, "100, 100;w=60"), (LEFT, "7"), (RESET, "5")], told(100, 7, 5, 0)),
            (vec![(LEFT, "3")], told(0, 3, 0, 0)),
            (vec![(LEFT, "3"), (RESET, "1795435260")], told(0, 3, 60, 0)),
            (vec![(LEFT, "3"), (RESET, "1000000000")], told(0, 3, 1, 0)),
            (vec![(LEFT, "3"), (RESET, "999999999")], told(0, 3, LONGEST, 0)),
            (
                vec![(LEFT, "90;w=60, 4;w=3600"), (LIMIT, "100;w=60, 500;w=3600")],
                told(500, 4, 0, 3600),
            ),
            (
                vec![(BOTH, "limit=100, remaining=50, reset=5"), (POLICY, "100;w=60")],
                told(100, 50, 5, 60),
            ),
            (
                vec![(BOTH, "\"default\";r=50;t=30"), (POLICY, "\"default\";q=100;w=60")],
                told(100, 50, 30, 60),
            ),
            (
                vec![
                    (BOTH, "\"a\";r=50;t=30, \"b\";r=2;t=9"),
                    (POLICY, "\"a\";q=100;w=60,\"b\";q=5;w=10"),
                ],
                told(5, 2, 9, 10),
            ),
            (
                vec![("x-ratelimit-limit", "5000"), ("x-ratelimit-remaining", "12")],
                told(5000, 12, 0, 0),
            ),
            (vec![(LIMIT, "100")], None),
            (vec![(LEFT, "-1")], None),
            (vec![(LEFT, "many")], None),
            (vec![(LEFT, "99999999999999999999999")], None),
            (vec![(LEFT, "")], None),
            (vec![(BOTH, "\"default\"")], None),
            (vec![(LEFT, "1;w=x"), (RESET, "soon")], told(0, 1, 0, 0)),
            (vec![], None),
        ] {
            assert_eq!(read(&headers), expected, "{headers:?}");
        }
    }
}
