//! The one dialer: every outbound address is checked after DNS, at connect, on each hop.
//!
//! A request goes out through [`Egress::request`], which refuses a URL that names a forbidden
//! address outright; the resolver inside the client then drops every forbidden address a name
//! leads to, and what it leaves is what is dialled, so there is no second look-up to be deceived.
//! Redirects are never followed here: the caller takes each hop through `request` again.
//!
//! What lives elsewhere: which hosts may be asked and which may see a credential
//! (`hydrant-upstream`, the notifier).

mod address;
mod dialer;
mod resolver;

pub use address::{Reach, is_public, reach};
pub use dialer::{Egress, EgressError, Policy};
pub use reqwest::dns::{Addrs, Name, Resolve, Resolving};
