//! The report as one page that needs nothing else: no script, no font, no file beside it.

use super::{
    Ended, Report, Section,
    plot::{self, escape},
    terminal,
};
use crate::{
    bars::{Figure, Other, Verdict},
    spread::{Spread, number},
    trials::Part,
};

const STYLE: &str = include_str!("page.css");

pub fn page(report: &Report) -> String {
    let sections: String = report.scenarios.iter().map(section).collect();
    let links = report.scenarios.iter().map(|section| {
        let name = escape(&section.scenario);
        format!("<a href='#{name}'>{name}</a>")
    });
    format!(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width,initial-scale=1'>\
         <title>hydrant load test</title><style>{STYLE}</style></head><body><main>\
         <header><h1>hydrant load test</h1>{}<nav><a href='#figures'>figures</a>{}</nav></header>\
         {}{sections}<footer>{}</footer></main></body></html>\n",
        about(report),
        links.collect::<String>(),
        figures(report),
        programs(report),
    )
}

fn about(report: &Report) -> String {
    let machine = &report.machine;
    let others = if machine.load_before > 0.5 * machine.cores as f64 {
        format!(" <strong>Others were at work: load {} as it began.</strong>", machine.load_before)
    } else {
        String::new()
    };
    let build = if machine.build == "debug" {
        " <strong>Debug build: counts are right, times are not.</strong>"
    } else {
        ""
    };
    let effort = if report.effort == "full" {
        ""
    } else {
        " <strong>Sizes and counts are smaller than the figures' names say.</strong>"
    };
    let started = report.started.strftime("%Y-%m-%d %H:%M UTC");
    format!(
        "<p>{started} · {} effort · {} · {} cores ({}) · {:.0} GiB · Linux {}{others}{build}{effort}<br>\
         Medians of rounds with their ranges. Contestants take turns within each round, and ratios \
         are taken within a round.</p>",
        escape(&report.effort),
        minutes(report.took_s),
        machine.cores,
        escape(&machine.cpu),
        machine.memory_gib,
        escape(&machine.kernel),
    )
}

fn minutes(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if whole < 120 { format!("{whole} s") } else { format!("{} min", whole / 60) }
}

fn figures(report: &Report) -> String {
    let rows: String = report.figures().map(figure).collect();
    if rows.is_empty() {
        return String::new();
    }
    let count = |verdict| report.figures().filter(|figure| figure.verdict() == verdict).count();
    format!(
        "<section id='figures'><h2>Figures</h2><p>{} of {} bars reached, {} missed, {} failed, {} \
         not measured. The tinted side of the line is where a figure is to lie.</p>\
         <div class='wide'><table class='figures'><thead><tr><th></th><th>what</th><th>bar</th>\
         <th>measured</th><th></th><th>others, same rounds</th></tr></thead><tbody>{rows}</tbody>\
         </table></div></section>",
        count(Verdict::Reached),
        report.figures().count() - count(Verdict::Told),
        count(Verdict::Missed),
        count(Verdict::Failed),
        count(Verdict::NotMeasured),
    )
}

fn figure(figure: &Figure) -> String {
    let verdict = figure.verdict();
    let (class, word) = match verdict {
        Verdict::Reached => ("good", "reached"),
        Verdict::Missed => ("bad", "missed"),
        Verdict::Failed => ("bad", "failed"),
        Verdict::Told => ("told", "told"),
        Verdict::NotMeasured => ("told", "not measured"),
    };
    let is_good = !matches!(verdict, Verdict::Missed | Verdict::Failed);
    let plot = figure.spread().map(|spread| plot::range(spread, figure.limit, is_good));
    let measured = match figure.spread() {
        Some(spread) => with_range(spread) + &failed_rounds(figure),
        None => format!(
            "<small>{}</small>",
            escape(figure.failure.as_deref().unwrap_or("not part of this run"))
        ),
    };
    format!(
        "<tr><td><span class='pill {class}'>{word}</span></td><td>{}</td>\
         <td class='n'>{} {}</td><td class='n'>{measured}</td><td>{}</td><td><small>{}</small></td></tr>",
        escape(&figure.what),
        figure.limit.text(),
        escape(&figure.unit),
        plot.unwrap_or_default(),
        figure.others.iter().filter_map(other).collect::<Vec<_>>().join(", "),
    )
}

fn other(other: &Other) -> Option<String> {
    let name = escape(&other.name);
    match (Spread::of(&other.samples), &other.failure) {
        (Some(spread), _) => Some(format!("{name} {}", number(spread.median))),
        (None, Some(why)) => Some(format!("<span title='{}'>{name} failed</span>", escape(why))),
        (None, None) => None,
    }
}

/// How many rounds failed, and why.
fn failed_rounds(figure: &Figure) -> String {
    match (figure.failed_rounds, &figure.failure) {
        (0, _) | (_, None) => String::new(),
        (count, Some(why)) => {
            format!("<p class='why'>{} failed: {}</p>", terminal::rounds(count), escape(why))
        }
    }
}

fn with_range(spread: Spread) -> String {
    let range = spread.range().map(|(min, max)| format!(" <small>{min}–{max}</small>"));
    format!("<b>{}</b>{}", number(spread.median), range.unwrap_or_default())
}

fn section(section: &Section) -> String {
    let name = escape(&section.scenario);
    let ended = match &section.ended {
        Ended::Complete => String::new(),
        other => format!("<p class='warning'>{}</p>", escape(&other.text())),
    };
    let setting = |(name, value): (&String, &String)| {
        format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value))
    };
    let settings: String = section.settings.iter().map(setting).collect();
    let parts: String = section.parts.iter().filter(|p| !p.trials.is_empty()).map(part).collect();
    // A chart of single points shows nothing that the tables do not.
    let charts = section.charts.iter().filter(|c| c.lines.iter().any(|l| l.points.len() > 1));
    let charts: String = charts.map(plot::chart).collect();
    let notes: String =
        section.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
    format!(
        "<section id='{name}'><h2>{name} <small>{}</small></h2><p>{}</p>{ended}\
         <dl>{settings}</dl>{parts}{}<div class='charts'>{charts}</div></section>",
        minutes(section.took_s),
        escape(&section.about),
        if notes.is_empty() { String::new() } else { format!("<ul class='notes'>{notes}</ul>") },
    )
}

fn part(part: &Part) -> String {
    let rows = terminal::rows(part);
    let (head, body) = rows.split_first().expect("a table has a head");
    let head: String = head.iter().map(|cell| format!("<th>{}</th>", escape(cell))).collect();
    let first = part.metrics[0];
    let medians = part.contestants.iter().filter_map(|name| part.spread(name, first));
    let longest = medians.map(|spread| spread.median).fold(0.0, f64::max);
    let best = terminal::best(part, first);
    let row = |cells: &Vec<String>| {
        let name = &cells[0];
        let median = part.spread(name, first).map(|spread| spread.median);
        let strip = median.map(|median| plot::strip(median, longest, name.starts_with("hydrant")));
        let class = if best == Some(name.as_str()) { " class='best'" } else { "" };
        let failure = part.failure(name).map(|why| format!("<p class='why'>{}</p>", escape(why)));
        let values: String = cells[1..].iter().map(|cell| value(cell)).collect();
        format!(
            "<tr{class}><td>{}{}</td><td class='plot'>{}</td>{values}</tr>",
            escape(name),
            failure.unwrap_or_default(),
            strip.unwrap_or_default()
        )
    };
    let body: String = body.iter().map(row).collect();
    let head = head.replacen("<th></th>", "<th></th><th></th>", 1);
    format!(
        "<h3>{}</h3><p>{}</p><div class='wide'><table><thead><tr>{head}</tr></thead>\
         <tbody>{body}</tbody></table></div>",
        escape(&part.name),
        escape(&part.about)
    )
}

/// `1.02 (1.00–1.05)` with its range made small.
fn value(cell: &str) -> String {
    match cell.split_once(" (") {
        Some((median, range)) => {
            let range = escape(range.trim_end_matches(')'));
            format!("<td class='n'>{} <small>{range}</small></td>", escape(median))
        }
        None => format!("<td class='n'>{}</td>", escape(cell)),
    }
}

fn programs(report: &Report) -> String {
    let program = |program: &super::Program| {
        let sha256 =
            program.sha256.as_ref().map(|sha256| format!("<br><small>SHA-256 {sha256}</small>"));
        format!(
            "<dt>{}</dt><dd>{}{}</dd>",
            escape(&program.name),
            escape(&program.version),
            sha256.unwrap_or_default()
        )
    };
    let revision = escape(&report.machine.revision);
    let programs: String = report.programs.iter().map(program).collect();
    let command = escape(&report.command);
    format!(
        "<h2>Programs</h2><dl>{programs}<dt>source</dt><dd>{revision}</dd><dt>arguments</dt><dd>{command}</dd></dl>"
    )
}
