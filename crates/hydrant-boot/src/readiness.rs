//! Whether this process should be given work: named checks, set by whoever knows.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What a failed check means for the process as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// Not ready while it fails.
    Required,
    /// Not ready until it was fine once; after that it only shows. What is local is served
    /// without the bus, so losing it must not take a frontend out of the load balancer.
    AtStart,
    /// Only shows.
    Advisory,
}

/// The checks of one process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    draining: bool,
    checks: BTreeMap<&'static str, Entry>,
}

#[derive(Debug)]
struct Entry {
    importance: Importance,
    /// Whether it was fine at least once.
    seen_ok: bool,
    problem: Option<String>,
}

/// One named check; whoever holds it says how it stands.
#[derive(Clone, Debug)]
pub struct Check {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a check that fails until it is said to be fine.
    pub fn check(&self, name: &'static str, importance: Importance) -> Check {
        let problem = Some("not known yet".to_owned());
        self.state().checks.insert(name, Entry { importance, seen_ok: false, problem });
        Check { name, readiness: self.clone() }
    }

    /// Not ready from now on, whatever the checks say.
    pub fn begin_drain(&self) {
        self.state().draining = true;
    }

    pub fn is_ready(&self) -> bool {
        let state = self.state();
        !state.draining && state.checks.values().all(Entry::lets_pass)
    }

    /// One line per check: `[+]` fine, `[!]` failing but not decisive, `[-]` failing.
    pub fn report(&self) -> String {
        let state = self.state();
        let mut text = String::new();
        if state.draining {
            text.push_str("[-] drain: the process is stopping\n");
        }
        for (name, entry) in &state.checks {
            // Writing to a string cannot fail.
            let _ = match &entry.problem {
                None => writeln!(text, "[+] {name}: ok"),
                Some(problem) if entry.lets_pass() => writeln!(text, "[!] {name}: {problem}"),
                Some(problem) => writeln!(text, "[-] {name}: {problem}"),
            };
        }
        text
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn lets_pass(&self) -> bool {
        match self.importance {
            Importance::Required => self.problem.is_none(),
            Importance::AtStart => self.seen_ok,
            Importance::Advisory => true,
        }
    }
}

impl Check {
    pub fn ok(&self) {
        self.set(None);
    }

    /// `problem` is for people: what is wrong and what to do.
    pub fn fail(&self, problem: impl Into<String>) {
        self.set(Some(problem.into()));
    }

    fn set(&self, problem: Option<String>) {
        let mut state = self.readiness.state();
        let entry = state.checks.get_mut(self.name).expect("a check is in the map that made it");
        entry.seen_ok |= problem.is_none();
        entry.problem = problem;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn importance_decides_what_a_failure_means() {
        let readiness = Readiness::default();
        let (bus, store) = (
            readiness.check("bus", Importance::AtStart),
            readiness.check("store", Importance::Required),
        );
        readiness.check("collector", Importance::Advisory).fail("gone");
        assert!(!readiness.is_ready());
        bus.ok();
        store.ok();
        assert!(readiness.is_ready());
        bus.fail("not connected");
        assert!(readiness.is_ready());
        assert_eq!(
            readiness.report(),
            "[!] bus: not connected\n[!] collector: gone\n[+] store: ok\n"
        );
        store.fail("no bucket");
        assert!(!readiness.is_ready());
        assert!(readiness.report().contains("[-] store: no bucket"));
    }

    #[test]
    fn draining_is_final() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        readiness.begin_drain();
        assert!(!readiness.is_ready());
        assert!(readiness.report().starts_with("[-] drain"));
    }
}
