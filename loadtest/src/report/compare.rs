//! Two reports side by side: what changed, by how much, and whether the rounds can tell.

use super::Report;
use crate::{
    bars::Figure,
    metric::{Better, Metric},
    spread::{Spread, number, quantile},
    trials::Part,
};

/// How a later value is held against an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Later by earlier.
    AsRatio,
    /// Later minus earlier: of values that are differences themselves, and may be zero or less.
    AsDifference,
}

/// How a later value relates to an earlier one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Change {
    held: Held,
    /// The median of all pairs, and where nine of ten of them lie.
    median: f64,
    low: f64,
    high: f64,
    /// Rounds of the report that has fewer.
    rounds: usize,
}

/// Rounds below which a difference may as well be chance.
const FEWEST_ROUNDS: usize = 3;

impl Change {
    /// `None` when either was not measured, or there is nothing to divide by.
    fn of(held: Held, before: &[f64], after: &[f64]) -> Option<Self> {
        let join = |after: f64, before: f64| match held {
            Held::AsRatio => after / before,
            Held::AsDifference => after - before,
        };
        let pairs = before.iter().flat_map(|b| after.iter().map(move |a| join(*a, *b)));
        let mut pairs: Vec<f64> = pairs.filter(|pair| pair.is_finite()).collect();
        if pairs.is_empty() {
            return None;
        }
        pairs.sort_by(f64::total_cmp);
        let at = |quantile_at| quantile(&pairs, quantile_at);
        let rounds = before.len().min(after.len());
        Some(Self { held, median: at(0.5), low: at(0.05), high: at(0.95), rounds })
    }

    fn word(self, better: Better) -> &'static str {
        if self.rounds < FEWEST_ROUNDS {
            return "too few rounds to tell";
        }
        let same = match self.held {
            Held::AsRatio => 1.0,
            Held::AsDifference => 0.0,
        };
        let (is_lower, is_higher) = (self.high < same, self.low > same);
        match (is_lower, is_higher, better) {
            (true, _, Better::Lower) | (_, true, Better::Higher) => "better",
            (true, _, Better::Higher) | (_, true, Better::Lower) => "WORSE",
            (false, false, _) => "within the spread",
        }
    }

    fn text(self) -> String {
        let [median, low, high] = [self.median, self.low, self.high].map(number);
        match self.held {
            Held::AsRatio => format!("×{median} ({low}–{high})"),
            Held::AsDifference => {
                let sign = if self.median < 0.0 { "" } else { "+" };
                format!("{sign}{median} ({low} to {high})")
            }
        }
    }
}

/// The comparison for a terminal.
pub fn text(before: &Report, after: &Report) -> String {
    let mut text = String::from(
        "× is after / before, + or - after minus before: median of all pairs (5 %–95 %)\n",
    );
    for (name, report) in [("before", before), ("after", after)] {
        let machine = &report.machine;
        text += &format!(
            "{name:>6}: {}, {} effort, {} cores, {} build {}\n",
            report.started, report.effort, machine.cores, machine.build, machine.revision
        );
    }
    if before.effort != after.effort || before.machine.cores != after.machine.cores {
        text += "The runs differ in effort or machine: ratios say little.\n";
    }
    text += "\nfigures\n";
    for figure in after.figures() {
        let earlier = before.figures().find(|earlier| earlier.key == figure.key);
        text += &self::figure(earlier, figure);
    }
    for section in &after.scenarios {
        for part in &section.parts {
            let earlier = before.scenarios.iter().flat_map(|section| &section.parts);
            if let Some(earlier) = earlier.into_iter().find(|earlier| earlier.name == part.name) {
                text += &format!("\n{}: {}\n", section.scenario, part.name);
                text += &self::part(earlier, part);
            }
        }
    }
    text
}

fn figure(before: Option<&Figure>, after: &Figure) -> String {
    let held = if after.is_difference { Held::AsDifference } else { Held::AsRatio };
    let change = before.and_then(|before| Change::of(held, &before.samples, &after.samples));
    let earlier = before.and_then(Figure::spread);
    line(&after.what, earlier, after.spread(), change, after.limit.better())
}

fn part(before: &Part, after: &Part) -> String {
    let mut text = String::new();
    for name in &after.contestants {
        for metric in after.metrics.iter().filter(|metric| is_worth_a_line(**metric)) {
            let (earlier, later) = (before.samples(name, *metric), after.samples(name, *metric));
            if let Some(change) = Change::of(Held::AsRatio, &earlier, &later) {
                let what = format!("{name}, {}", metric.title());
                let spreads = (Spread::of(&earlier), Spread::of(&later));
                text += &line(&what, spreads.0, spreads.1, Some(change), metric.better());
            }
        }
    }
    text
}

/// What tells of the run and not of the contestant is left out.
fn is_worth_a_line(metric: Metric) -> bool {
    !matches!(metric, Metric::Busy | Metric::ClientCpu | Metric::Errors | Metric::Unserved)
}

fn line(
    what: &str,
    before: Option<Spread>,
    after: Option<Spread>,
    change: Option<Change>,
    better: Better,
) -> String {
    let told = |spread: Option<Spread>| {
        spread.map_or_else(|| "not measured".to_owned(), |spread| spread.to_string())
    };
    let (ratio, word) = match change {
        Some(change) => (change.text(), change.word(better)),
        None => ("–".to_owned(), ""),
    };
    format!("  {what:<76} {:>22} → {:<22} {ratio:<24} {word}\n", told(before), told(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_inside_the_spread_is_none() {
        let ratio = |before: &[f64], after: &[f64]| Change::of(Held::AsRatio, before, after);
        let change = ratio(&[1.0, 1.1, 0.9], &[1.05, 0.95, 1.0]).unwrap();
        assert_eq!(change.word(Better::Lower), "within the spread");
        let change = ratio(&[1.0, 1.1, 0.9], &[2.0, 2.1, 1.9]).unwrap();
        assert!((change.median - 2.0).abs() < 0.1);
        assert_eq!(change.word(Better::Lower), "WORSE");
        assert_eq!(change.word(Better::Higher), "better");
        let change = ratio(&[1.0, 1.0], &[2.0, 2.0, 2.0]).unwrap();
        assert_eq!(change.word(Better::Lower), "too few rounds to tell");
        assert_eq!(ratio(&[], &[1.0]), None);
        assert_eq!(ratio(&[0.0], &[1.0]), None);
    }

    #[test]
    fn a_difference_is_not_divided() {
        let change =
            |before: &[f64], after: &[f64]| Change::of(Held::AsDifference, before, after).unwrap();
        // Before as soon as direct, or sooner: the ratio would be anything.
        let later = change(&[-0.2, 0.0, 0.1], &[1.0, 1.1, 1.2]);
        assert_eq!(later.word(Better::Lower), "WORSE");
        assert!((later.median - 1.1).abs() < 0.2, "{later:?}");
        assert!(later.text().starts_with("+1."), "{}", later.text());
        let same = change(&[0.4, 0.5, 0.6], &[0.5, 0.4, 0.6]);
        assert_eq!(same.word(Better::Lower), "within the spread");
    }
}
