//! JetStream and KV: topology, publish, consume, acks, the resource document.
//!
//! The bus is a hint: losing all of it loses no content. Everything here works when NATS is down
//! at the start and when it comes and goes; calls that need it then fail at once, loops and
//! streams wait.
//!
//! - Jobs: [`Bus::publish_job`] queues each once; [`consume`] is the only place that settles them.
//! - Events: [`Bus::publish_event`]; one durable [`Bus::event_deliveries`] per webhook;
//!   [`Bus::follow_events`] for who just listens.
//! - Documents: [`Bus::resources`] by compare-and-set, [`Bus::job_states`], the delivery log.
//! - Leases and small shared state with a lifetime: [`Bus::shared_state`].
//!
//! No other crate knows `async-nats`.

mod bus;
mod claim;
mod config;
mod consume;
mod consumers;
mod deliveries;
mod error;
mod events;
mod headers;
mod held;
mod kv;
mod link;
mod outage;
mod peers;
mod publish;
mod received;
mod resources;
mod settle;
mod shared;
mod source;
mod states;
mod topology;
mod unsettled;

pub use bus::Bus;
pub use config::{BusConfig, Credentials};
pub use consume::{ConsumeOptions, Consumer, consume};
pub use consumers::QueueDepth;
pub use error::{BusError, Retry};
pub use held::{Held, Lost};
pub use peers::Told;
pub use publish::Published;
pub use received::{Consumed, Delivery, Job, Received, Rejected, Verdict};
pub use resources::{ResourceStore, Revision, StoredDocument};
pub use shared::{Claimed, Entry, SharedState};
pub use states::JobStates;
