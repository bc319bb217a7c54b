//! `Retry-After` (RFC 9110, section 10.2.3): seconds or an HTTP date, clamped; junk is as if absent.

use http::{HeaderMap, header::RETRY_AFTER};
use jiff::{Timestamp, fmt::rfc2822};
use std::time::Duration;

/// Shortest and longest pause an upstream can impose.
const CLAMP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// The pause told to callers when a 429 names none.
pub const DEFAULT_PAUSE: Duration = Duration::from_secs(5);

/// The pause `headers` ask for, 1 s to 1 h.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = seconds(text).or_else(|| until_date(text, now))?;
    Some(pause.clamp(CLAMP.0, CLAMP.1))
}

/// Digits only: a sign or a fraction is junk. More digits than fit mean for ever.
fn seconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// An IMF-fixdate, which is also a valid RFC 2822 date. A past date is a pause of nothing.
fn until_date(text: &str, now: Timestamp) -> Option<Duration> {
    let date = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn every_form_is_read_and_clamped() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("30", Some(30)),
            (" 30 ", Some(30)),
            ("0", Some(1)),
            ("3600", Some(3600)),
            ("1000000000000", Some(3600)),
            ("99999999999999999999999999", Some(3600)),
            ("Mon, 23 Nov 2026 12:01:30 GMT", Some(90)),
            ("Mon, 23 Nov 2026 11:00:00 GMT", Some(1)),
            ("Tue, 23 Nov 2049 12:00:00 GMT", Some(3600)),
            ("-5", None),
            ("1.5", None),
            ("+3", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            let found = retry_after(&headers, now).map(|pause| pause.as_secs());
            assert_eq!(found, expected, "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
