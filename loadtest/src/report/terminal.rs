//! The report as text: figures with their bars, then each comparison as a table.

use super::{Ended, Report, Section};
use crate::{
    bars::{Figure, Verdict},
    metric::{Better, Metric},
    spread::{Spread, number},
    trials::Part,
};

pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for section in &report.scenarios {
        text += &self::section(section);
    }
    text + &figures(report)
}

fn section(section: &Section) -> String {
    let mut text = format!("\n{} · {}\n", section.scenario.to_uppercase(), section.about);
    if section.ended != Ended::Complete {
        text += &format!("  {}\n", section.ended.text());
    }
    for part in section.parts.iter().filter(|part| !part.trials.is_empty()) {
        text += &format!("\n  {}\n  {}\n", part.name, part.about);
        text += &aligned(&rows(part));
        let failures = part.contestants.iter().filter_map(|name| Some((name, part.failure(name)?)));
        for (name, why) in failures {
            text += &format!("    {name} failed: {why}\n");
        }
    }
    for note in &section.notes {
        text += &format!("  note: {note}\n");
    }
    text
}

/// A head and a row for each contestant; the ratio to the reference is the first column.
pub fn rows(part: &Part) -> Vec<Vec<String>> {
    let metrics = columns(part);
    let ratio = part.reference.as_deref().zip(part.metrics.first().copied());
    let mut head = vec![String::new()];
    head.extend(ratio.map(|(reference, _)| format!("/ {reference}")));
    head.extend(metrics.iter().map(|metric| metric.title().to_owned()));
    let row = |name: &String| {
        let mut row = vec![name.clone()];
        row.extend(ratio.map(|(reference, metric)| {
            let ratios = Spread::of(&part.ratios(name, reference, metric));
            if name == reference { "1".to_owned() } else { told(ratios) }
        }));
        row.extend(metrics.iter().map(|metric| told(part.spread(name, *metric))));
        row
    };
    let mut rows = vec![head];
    rows.extend(part.contestants.iter().map(row));
    rows
}

/// The part's metrics that somebody has a value for.
fn columns(part: &Part) -> Vec<Metric> {
    let is_measured =
        |metric: &Metric| part.contestants.iter().any(|name| part.spread(name, *metric).is_some());
    part.metrics.iter().copied().filter(is_measured).collect()
}

fn told(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| spread.to_string())
}

fn figures(report: &Report) -> String {
    let mut rows = vec![["", "figure", "bar", "measured", "others"].map(str::to_owned).to_vec()];
    rows.extend(report.figures().map(|figure| {
        let sign = match figure.verdict() {
            Verdict::Reached => "✓",
            Verdict::Missed => "✗",
            Verdict::Failed => "!",
            Verdict::Told => "·",
            Verdict::NotMeasured => "?",
        };
        let bar = format!("{} {}", figure.limit.text(), figure.unit);
        vec![sign.to_owned(), figure.what.clone(), bar, measured(figure), others(figure)]
    }));
    if rows.len() == 1 {
        return String::new();
    }
    let Report { machine, effort, took_s, .. } = report;
    let about = format!(
        "{} cores, {} build of {}, {effort} effort, {took_s:.0} s; medians with their ranges",
        machine.cores, machine.build, machine.revision
    );
    format!("\nFIGURES · {about}\n{}", aligned(&rows))
}

pub fn measured(figure: &Figure) -> String {
    match (figure.spread(), &figure.failure) {
        (Some(spread), Some(why)) if figure.failed_rounds > 0 => {
            format!("{spread}, and {} failed: {why}", rounds(figure.failed_rounds))
        }
        (Some(spread), _) => spread.to_string(),
        (None, Some(why)) => format!("not measured: {why}"),
        (None, None) => "not part of this run".to_owned(),
    }
}

pub fn rounds(count: usize) -> String {
    if count == 1 { "1 round".to_owned() } else { format!("{count} rounds") }
}

/// What others came to, and why they did not.
pub fn others(figure: &Figure) -> String {
    let other = |other: &crate::bars::Other| match (Spread::of(&other.samples), &other.failure) {
        (Some(spread), _) => Some(format!("{} {}", other.name, number(spread.median))),
        (None, Some(_)) => Some(format!("{} failed", other.name)),
        (None, None) => None,
    };
    figure.others.iter().filter_map(other).collect::<Vec<_>>().join(", ")
}

/// Which of several is best; `None` where all are alike or only one was measured.
pub fn best(part: &Part, metric: Metric) -> Option<&str> {
    let medians = part
        .contestants
        .iter()
        .filter_map(|name| part.spread(name, metric).map(|spread| (name.as_str(), spread.median)));
    let medians: Vec<_> = medians.collect();
    let by = |a: &&(&str, f64), b: &&(&str, f64)| a.1.total_cmp(&b.1);
    let (low, high) = (medians.iter().min_by(by)?, medians.iter().max_by(by)?);
    let best = match metric.better() {
        Better::Lower => low,
        Better::Higher => high,
    };
    (low.1 < high.1).then_some(best.0)
}

/// The first column to the left, the others to the right unless they are the last.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(n, (cell, width))| {
            let is_text = n == 0 || cell.chars().filter(|c| c.is_alphabetic()).count() > 3;
            if is_text { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("    {}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metric::Values, trials::Outcome};

    #[test]
    fn a_failed_peer_says_why_and_the_others_stay() {
        let mut part = Part::new("pull", "", &[Metric::Wall]).against("direct");
        part.add(0, "direct", Outcome::Measured(Values::from([(Metric::Wall, 2.0)])));
        part.add(0, "hydrant", Outcome::Measured(Values::from([(Metric::Wall, 3.0)])));
        part.add(0, "nginx", Outcome::Failed("not installed".to_owned()));
        let section = Section { parts: vec![part], ..Section::default() };
        let text = self::section(&section);
        assert!(text.contains("hydrant      1.50    3.00"), "{text}");
        assert!(text.contains("nginx failed: not installed"), "{text}");
        assert_eq!(best(&section.parts[0], Metric::Wall), Some("direct"));
    }
}
