//! Two reports side by side: what changed, by how much, and whether the rounds can tell.

use super::Report;
use crate::{
    bars::Figure,
    metric::{Better, Metric},
    spread::{Spread, number, quantile},
    trials::Part,
};

/// How a later value relates to an earlier one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Change {
    /// Later by earlier: the median of all pairs, and where nine of ten of them lie.
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
    fn of(before: &[f64], after: &[f64]) -> Option<Self> {
        let pairs = before.iter().flat_map(|b| after.iter().map(move |a| a / b));
        let mut ratios: Vec<f64> = pairs.filter(|ratio| ratio.is_finite()).collect();
        if ratios.is_empty() {
            return None;
        }
        ratios.sort_by(f64::total_cmp);
        let at = |quantile_at| quantile(&ratios, quantile_at);
        let rounds = before.len().min(after.len());
        Some(Self { median: at(0.5), low: at(0.05), high: at(0.95), rounds })
    }

    fn word(self, better: Better) -> &'static str {
        if self.rounds < FEWEST_ROUNDS {
            return "too few rounds to tell";
        }
        let (is_lower, is_higher) = (self.high < 1.0, self.low > 1.0);
        match (is_lower, is_higher, better) {
            (true, _, Better::Lower) | (_, true, Better::Higher) => "better",
            (true, _, Better::Higher) | (_, true, Better::Lower) => "WORSE",
            (false, false, _) => "within the spread",
        }
    }

    fn text(self) -> String {
        format!("×{} ({}–{})", number(self.median), number(self.low), number(self.high))
    }
}

/// The comparison for a terminal.
pub fn text(before: &Report, after: &Report) -> String {
    let mut text =
        String::from("ratio = after / before: median of all pairs of rounds (5 %–95 %)\n");
    for (name, report) in [("before", before), ("after", after)] {
        let machine = &report.machine;
        text += &format!(
            "{name:>6}: {}, {} effort, {} cores, {} build\n",
            report.started, report.effort, machine.cores, machine.build
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
    let change = before.and_then(|before| Change::of(&before.samples, &after.samples));
    let earlier = before.and_then(Figure::spread);
    line(&after.what, earlier, after.spread(), change, after.limit.better())
}

fn part(before: &Part, after: &Part) -> String {
    let mut text = String::new();
    for name in &after.contestants {
        for metric in after.metrics.iter().filter(|metric| is_worth_a_line(**metric)) {
            let (earlier, later) = (before.samples(name, *metric), after.samples(name, *metric));
            if let Some(change) = Change::of(&earlier, &later) {
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
        let change = Change::of(&[1.0, 1.1, 0.9], &[1.05, 0.95, 1.0]).unwrap();
        assert_eq!(change.word(Better::Lower), "within the spread");
        let change = Change::of(&[1.0, 1.1, 0.9], &[2.0, 2.1, 1.9]).unwrap();
        assert!((change.median - 2.0).abs() < 0.1);
        assert_eq!(change.word(Better::Lower), "WORSE");
        assert_eq!(change.word(Better::Higher), "better");
        let change = Change::of(&[1.0, 1.0], &[2.0, 2.0, 2.0]).unwrap();
        assert_eq!(change.word(Better::Lower), "too few rounds to tell");
        assert_eq!(Change::of(&[], &[1.0]), None);
        assert_eq!(Change::of(&[0.0], &[1.0]), None);
    }
}
