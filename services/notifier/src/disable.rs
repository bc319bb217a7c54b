//! Turns a webhook off in the shared resources, with the reason, so that no process sends to it.

use hydrant_boot::{EditError, Editor};
use hydrant_rules::Resources;
use jiff::Timestamp;

/// Turns webhooks off.
#[derive(Clone, Debug)]
pub struct Disabler(Editor);

/// There is nothing left to turn off.
#[derive(Debug)]
pub struct AlreadyOff;

impl Disabler {
    pub fn new(editor: Editor) -> Self {
        Self(editor)
    }

    /// Records `reason` at the webhook. One that is off already keeps its first reason, and one
    /// that was removed meanwhile stays removed; both are what was wanted.
    pub async fn disable(
        &self,
        webhook: &str,
        reason: String,
    ) -> Result<(), EditError<AlreadyOff>> {
        match self.0.edit(|resources| turned_off(resources, webhook, &reason)).await {
            Ok(_) => {
                tracing::warn!(webhook, reason, "webhook disabled");
                Ok(())
            }
            Err(EditError::Refused(AlreadyOff)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn turned_off(resources: &Resources, name: &str, reason: &str) -> Result<Resources, AlreadyOff> {
    let mut resources = resources.clone();
    let webhook = resources.webhook.iter_mut().find(|webhook| webhook.name.as_str() == name);
    match webhook {
        Some(webhook) if webhook.disabled.is_none() => webhook.disabled = Some(reason.to_owned()),
        Some(_) | None => return Err(AlreadyOff),
    }
    Ok(resources)
}

/// Why an endpoint that answered 410 is off.
pub fn gone(now: Timestamp) -> String {
    format!("the endpoint answered 410 Gone at {now:.0}; enable it again once it is back")
}

/// Why an endpoint that only failed is off.
pub fn failing(since: Timestamp) -> String {
    format!("every delivery has failed since {since:.0}; enable it again once it is repaired")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources() -> Resources {
        let text = "[[webhook]]\nname = \"ci\"\nurl = \"https://ci.example/hook\"\n\
                    secret = { env = \"HOOK_SECRET\" }\n";
        Resources::from_toml(text, std::path::Path::new("/")).unwrap()
    }

    #[test]
    fn the_first_reason_stays() {
        let off = turned_off(&resources(), "ci", "first").unwrap();
        assert_eq!(off.webhook[0].disabled.as_deref(), Some("first"));
        assert!(turned_off(&off, "ci", "second").is_err());
        assert!(turned_off(&resources(), "gone", "first").is_err());
    }

    #[test]
    fn reasons_tell_the_time_and_the_remedy() {
        let now: Timestamp = "2026-11-23T12:07:41.123Z".parse().unwrap();
        assert!(gone(now).contains("410 Gone at 2026-11-23T12:07:41Z; enable"), "{}", gone(now));
        assert!(failing(now).contains("since 2026-11-23T12:07:41Z"), "{}", failing(now));
    }
}
