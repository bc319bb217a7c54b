//! Real servers and scripted fakes for tests: nats-server, SeaweedFS, docker-registry, a fake
//! upstream, a webhook sink, an OTLP receiver, a fault proxy, and hydrant itself as a process.
//!
//! Every part takes its own ports and directories and is gone when its value is dropped, also when
//! the test process is killed. Parts answer "when is it ready" themselves; tests wait for
//! conditions with [`until`] and never sleep for a fixed time.

// A test kit reports what went wrong by panicking: its caller is the test.
#![allow(clippy::panic)]

pub mod binaries;
mod client;
mod content;
mod hydrant;
mod image;
mod nats;
mod otlp;
pub mod pattern;
mod ports;
pub mod process;
mod proxy;
mod registry;
mod request;
mod s3_front;
mod seaweed;
mod server;
mod skopeo;
mod tls;
mod upstream;
mod wait;
mod webhook;

pub use content::Content;
pub use hydrant::{Hydrant, HydrantOptions};
pub use image::{Blob, Image, ImageBuilder};
pub use nats::{NatsOptions, NatsServer};
pub use otlp::{OtlpReceiver, Span};
pub use ports::PortLease;
pub use process::{Finished, Process};
pub use proxy::{Flow, Link, Proxy};
pub use registry::{Access, Registry};
pub use request::Request;
pub use s3_front::{S3Front, Spoiled, Spoiling, Spoilt};
pub use seaweed::SeaweedFs;
pub use skopeo::{Pull, Pulled, Skopeo};
pub use tls::TestCertificate;
pub use upstream::{Bearer, FakeUpstream, Fault, Gate, Injected};
pub use wait::until;
pub use webhook::{Reply, WebhookRequest, WebhookSink};
