//! The table at the end: what each part took, in time, requests and bytes.

use crate::{stage::time, upstream::Asked};
use indicatif::HumanBytes;
use std::time::Duration;

/// One part of the demo.
pub struct Row {
    pub what: &'static str,
    pub took: Duration,
    pub asked: Asked,
    /// Bytes that the client got; `None` where no client was served.
    pub served: Option<u64>,
}

const HEAD: [&str; 5] = ["", "time", "upstream requests", "from upstream", "to client"];

/// The rows under a heading, the figures aligned to the right.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<_> = (0..HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |cells: &[String; 5]| {
        let figures = cells[1..].iter().zip(&widths[1..]);
        let figures: String = figures.map(|(cell, width)| format!("   {cell:>width$}")).collect();
        format!("  {:<width$}{figures}\n", cells[0], width = widths[0])
    };
    lines.iter().map(line).collect()
}

/// Bytes for people: `512 B`, `1.40 MiB`.
pub fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

impl Row {
    fn cells(&self) -> [String; 5] {
        let Asked { gets, heads, bytes, .. } = self.asked;
        let requests =
            if gets + heads == 0 { "none".to_owned() } else { format!("{gets} GET, {heads} HEAD") };
        let served = self.served.map_or_else(|| "-".to_owned(), size);
        [self.what.to_owned(), time(self.took), requests, size(bytes), served]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_aligned_to_the_right() {
        let row = |what, gets, served| Row {
            what,
            took: Duration::from_millis(1_234),
            asked: Asked { gets, bytes: 2_048, ..Asked::default() },
            served,
        };
        let text = table(&[row("cold pull", 7, Some(1)), row("warm", 0, None)]);
        let expected = "\
\x20               time   upstream requests   from upstream   to client
\x20 cold pull   1.23 s       7 GET, 0 HEAD        2.00 KiB         1 B
\x20 warm        1.23 s                none        2.00 KiB           -
";
        assert_eq!(text, expected);
    }
}
