//! Rounds in which everybody is measured once, one after the other.
//!
//! Contestants of a round run close together in time and never at once. Each round begins with another
//! one, so drift of the machine falls on all alike, and every second goes round the other way, so what
//! one leaves behind does not always fall on the same next. Ratios are taken within a round.

use crate::metric::{Metric, Values};
use crate::spread::Spread;
use serde::{Deserialize, Serialize};

/// What one contestant did in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    pub round: u32,
    pub contestant: String,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Measured(Values),
    /// Why there are no values.
    Failed(String),
}

/// One comparison: the same work by several contestants.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    /// What the work is.
    pub about: String,
    /// The metrics worth a column, most telling first.
    pub metrics: Vec<Metric>,
    /// Whom the first metric is compared with.
    pub reference: Option<String>,
    pub contestants: Vec<String>,
    pub trials: Vec<Trial>,
}

impl Part {
    pub fn new(name: &str, about: &str, metrics: &[Metric]) -> Self {
        Self {
            name: name.to_owned(),
            about: about.to_owned(),
            metrics: metrics.to_vec(),
            ..Self::default()
        }
    }

    pub fn against(mut self, reference: &str) -> Self {
        self.reference = Some(reference.to_owned());
        self
    }

    pub fn between(mut self, contestants: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.contestants = contestants.into_iter().map(Into::into).collect();
        self
    }

    pub fn add(&mut self, round: u32, contestant: &str, outcome: Outcome) {
        if !self.contestants.iter().any(|known| known == contestant) {
            self.contestants.push(contestant.to_owned());
        }
        self.trials.push(Trial { round, contestant: contestant.to_owned(), outcome });
    }

    /// Values of a contestant by round.
    fn rounds(&self, contestant: &str, metric: Metric) -> Vec<(u32, f64)> {
        let trials = self.trials.iter().filter(|trial| trial.contestant == contestant);
        let value = |trial: &Trial| match &trial.outcome {
            Outcome::Measured(values) => Some((trial.round, *values.get(&metric)?)),
            Outcome::Failed(_) => None,
        };
        trials.filter_map(value).collect()
    }

    pub fn samples(&self, contestant: &str, metric: Metric) -> Vec<f64> {
        self.rounds(contestant, metric).into_iter().map(|(_, value)| value).collect()
    }

    pub fn spread(&self, contestant: &str, metric: Metric) -> Option<Spread> {
        Spread::of(&self.samples(contestant, metric))
    }

    /// `contestant` by `reference`, of each round in which both were measured.
    pub fn ratios(&self, contestant: &str, reference: &str, metric: Metric) -> Vec<f64> {
        self.paired(contestant, reference, metric, |ours, theirs| ours / theirs)
    }

    /// `contestant` minus `reference`, likewise.
    pub fn differences(&self, contestant: &str, reference: &str, metric: Metric) -> Vec<f64> {
        self.paired(contestant, reference, metric, |ours, theirs| ours - theirs)
    }

    fn paired(
        &self,
        contestant: &str,
        reference: &str,
        metric: Metric,
        join: impl Fn(f64, f64) -> f64,
    ) -> Vec<f64> {
        let theirs = self.rounds(reference, metric);
        let other = |round| theirs.iter().find(|(theirs, _)| *theirs == round);
        let ours = self.rounds(contestant, metric).into_iter();
        ours.filter_map(|(round, value)| Some(join(value, other(round)?.1))).collect()
    }

    /// In how many rounds a contestant failed.
    pub fn failures(&self, contestant: &str) -> usize {
        let trials = self.trials.iter().filter(|trial| trial.contestant == contestant);
        trials.filter(|trial| matches!(trial.outcome, Outcome::Failed(_))).count()
    }

    /// Why a contestant was not measured in some round: the last reason.
    pub fn failure(&self, contestant: &str) -> Option<&str> {
        let trials = self.trials.iter().rev().filter(|trial| trial.contestant == contestant);
        trials.into_iter().find_map(|trial| match &trial.outcome {
            Outcome::Failed(why) => Some(why.as_str()),
            Outcome::Measured(_) => None,
        })
    }
}

/// The order of a round: each begins with the next one, and every second goes round the other way.
/// Were all in the same direction, everybody would always follow the same neighbour, and have what that
/// one leaves behind (unwritten pages, warm caches) in every round.
pub fn order<T: Clone>(all: &[T], round: u32) -> Vec<T> {
    let mut order = all.to_vec();
    if order.is_empty() {
        return order;
    }
    let first = round as usize % order.len();
    order.rotate_left(first);
    if round % 2 == 1 {
        order[1..].reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut part = Part::new("", "", &[Metric::Wall]);
        let measured = |wall| Outcome::Measured(Values::from([(Metric::Wall, wall)]));
        part.add(0, "a", measured(1.0));
        part.add(0, "b", measured(2.0));
        part.add(1, "b", measured(30.0));
        part.add(1, "a", measured(10.0));
        part.add(2, "b", Outcome::Failed("no disk".to_owned()));
        part.add(2, "a", measured(9.0));
        assert_eq!(part.ratios("b", "a", Metric::Wall), [2.0, 3.0]);
        assert_eq!(part.failure("b"), Some("no disk"));
        assert_eq!(part.failure("a"), None);
    }

    #[test]
    fn each_round_begins_with_another_one() {
        assert_eq!(order(&["a", "b", "c"], 0), ["a", "b", "c"]);
        assert_eq!(order(&["a", "b", "c"], 4), ["b", "c", "a"]);
        assert!(order::<u8>(&[], 3).is_empty());
    }

    #[test]
    fn nobody_follows_the_same_one_in_every_round() {
        let rounds = [0, 1, 2].map(|round| order(&["a", "b", "c"], round));
        assert_eq!(rounds, [["a", "b", "c"], ["b", "a", "c"], ["c", "a", "b"]]);
        let before = |who| {
            let place = |round: &Vec<&str>| round.iter().position(|name| *name == who);
            let before =
                rounds.iter().filter_map(|round| Some(round[place(round)?.checked_sub(1)?]));
            before.collect::<std::collections::HashSet<_>>().len()
        };
        assert_eq!([before("a"), before("b"), before("c")], [2, 1, 2].map(|n: usize| n));
    }
}
