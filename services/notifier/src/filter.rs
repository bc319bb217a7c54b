//! Which events a webhook hears of. Pure.

use hydrant_proto::{Event, EventKind};
use hydrant_rules::Webhook;

/// Whether `webhook` is to be told of `event`.
///
/// An event addressed to one webhook goes there whatever its filters say, and nowhere else; a test
/// is always addressed. A filter on repositories keeps out the events that name none, such as
/// those of a breaker: whoever asked for one team's images is not told of all upstreams.
pub fn wants(webhook: &Webhook, event: &Event) -> bool {
    match &event.webhook {
        Some(addressee) => addressee == webhook.name.as_str(),
        None => {
            event.kind != EventKind::WebhookTest
                && any_of(&webhook.events, |pattern| is_kind(pattern, event.kind))
                && any_of(&webhook.repositories, |pattern| is_about(pattern, event))
        }
    }
}

/// No pattern at all allows everything.
fn any_of(patterns: &[String], fits: impl Fn(&str) -> bool) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| fits(pattern))
}

/// `image.hydrated`, `hydration.*` or `*`.
fn is_kind(pattern: &str, kind: EventKind) -> bool {
    matches(pattern, kind.as_str())
}

/// `lab/app`, `lab/*` or `*`.
fn is_about(pattern: &str, event: &Event) -> bool {
    let repository = event.data.repository.as_ref();
    repository.is_some_and(|repository| matches(pattern, repository.as_str()))
}

/// Patterns were checked when they were written: a `*` stands only at the end, alone or behind a
/// separator, so that `lab/*` takes no `lab-evil/x`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.len() > prefix.len() && text.starts_with(prefix),
        None => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::EventData;

    fn webhook(events: &[&str], repositories: &[&str]) -> Webhook {
        serde_json::from_value(serde_json::json!({
            "name": "ci",
            "url": "https://ci.example/hook",
            "secret": { "env": "HOOK_SECRET" },
            "events": events,
            "repositories": repositories,
        }))
        .unwrap()
    }

    fn event(kind: EventKind, repository: Option<&str>) -> Event {
        let repository = repository.map(|name| name.parse().unwrap());
        let data = EventData { repository, ..EventData::default() };
        Event::new(kind, "2026-11-23T12:00:00Z".parse().unwrap(), data)
    }

    /// Patterns of events and repositories, the event's kind and repository, whether it is wanted.
    type Row<'t> = (&'t [&'t str], &'t [&'t str], EventKind, Option<&'t str>, bool);

    #[test]
    fn events_and_repositories_are_filtered() {
        use EventKind::{BreakerOpened, HydrationDeadLettered, HydrationFailed, ImageHydrated};
        let lab = Some("lab/app");
        let table: [Row; 17] = [
            (&[], &[], ImageHydrated, lab, true),
            (&[], &[], BreakerOpened, None, true),
            (&["*"], &["*"], ImageHydrated, lab, true),
            (&["image.hydrated"], &[], ImageHydrated, lab, true),
            (&["image.hydrated"], &[], HydrationFailed, lab, false),
            (&["hydration.*"], &[], HydrationFailed, lab, true),
            (&["hydration.*"], &[], HydrationDeadLettered, lab, true),
            (&["hydration.*"], &[], ImageHydrated, lab, false),
            (&["image.hydrated", "hydration.*"], &[], HydrationFailed, lab, true),
            (&["upstream.*"], &[], BreakerOpened, None, true),
            (&[], &["lab/*"], ImageHydrated, lab, true),
            (&[], &["lab/*"], ImageHydrated, Some("lab/team/app"), true),
            (&[], &["lab/*"], ImageHydrated, Some("lab-evil/app"), false),
            (&[], &["lab/*"], ImageHydrated, Some("lab"), false),
            (&[], &["lab/app"], ImageHydrated, lab, true),
            (&[], &["lab/app"], ImageHydrated, Some("lab/app2"), false),
            (&[], &["lab/*"], BreakerOpened, None, false),
        ];
        for (events, repositories, kind, repository, expected) in table {
            let verdict = wants(&webhook(events, repositories), &event(kind, repository));
            assert_eq!(verdict, expected, "{events:?} {repositories:?} {kind} {repository:?}");
        }
    }

    #[test]
    fn an_addressed_event_goes_to_its_addressee_alone() {
        let now = "2026-11-23T12:00:00Z".parse().unwrap();
        let ci = webhook(&["image.hydrated"], &["lab/*"]);
        assert!(wants(&ci, &Event::test("ci", now)));
        assert!(!wants(&ci, &Event::test("other", now)));
        let again = event(EventKind::ImageHydrated, Some("lab/app")).addressed_to("other");
        assert!(!wants(&ci, &again));
    }

    #[test]
    fn a_test_without_addressee_goes_nowhere() {
        assert!(!wants(&webhook(&[], &[]), &event(EventKind::WebhookTest, None)));
    }
}
