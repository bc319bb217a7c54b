//! Progress of a hydration: bars when standard error is a terminal, plain lines otherwise.

use super::output::size;
use hydrant_proto::{BlobProgress, Digest, JobPhase, JobState};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{
    cell::RefCell,
    collections::HashMap,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

/// Blobs with a bar of their own.
const BARS: usize = 8;
/// Least time between two plain lines that say the same but for the figures.
const LINE_EVERY: Duration = Duration::from_secs(2);

const BLOB: &str = "  {prefix:<12} {bar:20} {bytes:>10}/{total_bytes:<10}";
/// While it is not known how much there is, a bar would look full.
const UNKNOWN: &str = "  {prefix:<12} {spinner} {msg}";
const TOTAL: &str =
    "  {prefix:<12} {bar:20} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {msg}";

/// Shows the progress of one job.
pub struct Progress {
    image: String,
    view: View,
}

enum View {
    Bars(Box<Bars>),
    Lines(RefCell<Option<Told>>),
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    blobs: RefCell<HashMap<Digest, ProgressBar>>,
}

/// The last plain line.
struct Told {
    what: String,
    at: Instant,
}

impl Progress {
    pub fn new(image: &str) -> Self {
        let view = match std::io::stderr().is_terminal() {
            true => View::Bars(Box::new(Bars::new())),
            false => View::Lines(RefCell::new(None)),
        };
        Self { image: image.to_owned(), view }
    }

    pub fn show(&self, state: &JobState) {
        match &self.view {
            View::Bars(bars) => bars.show(state),
            View::Lines(told) => {
                let figures = format!(
                    " {}/{} blobs, {}/{}",
                    state.blobs_done,
                    state.blobs_total,
                    size(state.bytes_done),
                    size(state.bytes_total)
                );
                self.line(told, &sentence(state), &figures, state.phase.is_final());
            }
        }
    }

    /// The server cannot tell at the moment.
    pub fn waiting(&self, why: &str) {
        match &self.view {
            View::Bars(bars) => bars.total.set_message(why.to_owned()),
            View::Lines(told) => self.line(told, why, "", false),
        }
    }

    /// Leaves the terminal as it should be.
    pub fn finish(&self) {
        if let View::Bars(bars) = &self.view {
            bars.finish();
        }
    }

    fn line(&self, told: &RefCell<Option<Told>>, what: &str, figures: &str, always: bool) {
        let mut told = told.borrow_mut();
        let news = told
            .as_ref()
            .is_none_or(|last| always || last.what != what || last.at.elapsed() >= LINE_EVERY);
        if news {
            eprintln!("{}: {what}{figures}", self.image);
            *told = Some(Told { what: what.to_owned(), at: Instant::now() });
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0).with_prefix("total").with_style(style(UNKNOWN)));
        // So that the rate falls to nothing while nothing arrives.
        total.enable_steady_tick(Duration::from_millis(250));
        Self { all, total, blobs: RefCell::default() }
    }

    fn show(&self, state: &JobState) {
        let mut bars = self.blobs.borrow_mut();
        for blob in &state.blobs {
            if let Some(bar) = self.bar(&mut bars, blob) {
                bar.set_position(blob.done);
            }
            if blob.done >= blob.size
                && let Some(bar) = bars.remove(&blob.digest)
            {
                bar.finish_and_clear();
            }
        }
        let first_figures = state.bytes_total > 0 && self.total.length() == Some(0);
        if first_figures {
            self.total.set_style(style(TOTAL));
        }
        self.total.set_length(state.bytes_total);
        self.total.set_position(state.bytes_done);
        self.total.set_message(sentence(state));
        if first_figures {
            // What had arrived before we looked says nothing about the rate.
            self.total.reset_eta();
        }
    }

    fn bar<'b>(
        &self,
        bars: &'b mut HashMap<Digest, ProgressBar>,
        blob: &BlobProgress,
    ) -> Option<&'b ProgressBar> {
        let worth_one = blob.done > 0 && blob.done < blob.size && bars.len() < BARS;
        if worth_one && !bars.contains_key(&blob.digest) {
            let name = blob.digest.hex()[..12].to_owned();
            let bar = ProgressBar::new(blob.size).with_prefix(name).with_style(style(BLOB));
            bars.insert(blob.digest.clone(), self.all.insert_before(&self.total, bar));
        }
        bars.get(&blob.digest)
    }

    fn finish(&self) {
        for bar in self.blobs.borrow().values() {
            bar.finish_and_clear();
        }
        self.total.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the template is one of ours");
    style.progress_chars("=> ")
}

/// The phase in words, with the reason when it is not going well.
fn sentence(state: &JobState) -> String {
    let reason = state.reason.as_deref().unwrap_or("no reason given");
    match state.phase {
        JobPhase::Queued => "queued".to_owned(),
        JobPhase::Running if state.blobs_total == 0 => "asking the upstream".to_owned(),
        JobPhase::Running => "fetching".to_owned(),
        JobPhase::Waiting => format!("waiting to try again: {reason}"),
        JobPhase::Done => "done".to_owned(),
        JobPhase::Obsolete => "obsolete".to_owned(),
        JobPhase::DeadLettered => format!("given up: {reason}"),
    }
}
