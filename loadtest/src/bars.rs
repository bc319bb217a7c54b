//! The figures hydrant is to reach, each a row of the table in `docs/performance.md`.

use crate::metric::{Better, Metric};
use crate::{spread::Spread, trials::Part};
use serde::{Deserialize, Serialize};

/// A figure and its bar.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    pub key: &'static str,
    pub what: &'static str,
    pub limit: Limit,
    /// `×` for ratios.
    pub unit: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// There is no bar: the value is told.
    Told,
}

const fn at_most(key: &'static str, limit: f64, unit: &'static str, what: &'static str) -> Bar {
    Bar { key, what, limit: Limit::AtMost(limit), unit }
}

const fn at_least(key: &'static str, limit: f64, unit: &'static str, what: &'static str) -> Bar {
    Bar { key, what, limit: Limit::AtLeast(limit), unit }
}

/// Within one per cent of once.
pub const HERD_BYTES: Bar =
    at_most("herd-bytes", 1.01, "×", "herd of 50 cold clients: upstream bytes / image bytes");
pub const HERD_GETS: Bar =
    at_most("herd-gets", 1.0, "GETs", "herd of 50 cold clients: GETs of one blob or manifest");
pub const HERD_MANY_BYTES: Bar =
    at_most("herd-many-bytes", 1.01, "×", "herd of 200 cold clients: upstream bytes / image bytes");
pub const HERD_MANY_GETS: Bar = at_most(
    "herd-many-gets",
    1.0,
    "GETs",
    "herd of 200 cold clients: GETs of one blob or manifest",
);
pub const HERD_ONE: Bar = at_most(
    "herd-one",
    1.01,
    "×",
    "herd at one hydrant up, small layers: upstream bytes / image bytes",
);
pub const COLD_SHAPED: Bar =
    at_most("cold-shaped", 1.02, "×", "cold pull, 20 ms and 100 MB/s a connection: wall / direct");
pub const COLD_SHAPED_S3: Bar =
    at_most("cold-shaped-s3", 1.1, "×", "the same, stored on S3: wall / direct");
pub const COLD_LARGE: Bar = at_most(
    "cold-large",
    0.6,
    "×",
    "cold 2 GiB layer, 20 ms and 100 MB/s a connection: wall / direct",
);
pub const COLD_SLOW: Bar = at_most(
    "cold-slow",
    0.5,
    "×",
    "cold 512 MiB layer in parallel ranges, 20 MB/s a connection: wall / direct",
);
pub const COLD_BARE: Bar =
    at_most("cold-bare", 1.5, "×", "cold pull, bare loopback: wall / direct");
pub const COLD_BARE_S3: Bar =
    at_most("cold-bare-s3", 2.5, "×", "the same, stored on S3: wall / direct");
pub const COLD_FIRST_BYTE: Bar =
    at_most("cold-first-byte", 5.0, "ms", "first byte of a cold blob: later than direct");
pub const WARM_MANIFEST: Bar =
    at_least("warm-manifest", 0.6, "×", "warm manifest by tag: requests/s / nginx static");
pub const WARM_SMALL: Bar =
    at_least("warm-small", 0.9, "×", "warm blob of 1 MiB: requests/s / nginx static");
pub const WARM_LARGE: Bar =
    at_least("warm-large", 0.95, "×", "warm large blob: MB/s / nginx static");
pub const WARM_CPU: Bar =
    at_most("warm-cpu", 1.0, "×", "warm large blob: CPU per GB / stock registry");
pub const HYDRATE: Bar =
    at_least("hydrate", 2.0, "×", "hydration into a directory, one importer: MB/s / skopeo copy");
pub const HYDRATE_S3: Bar = at_least(
    "hydrate-s3",
    0.9,
    "×",
    "hydration into S3, one importer: MB/s / raw multipart writes",
);
pub const PIPELINE_SYNCED: Bar = at_least(
    "pipeline-synced",
    200.0,
    "jobs/s",
    "tiny images from miss to webhook, every write of the bus synced",
);
pub const PIPELINE_DEFAULT: Bar =
    at_least("pipeline-default", 600.0, "jobs/s", "the same with the bus's default flush");
pub const SCALE: Bar =
    at_least("scale", 7.0, "×", "8 importers / 1 on an upstream bound by latency: images/s");
pub const MEMORY_LARGE: Bar =
    at_most("memory-large", 64.0, "MiB", "peak memory of a process, cold 2 GiB layer");
pub const MEMORY_STREAMS: Bar = at_most(
    "memory-streams",
    256.0,
    "MiB",
    "peak memory of a process, 500 concurrent cold streams",
);
pub const BROWNOUT_BLACK_HOLE: Bar = at_most(
    "brownout-black-hole",
    1.1,
    "×",
    "p99 of warm traffic while another upstream is a black hole / quiet",
);
pub const BROWNOUT_HERD: Bar =
    at_most("brownout-herd", 1.1, "×", "p99 of warm traffic while a herd is cold / quiet");
pub const IDLE_MEMORY: Bar = at_most("idle-memory", 40.0, "MiB", "idle hydrant up: memory");
pub const IDLE_CPU: Bar = at_most("idle-cpu", 0.01, "cores", "idle hydrant up: CPU");
pub const IDLE_BUS: Bar = Bar {
    key: "idle-bus",
    what: "idle hydrant up: memory of the nats-server beside it",
    limit: Limit::Told,
    unit: "MiB",
};
pub const IDLE_MESSAGES: Bar = Bar {
    key: "idle-messages",
    what: "idle hydrant up: messages of the bus",
    limit: Limit::Told,
    unit: "/s",
};

/// A bar with what was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub key: String,
    pub what: String,
    pub unit: String,
    pub limit: Limit,
    /// Of each round.
    pub samples: Vec<f64>,
    /// The same figure of others in the same rounds.
    pub others: Vec<Other>,
    /// Why there are no samples, or fewer than rounds.
    pub failure: Option<String>,
    /// Rounds in which what is judged failed, whatever the others came to.
    #[serde(default)]
    pub failed_rounds: usize,
    /// Whether samples are differences, which may be zero and are not to be divided.
    #[serde(default)]
    pub is_difference: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Other {
    pub name: String,
    pub samples: Vec<f64>,
    pub failure: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Reached,
    Missed,
    /// What is judged failed in some round: a speed at which answers go wrong is none.
    Failed,
    /// Nothing to judge, or no bar.
    Told,
    NotMeasured,
}

impl Limit {
    pub fn better(self) -> Better {
        match self {
            Self::AtMost(_) | Self::Told => Better::Lower,
            Self::AtLeast(_) => Better::Higher,
        }
    }

    /// `≤ 1.02`.
    pub fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {limit}"),
            Self::AtLeast(limit) => format!("≥ {limit}"),
            Self::Told => "reported".to_owned(),
        }
    }
}

impl Figure {
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(&self.samples)
    }

    /// By the median, if every round went well.
    pub fn verdict(&self) -> Verdict {
        match (self.spread(), self.limit) {
            _ if self.failed_rounds > 0 => Verdict::Failed,
            (None, _) => Verdict::NotMeasured,
            (Some(_), Limit::Told) => Verdict::Told,
            (Some(spread), Limit::AtMost(limit)) if spread.median <= limit => Verdict::Reached,
            (Some(spread), Limit::AtLeast(limit)) if spread.median >= limit => Verdict::Reached,
            (Some(_), Limit::AtMost(_) | Limit::AtLeast(_)) => Verdict::Missed,
        }
    }
}

impl Bar {
    pub fn figure(self, samples: Vec<f64>) -> Figure {
        Figure {
            key: self.key.to_owned(),
            what: self.what.to_owned(),
            unit: self.unit.to_owned(),
            limit: self.limit,
            samples,
            others: Vec::new(),
            failure: None,
            failed_rounds: 0,
            is_difference: false,
        }
    }

    /// `contestant` by `reference` in each round of `part`, and all others likewise.
    pub fn ratio(self, part: &Part, contestant: &str, reference: &str, metric: Metric) -> Figure {
        let compared = |name: &str| part.ratios(name, reference, metric);
        self.compare(part, contestant, &[contestant, reference], compared)
    }

    /// The same as a difference.
    pub fn difference(self, part: &Part, name: &str, reference: &str, metric: Metric) -> Figure {
        let compared = |name: &str| part.differences(name, reference, metric);
        let figure = self.compare(part, name, &[name, reference], compared);
        Figure { is_difference: true, ..figure }
    }

    /// The metric itself, and that of all others.
    pub fn value(self, part: &Part, contestant: &str, metric: Metric) -> Figure {
        self.compare(part, contestant, &[contestant], |name| part.samples(name, metric))
    }

    fn compare(
        self,
        part: &Part,
        contestant: &str,
        not_others: &[&str],
        samples: impl Fn(&str) -> Vec<f64>,
    ) -> Figure {
        let names = part.contestants.iter().filter(|name| !not_others.contains(&name.as_str()));
        let other = |name: &String| Other {
            name: name.clone(),
            samples: samples(name),
            failure: part.failure(name).map(str::to_owned),
        };
        let failure = not_others.iter().find_map(|name| {
            let why = part.failure(name)?;
            Some(format!("{name}: {why}"))
        });
        Figure {
            others: names.map(other).collect(),
            failure,
            failed_rounds: part.failures(contestant),
            ..self.figure(samples(contestant))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metric::Values, trials::Outcome};

    #[test]
    fn a_failed_round_is_no_success_and_that_of_a_peer_no_failure() {
        let measured = |rate| Outcome::Measured(Values::from([(Metric::Rate, rate)]));
        let mut part = Part::default();
        for round in [0, 1] {
            part.add(round, "hydrant", measured(9.0));
            part.add(round, "peer", measured(1.0));
        }
        let verdict = |part: &Part| SCALE.ratio(part, "hydrant", "peer", Metric::Rate).verdict();
        part.add(2, "peer", Outcome::Failed("it ended".to_owned()));
        assert_eq!(verdict(&part), Verdict::Reached);
        part.add(2, "hydrant", Outcome::Failed("3 of 50 pulls failed".to_owned()));
        assert_eq!(verdict(&part), Verdict::Failed);
        let figure = SCALE.value(&part, "hydrant", Metric::Rate);
        assert_eq!(figure.failure.as_deref(), Some("hydrant: 3 of 50 pulls failed"));
        assert_eq!((figure.samples.len(), figure.verdict()), (2, Verdict::Failed));
    }

    #[test]
    fn the_median_decides_and_nothing_measured_is_no_success() {
        let verdict = |bar: Bar, samples: &[f64]| bar.figure(samples.to_vec()).verdict();
        assert_eq!(verdict(HERD_GETS, &[1.0, 1.0, 3.0]), Verdict::Reached);
        assert_eq!(verdict(HERD_GETS, &[1.0, 2.0, 3.0]), Verdict::Missed);
        assert_eq!(verdict(SCALE, &[7.1]), Verdict::Reached);
        assert_eq!(verdict(SCALE, &[]), Verdict::NotMeasured);
        assert_eq!(verdict(IDLE_MESSAGES, &[1.0]), Verdict::Told);
    }
}
