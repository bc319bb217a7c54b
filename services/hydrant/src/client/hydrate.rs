//! `hydrate IMAGE`: asks, and with `--wait` follows the job until it is done.

use super::{
    api::{Api, encoded},
    failure::Failure,
    output,
    progress::Progress,
};
use crate::cli::Hydrate;
use hydrant_boot::Schedule;
use hydrant_proto::{FailureClass, JobPhase, JobState, Lane};
use hydrant_rules::Span;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// One long poll.
const POLL: &str = "25s";
/// Pause between two looks at a job that changes all the time.
const PACE: Duration = Duration::from_millis(100);
const AGAIN: Schedule = Schedule::doubling(Duration::from_millis(250), Duration::from_secs(5));

#[derive(Deserialize)]
struct Accepted {
    id: String,
    image: String,
    outcome: String,
}

#[derive(Deserialize)]
struct Seen {
    revision: u64,
    #[serde(flatten)]
    state: JobState,
}

/// What is known about an image apart from its job.
#[derive(Deserialize)]
struct Known {
    hydrated: bool,
    dead_letter: Option<Value>,
}

/// Something to be asked for that the API answers with a job.
pub struct Order {
    pub path: &'static str,
    pub body: Value,
    /// How long to follow the job; not at all when absent.
    pub wait: Option<Span>,
}

pub async fn run(flags: Hydrate) -> Result<(), Failure> {
    // Somebody who waits is served like a client that pulls, and joins the job of its miss.
    let lane = if flags.wait { Lane::Interactive } else { Lane::Background };
    let body = json!({ "image": flags.image, "platforms": flags.platforms, "lane": lane });
    let wait = flags.wait.then_some(flags.timeout);
    place(&Api::new(flags.server)?, &Order { path: "/hydrations", body, wait }).await
}

/// Asks for it, and follows the job if that is wanted.
pub async fn place(api: &Api, order: &Order) -> Result<(), Failure> {
    let accepted = request(api, order).await?;
    let Some(timeout) = order.wait else {
        let text = format!(
            "{} is {}; follow it with: hydrant status {}\n",
            accepted.image,
            accepted.outcome.replace('-', " "),
            accepted.image
        );
        return output::line(&text);
    };
    let progress = Progress::new(&accepted.image);
    let waiting = tokio::time::timeout(timeout.0, follow(api, order, &accepted, &progress));
    let ended = waiting.await;
    progress.finish();
    match ended {
        Ok(Ok(state)) => conclude(&accepted, &state),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::TimedOut(format!(
            "{} is not local after {}; it goes on: hydrant status {}",
            accepted.image, timeout, accepted.image
        ))),
    }
}

async fn request(api: &Api, order: &Order) -> Result<Accepted, Failure> {
    api.post(order.path, &order.body).await
}

/// Follows the job to its end. The server may go and come back, and may have forgotten the job:
/// then what is in storage decides.
async fn follow(
    api: &Api,
    order: &Order,
    accepted: &Accepted,
    progress: &Progress,
) -> Result<Option<JobState>, Failure> {
    let (mut after, mut failures) = (String::new(), 0);
    loop {
        let looked = Instant::now();
        let path = format!("/hydrations/{}?wait={POLL}{after}", accepted.id);
        match api.get::<Seen>(&path).await {
            Ok(seen) => {
                (after, failures) = (format!("&after={}", seen.revision), 0);
                progress.show(&seen.state);
                if seen.state.phase.is_final() {
                    return Ok(Some(seen.state));
                }
                tokio::time::sleep_until(looked + PACE).await;
            }
            Err(failure) if failure.is_missing() => {
                after = String::new();
                if settled(api, accepted).await? {
                    return Ok(None);
                }
                failures += 1;
                sleep(AGAIN.delay(failures)).await;
                request(api, order).await?;
            }
            Err(failure) if failure.may_pass() => {
                failures += 1;
                progress.waiting(&failure.to_string());
                sleep(AGAIN.delay(failures)).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Whether the image is local, or given up.
async fn settled(api: &Api, accepted: &Accepted) -> Result<bool, Failure> {
    let known: Known = api.get(&format!("/status?image={}", encoded(&accepted.image))).await?;
    match known.dead_letter {
        Some(letter) => {
            let reason = letter["reason"].as_str().unwrap_or("it was given up");
            Err(Failure::Failed(format!("{}: {reason}", accepted.image)))
        }
        None => Ok(known.hydrated),
    }
}

fn conclude(accepted: &Accepted, state: &Option<JobState>) -> Result<(), Failure> {
    let image = &accepted.image;
    let Some(state) = state else { return output::line(&format!("{image} is local\n")) };
    match state.phase {
        JobPhase::Done => {
            let digest = state.digest.as_ref().map(|d| format!("@{d}")).unwrap_or_default();
            let (blobs, size) = (state.blobs_total, output::size(state.bytes_total));
            output::line(&format!("{image} is local: {blobs} blobs, {size} {digest}\n"))
        }
        JobPhase::Obsolete => {
            Err(Failure::Failed(format!("{image}: its rule was changed meanwhile; ask again")))
        }
        _ => Err(Failure::Failed(given_up(image, state))),
    }
}

fn given_up(image: &str, state: &JobState) -> String {
    let class = state.class.map_or("unknown class", FailureClass::as_str);
    let reason = state.reason.as_deref().unwrap_or("no reason was recorded");
    let next = state.class.map_or("see hydrant dead-letter list", advice);
    let id = format!("job-{}", state.id());
    format!(
        "{image} was given up after {} attempts ({class}): {reason}\n       {next}\n       \
         then: hydrant dead-letter retry {id}",
        state.attempts
    )
}

/// What to do about a failure of this class.
fn advice(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Denied => {
            "the upstream does not let us have it: check the credential set and its permissions"
        }
        FailureClass::Unknown => {
            "the upstream does not have it: check the name, the tag, and the rule's repository"
        }
        FailureClass::UpstreamAuth => {
            "the credential was refused: check where it points (hydrant credential list) and that it is valid"
        }
        FailureClass::UpstreamLimit => {
            "the upstream limits our requests: wait, or use a credential with a higher limit"
        }
        FailureClass::UpstreamDown => {
            "the upstream does not answer: check its endpoint (hydrant upstream list) and the network"
        }
        FailureClass::UpstreamLoop => {
            "the upstream leads back to this hydrant: name the registry itself as its endpoint (hydrant upstream get)"
        }
        FailureClass::BreakerOpen => {
            "the upstream failed often and is left alone for a while: wait"
        }
        FailureClass::Storage => {
            "our storage failed: check it, and /readyz?verbose of the importers"
        }
        FailureClass::Integrity => {
            "the upstream's content does not agree with its digest: tell whoever runs it"
        }
        FailureClass::Unsupported => {
            "this kind of content cannot be hydrated: have the image built in a current format"
        }
    }
}
