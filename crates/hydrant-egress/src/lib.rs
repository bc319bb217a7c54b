//! The one dialer: every outbound address is checked after DNS, at connect, on each hop.
//!
//! A request goes out through [`Egress::send`], which refuses a URL that names a forbidden
//! address outright; the resolver inside the client then drops every forbidden address a name
//! leads to, and what it leaves is what is dialled, so there is no second look-up to be deceived.
//! Redirects are never followed here: the caller takes each hop through `send` again. No proxy is
//! asked, whatever the environment says.
//!
//! What lives elsewhere: which hosts may be asked and which may see a credential
//! (`hydrant-upstream`, the notifier), and how long an answer is waited for (whoever waits).

mod address;
mod body;
mod connect;
mod dialer;
mod error;
mod resolver;

pub use address::{Reach, is_public, reach};
pub use body::{Body, Request, Response};
pub use dialer::{Egress, Policy, READ_BUFFER};
pub use error::{Broken, EgressError};
pub use resolver::{Resolve, Resolving};
