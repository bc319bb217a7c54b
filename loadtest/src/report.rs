//! What a run leaves: one document, written as JSON, as a page and as a table for the terminal.

pub mod compare;
mod html;
mod machine;
mod plot;
mod terminal;

pub use machine::{Machine, Program};

use crate::{arguments::Options, bars::Figure, trials::Part};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Raised when the document changes so that older ones cannot be read.
const SCHEMA: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    schema: u32,
    pub started: Timestamp,
    pub took_s: f64,
    pub command: String,
    pub effort: String,
    pub machine: Machine,
    pub programs: Vec<Program>,
    pub scenarios: Vec<Section>,
}

/// What one scenario brought.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Section {
    pub scenario: String,
    pub about: String,
    pub settings: BTreeMap<String, String>,
    pub ended: Ended,
    pub took_s: f64,
    pub figures: Vec<Figure>,
    pub parts: Vec<Part>,
    pub charts: Vec<Chart>,
    /// What a reader has to know, as sentences.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    #[default]
    Complete,
    /// By Ctrl-C; what was measured until then is there.
    Interrupted,
    OutOfTime,
    Failed(String),
}

/// Lines over time or another quantity.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Chart {
    pub title: String,
    /// Of the horizontal axis.
    pub across: String,
    /// Of the vertical axis.
    pub unit: String,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Ended {
    pub fn text(&self) -> String {
        match self {
            Self::Complete => "complete".to_owned(),
            Self::Interrupted => "interrupted".to_owned(),
            Self::OutOfTime => "out of time".to_owned(),
            Self::Failed(why) => format!("failed: {why}"),
        }
    }
}

impl Section {
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    /// Charts of the same title are replaced: the last round is shown.
    pub fn put_charts(&mut self, charts: Vec<Chart>) {
        for chart in charts {
            self.charts.retain(|held| held.title != chart.title);
            self.charts.push(chart);
        }
    }

    /// Puts a line into the chart of this title, in the place of one that has its name.
    pub fn put_line(&mut self, chart: Chart, name: &str, points: Vec<(f64, f64)>) {
        let held = self.charts.iter().find(|held| held.title == chart.title);
        let mut chart = held.cloned().unwrap_or(chart);
        chart.lines.retain(|line| line.name != name);
        self.put_charts(vec![chart.line(name, points)]);
    }

    /// Adds a sentence once.
    pub fn note(&mut self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        if !self.notes.contains(&sentence) {
            self.notes.push(sentence);
        }
    }
}

impl Chart {
    pub fn new(title: &str, across: &str, unit: &str) -> Self {
        Self {
            title: title.to_owned(),
            across: across.to_owned(),
            unit: unit.to_owned(),
            lines: Vec::new(),
        }
    }

    pub fn line(mut self, name: &str, points: Vec<(f64, f64)>) -> Self {
        self.lines.push(Line { name: name.to_owned(), points });
        self
    }
}

impl Report {
    pub fn new(options: &Options) -> Self {
        Self {
            schema: SCHEMA,
            started: Timestamp::now(),
            took_s: 0.0,
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            effort: options.effort().name().to_owned(),
            machine: Machine::read(),
            programs: machine::programs(options.is_external()),
            scenarios: Vec::new(),
        }
    }

    /// The table for the terminal.
    pub fn text(&self) -> String {
        terminal::text(self)
    }

    /// Writes `report.json` and `report.html` into `directory`.
    pub fn write(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let json = serde_json::to_string_pretty(self).context("write the report as JSON")?;
        let files = [("report.json", json), ("report.html", html::page(self))];
        let write = |(name, text): (&str, String)| {
            let file = directory.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            Ok(file)
        };
        files.into_iter().map(write).collect()
    }

    /// Reads what [`Report::write`] wrote: the file, or the directory it lies in.
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let report: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no report of this harness", file.display()))?;
        ensure!(
            report.schema == SCHEMA,
            "{} has schema {}, this harness reads {SCHEMA}",
            file.display(),
            report.schema
        );
        Ok(report)
    }

    pub fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.scenarios.iter().flat_map(|section| &section.figures)
    }
}
