//! Resources: what a platform team writes down. Upstreams, credential sets, cache rules and
//! webhooks are parsed, checked against each other and compiled into a [`Table`] that answers, for
//! a downstream repository, which rule and upstream serve it. Pure: no IO, no clock.

mod check;
mod duration;
mod fingerprint;
mod freshness;
mod private;
mod resources;
mod size;
mod table;
mod tag_pattern;
mod written_url;

pub use check::{LIMITS, Limits, Problem, Problems};
pub use duration::Span;
pub use fingerprint::fingerprint;
pub use freshness::{Checks, Due, Freshness, TagTerms, WhenGone};
pub use resources::{
    Caps, Credential, Delivery, Kind, Name, Parallel, Platforms, Resource, Resources, Rule, Secret,
    Upstream, Webhook,
};
pub use size::ByteSize;
pub use table::{Generation, Route, Table};
pub use tag_pattern::TagPattern;
