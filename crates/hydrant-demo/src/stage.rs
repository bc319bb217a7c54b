//! What the spectator sees: a line per step with a tick and its time, and a spinner meanwhile.

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    env, io,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Longest time for one step; the slowest takes five seconds on a laptop.
const LIMIT: Duration = Duration::from_secs(60);
/// Columns of a step's name.
const NAME_WIDTH: usize = 16;
/// Columns of what a step did, before its time.
const TEXT_WIDTH: usize = 53;

const GREEN: &str = "32";
const RED: &str = "31";
const DIM: &str = "2";

/// Standard output, and how it may be painted.
pub struct Stage {
    colours: bool,
}

/// What a step made, and the line that tells of it.
pub struct Told<T> {
    pub made: T,
    pub line: String,
}

impl<T> Told<T> {
    pub fn new(made: T, line: impl Into<String>) -> Self {
        Self { made, line: line.into() }
    }
}

impl Stage {
    pub fn new() -> Self {
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: io::stdout().is_terminal() && !plain }
    }

    /// Does `work` under a spinner and tells how it ended and how long it took.
    pub async fn step<T>(
        &self,
        name: &str,
        doing: &str,
        work: impl Future<Output = Result<Told<T>>>,
    ) -> Result<(T, Duration)> {
        let spinner = Spinner::start(name, doing);
        let done = timed(name, work).await;
        drop(spinner);
        self.tell(name, done)
    }

    /// The same for work that draws on the terminal itself.
    pub async fn drawing_step<T>(
        &self,
        name: &str,
        work: impl Future<Output = Result<Told<T>>>,
    ) -> Result<(T, Duration)> {
        let done = timed(name, work).await;
        self.tell(name, done)
    }

    fn tell<T>(
        &self,
        name: &str,
        (done, took): (Result<Told<T>>, Duration),
    ) -> Result<(T, Duration)> {
        let Told { made, line } = done?;
        let time = self.painted(DIM, &format!("{:>7}", time(took)));
        print(&format!("{} {name:NAME_WIDTH$} {line:TEXT_WIDTH$} {time}", self.tick(true)));
        Ok((made, took))
    }

    /// A line with a tick or a cross.
    pub fn verdict(&self, good: bool, text: &str) {
        print(&format!("{} {text}", self.tick(good)));
    }

    pub fn say(&self, text: &str) {
        print(text);
    }

    /// The reason why it all ends.
    pub fn complain(&self, text: &str) {
        print(&format!("{} {text}", self.tick(false)));
    }

    /// What another program wrote, set apart.
    pub fn quote(&self, whose: &str, text: &str) {
        print(&format!("\n{whose}:"));
        for line in text.lines() {
            print(&self.painted(DIM, &format!("  | {line}")));
        }
        print("");
    }

    fn tick(&self, good: bool) -> String {
        if good { self.painted(GREEN, "✓") } else { self.painted(RED, "✗") }
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A reader that went away (`| head`) misses the rest; that is no failure.
fn print(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Does `work` within the limit; an error names the step.
async fn timed<T>(name: &str, work: impl Future<Output = Result<T>>) -> (Result<T>, Duration) {
    let start = Instant::now();
    let done = tokio::time::timeout(LIMIT, work).await;
    let done = done.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {LIMIT:?}")));
    (done.with_context(|| name.to_owned()), start.elapsed())
}

/// A duration for people: `0.31 s`, `12.4 s`.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.2} s") } else { format!("{seconds:.1} s") }
}

/// Drawn on standard error, and not at all when that is no terminal; gone when dropped.
struct Spinner(ProgressBar);

impl Spinner {
    fn start(name: &str, doing: &str) -> Self {
        let style = ProgressStyle::with_template("{spinner} {prefix:16} {msg} {elapsed}");
        let bar = ProgressBar::new_spinner().with_prefix(name.to_owned());
        bar.set_style(style.expect("the template is one of ours"));
        bar.set_message(doing.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
