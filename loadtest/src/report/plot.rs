//! Plots as inline SVG: lines over a quantity, and a range beside its bar.

use super::{Chart, Line};
use crate::{bars::Limit, spread::Spread, spread::number};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;

/// Lines, and under them who is who.
pub fn chart(chart: &Chart) -> String {
    let points = || chart.lines.iter().flat_map(|line| &line.points);
    let last = points().map(|(x, _)| *x).fold(0.0, f64::max).max(1e-9);
    let steps = ticks(points().map(|(_, y)| *y).fold(0.0, f64::max));
    let high = steps.last().copied().unwrap_or(1.0).max(1e-9);
    let x = |value: f64| LEFT + value / last * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / high * (HEIGHT - TOP - BOTTOM);
    let grid: String = steps.iter().map(|step| level(*step, y(*step))).collect();
    let across: String = ticks(last)
        .iter()
        .filter(|step| **step <= last)
        .map(|step| {
            let (at, label) = (x(*step), number(*step));
            let label = label.trim_end_matches(".00").trim_end_matches(".0");
            format!("<text x='{at:.1}' y='{:.1}' class='x'>{label}</text>", HEIGHT - 8.0)
        })
        .collect();
    let lines: String =
        chart.lines.iter().enumerate().map(|(n, line)| path(n, line, x, y)).collect();
    let keys: String = chart.lines.iter().enumerate().map(|(n, line)| key(n, line)).collect();
    format!(
        "<figure><figcaption>{} <span>{} over {}</span></figcaption>\
         <svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{}'>{grid}{across}{lines}</svg>\
         <div class='keys'>{keys}</div></figure>",
        escape(&chart.title),
        escape(&chart.unit),
        escape(&chart.across),
        escape(&chart.title),
    )
}

fn level(step: f64, y: f64) -> String {
    let label = number(step);
    let label =
        if step == 0.0 { "0" } else { label.trim_end_matches(".00").trim_end_matches(".0") };
    format!(
        "<line x1='{LEFT}' x2='{}' y1='{y:.1}' y2='{y:.1}' class='grid'/>\
         <text x='{}' y='{:.1}' class='y'>{label}</text>",
        WIDTH - RIGHT,
        LEFT - 6.0,
        y + 4.0
    )
}

fn path(n: usize, line: &Line, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let points = line.points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value)));
    let points: Vec<_> = points.collect();
    let dots = if points.len() > 20 {
        String::new()
    } else {
        let dot = |(at, value): &(f64, f64)| {
            format!("<circle cx='{:.1}' cy='{:.1}' r='2.5' class='c{}'/>", x(*at), y(*value), n % 8)
        };
        line.points.iter().map(dot).collect()
    };
    format!("<polyline points='{}' class='c{}'/>{dots}", points.join(" "), n % 8)
}

fn key(n: usize, line: &Line) -> String {
    let highest = line.points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let name = escape(&line.name);
    format!("<span><i class='c{}'></i>{name} <b>max {}</b></span>", n % 8, number(highest))
}

/// Round steps from 0 to at least `high`.
fn ticks(high: f64) -> Vec<f64> {
    if high <= 0.0 || !high.is_finite() {
        return vec![0.0];
    }
    let rough = high / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
    let count = (high / step).ceil() as u32;
    (0..=count).map(|n| f64::from(n) * step).collect()
}

/// A range with its median, and the bar it is held against.
pub fn range(spread: Spread, limit: Limit, is_good: bool) -> String {
    let bar = match limit {
        Limit::AtMost(limit) | Limit::AtLeast(limit) => Some(limit),
        Limit::Told => None,
    };
    let high = spread.max.max(bar.unwrap_or(0.0)).max(1e-9) * 1.15;
    let low = spread.min.min(0.0);
    let x = |value: f64| 4.0 + (value - low) / (high - low) * 172.0;
    let class = if is_good { "good" } else { "bad" };
    let (from, to, at) = (x(spread.min), x(spread.max).max(x(spread.min) + 1.0), x(spread.median));
    let bar = bar.map(|bar| {
        let (at, is_ceiling) = (x(bar), matches!(limit, Limit::AtMost(_)));
        // The side on which it is to lie is tinted.
        let (start, end) = if is_ceiling { (0.0, at) } else { (at, 180.0) };
        format!(
            "<rect x='{start:.1}' y='0' width='{:.1}' height='18' class='side'/>\
             <line x1='{at:.1}' x2='{at:.1}' y1='0' y2='18' class='bar'/>",
            end - start
        )
    });
    format!(
        "<svg viewBox='0 0 180 18' class='range' aria-hidden='true'>{}\
         <line x1='{from:.1}' x2='{to:.1}' y1='9' y2='9' class='{class}'/>\
         <circle cx='{at:.1}' cy='9' r='4' class='{class}'/></svg>",
        bar.unwrap_or_default()
    )
}

/// A value as a bar of the longest.
pub fn strip(value: f64, longest: f64, is_ours: bool) -> String {
    let width = (value / longest.max(1e-9) * 100.0).clamp(0.0, 100.0);
    let class = if is_ours { "ours" } else { "theirs" };
    format!("<div class='strip'><div class='{class}' style='width:{width:.1}%'></div></div>")
}

pub fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\'', "&#39;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_reach_the_top() {
        assert_eq!(ticks(0.0), [0.0]);
        assert_eq!(ticks(7.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert!(ticks(0.013).last().is_some_and(|last| *last >= 0.013));
    }

    #[test]
    fn names_cannot_break_the_page() {
        let chart = Chart::new("<b>", "s", "ms").line("'x'", vec![(0.0, 1.0), (1.0, 2.0)]);
        let svg = self::chart(&chart);
        assert!(svg.contains("&lt;b&gt;") && svg.contains("&#39;x&#39;") && !svg.contains("NaN"));
    }
}
