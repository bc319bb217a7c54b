//! Which bytes of a blob a `Range` header asks for (RFC 9110, section 14).
//!
//! One range is answered 206. Several are answered by the one range that covers them when they
//! touch or overlap, and otherwise by the whole, as a server may (section 14.2). A header that
//! cannot be read is ignored, as a server must.

use std::ops::Range;

/// Most ranges that are looked at; more are answered with the whole.
const MAX_RANGES: usize = 16;

/// The part of a content of known size that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// Never empty, and inside the content.
    Bytes(Range<u64>),
    /// No byte of the content was asked for: 416.
    Unsatisfiable,
}

impl Part {
    /// What `header` asks of a content of `size` bytes.
    pub fn of(header: Option<&str>, size: u64) -> Self {
        match header.and_then(ranges) {
            None => Self::Whole,
            Some(ranges) => Self::covering(&ranges, size),
        }
    }

    fn covering(ranges: &[Spec], size: u64) -> Self {
        let mut found: Vec<_> = ranges.iter().filter_map(|range| range.within(size)).collect();
        found.sort_by_key(|range| range.start);
        let mut found = found.into_iter();
        let Some(mut cover) = found.next() else { return Self::Unsatisfiable };
        for range in found {
            if range.start > cover.end {
                return Self::Whole;
            }
            cover.end = cover.end.max(range.end);
        }
        Self::Bytes(cover)
    }
}

/// One range as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// `first-` or `first-last`
    From { first: u64, last: Option<u64> },
    /// `-length`
    Suffix { length: u64 },
}

impl Spec {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        if first.is_empty() {
            return Some(Self::Suffix { length: number(last)? });
        }
        let first = number(first)?;
        let last = if last.is_empty() { None } else { Some(number(last)?) };
        last.is_none_or(|last| last >= first).then_some(Self::From { first, last })
    }

    /// The bytes of a content of `size` bytes that it names, if any.
    fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From { first, last } => {
                let end = last.map_or(size, |last| last.saturating_add(1)).min(size);
                first..end
            }
            Self::Suffix { length } => size.saturating_sub(length)..size,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Digits only. A number beyond 64 bits is further than any content reaches.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The ranges of a header, or `None` when it is to be ignored: another unit, not well-formed, or
/// more ranges than are looked at.
fn ranges(header: &str) -> Option<Vec<Spec>> {
    let (unit, set) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut specs = Vec::with_capacity(1);
    for text in set.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        if specs.len() == MAX_RANGES {
            return None;
        }
        specs.push(Spec::parse(text)?);
    }
    (!specs.is_empty()).then_some(specs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_asked_of_ten_bytes() {
        use Part::{Bytes, Unsatisfiable, Whole};
        let thousand = format!("bytes={}", vec!["0-0"; 1000].join(","));
        for (header, expected) in [
            (None, Whole),
            (Some("bytes=0-"), Bytes(0..10)),
            (Some("bytes=0-0"), Bytes(0..1)),
            (Some("bytes=3-5"), Bytes(3..6)),
            (Some("BYTES = 3-5"), Bytes(3..6)),
            (Some("bytes=3-99"), Bytes(3..10)),
            (Some("bytes=-4"), Bytes(6..10)),
            (Some("bytes=-99"), Bytes(0..10)),
            (Some("bytes=9-99999999999999999999999"), Bytes(9..10)),
            (Some("bytes=10-"), Unsatisfiable),
            (Some("bytes=99999999999999999999999-"), Unsatisfiable),
            (Some("bytes=-0"), Unsatisfiable),
            (Some("bytes=0-2,3-5"), Bytes(0..6)),
            (Some("bytes=4-5, 0-4,"), Bytes(0..6)),
            (Some("bytes=0-1,5-6"), Whole),
            (Some("bytes=0-1,50-60"), Bytes(0..2)),
            (Some("bytes=20-30,50-60"), Unsatisfiable),
            (Some("bytes=5-3"), Whole),
            (Some("bytes="), Whole),
            (Some("bytes=a-b"), Whole),
            (Some("bytes=+1-2"), Whole),
            (Some("bytes=--1"), Whole),
            (Some("items=0-1"), Whole),
            (Some("nonsense"), Whole),
            (Some(&thousand), Whole),
        ] {
            assert_eq!(Part::of(header, 10), expected, "{header:?}");
        }
    }

    #[test]
    fn an_empty_content_has_no_bytes_to_ask_for() {
        assert_eq!(Part::of(Some("bytes=0-"), 0), Part::Unsatisfiable);
        assert_eq!(Part::of(Some("bytes=-1"), 0), Part::Unsatisfiable);
        assert_eq!(Part::of(None, 0), Part::Whole);
    }

    proptest! {
        #[test]
        fn a_part_is_inside_the_content(header in "bytes=[-0-9,]{0,20}", size in 0u64..1000) {
            if let Part::Bytes(range) = Part::of(Some(&header), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
