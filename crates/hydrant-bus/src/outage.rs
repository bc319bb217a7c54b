//! Tells people that NATS cannot be reached: at the first failure, once a minute from then on, and
//! when it is back. The client tries again several times a second, far too often to read.

use std::time::{Duration, Instant};

/// Least time between two warnings.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// One connection's failures to reach its servers.
#[derive(Debug)]
pub struct Outage {
    /// Host and port of each server, never a login.
    servers: String,
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Outage {
    pub fn new(servers: String) -> Self {
        Self { servers, since: None, told: None }
    }

    /// An attempt failed, at `now`.
    pub fn failed(&mut self, now: Instant, reason: &str) {
        let since = *self.since.get_or_insert(now);
        if self.told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            return;
        }
        self.told = Some(now);
        let (servers, down_secs) = (&self.servers, now.duration_since(since).as_secs());
        tracing::warn!(%servers, down_secs, reason, "nats cannot be reached; trying on");
    }

    /// An attempt succeeded, at `now`.
    pub fn over(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            let (servers, down_secs) = (&self.servers, now.duration_since(since).as_secs());
            tracing::info!(%servers, down_secs, "nats is reached again");
        }
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fmt,
        sync::{Arc, Mutex},
    };
    use tracing::{
        Event, Level, Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
    };

    /// Keeps the level and the fields of what is logged.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<(Level, String)>>>);

    struct Text<'a>(&'a mut String);

    impl Visit for Text<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.push_str(&format!("{field}={value:?} "));
        }
    }

    impl Subscriber for Heard {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut text = String::new();
            event.record(&mut Text(&mut text));
            self.0.lock().unwrap().push((*event.metadata().level(), text));
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    /// What is logged while `act` runs.
    fn heard(act: impl FnOnce()) -> Vec<(Level, String)> {
        let heard = Heard::default();
        tracing::subscriber::with_default(heard.clone(), act);
        heard.0.lock().unwrap().clone()
    }

    #[test]
    fn an_outage_is_told_once_a_minute_and_its_end_once() {
        let (mut outage, began) = (Outage::new("nats:4222".to_owned()), Instant::now());
        let at = |secs| began + Duration::from_secs(secs);
        let told = heard(|| {
            outage.over(at(0));
            for secs in 0..=119 {
                outage.failed(at(secs), "connection refused");
            }
            outage.over(at(120));
            outage.over(at(121));
            outage.failed(at(122), "connection refused");
        });
        let levels: Vec<Level> = told.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [Level::WARN, Level::WARN, Level::INFO, Level::WARN], "{told:?}");
        assert!(told.iter().all(|(_, text)| text.contains("servers=nats:4222")), "{told:?}");
        assert!(told[1].1.contains("down_secs=60"), "{told:?}");
        assert!(told[2].1.contains("down_secs=120"), "{told:?}");
    }

    #[test]
    fn the_connection_tells_of_its_outage() {
        use async_nats::{ClientError, Event};
        let link = crate::link::Link::new("nats:4222".to_owned());
        let failed = || Event::ClientError(ClientError::Other("connection refused".to_owned()));
        let told = heard(|| {
            for event in [failed(), failed(), Event::Connected, failed(), Event::Disconnected] {
                link.observe(&event);
            }
        });
        let levels: Vec<Level> = told.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [Level::WARN, Level::INFO], "an error of a standing link is none");
        assert!(told[0].1.contains("connection refused"), "{told:?}");
    }
}
