//! The resources as they are written, in TOML or over the API. Unknown keys are refused.

use crate::{
    duration::Span,
    freshness::{TagTerms, WhenGone},
    size::ByteSize,
    written_url,
};
use hydrant_proto::Platform;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, str::FromStr};
use url::Url;

/// Everything that is configured, as one document. In TOML: `[[upstream]]`, `[[credential]]`,
/// `[[rule]]`, `[[webhook]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstream: Vec<Upstream>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credential: Vec<Credential>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<Rule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhook: Vec<Webhook>,
}

/// The kinds of resource, as the API and the command line spell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Upstream,
    Credential,
    Rule,
    Webhook,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Upstream, Self::Credential, Self::Rule, Self::Webhook];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Credential => "credential",
            Self::Rule => "rule",
            Self::Webhook => "webhook",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One resource of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Resource {
    Upstream(Upstream),
    Credential(Credential),
    Rule(Rule),
    Webhook(Webhook),
}

/// The name of a resource: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`, so it is one token of a NATS
/// subject and one DNS label.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid {
            Ok(Self(text.into()))
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(format!(
                "name {shown:?} must be 1 to 63 lower-case letters, digits and inner dashes"
            ))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.into()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A registry to fetch from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    pub name: Name,
    /// `https://host[:port][/prefix]`. Plain http only with `allow_private`.
    #[serde(deserialize_with = "written_url::read")]
    pub endpoint: Url,
    /// Allows plain http, and loopback, private and link-local addresses, for this upstream.
    #[serde(default)]
    pub allow_private: bool,
    /// Credential set sent to the endpoint and its token realms, nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Name>,
    /// Hosts besides the endpoint's own whose token service may be sent the credential.
    /// `registry-1.docker.io` knows `auth.docker.io` by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_hosts: Vec<String>,
    /// Hosts that blob redirects may lead to, exact or `*.suffix`; empty allows any public host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirect_hosts: Vec<String>,
    /// Registry name that containerd (`?ns=`) and Docker (mirror root, for `docker.io`) know this
    /// upstream by, such as `docker.io` or `ghcr.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Longest wait for a connection or for response headers.
    #[serde(default = "Upstream::default_timeout")]
    pub timeout: Span,
    /// Most requests under way at once from one process. When the upstream fails or slows down,
    /// fewer wait for their answers at once, until it is well again.
    #[serde(default = "Upstream::default_concurrency")]
    pub concurrency: u32,
    /// Large blobs are read as parallel ranges. Absent: one request per blob, which every registry
    /// can do and which takes no more than one of the upstream's connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<Parallel>,
    /// How fast the upstream may be asked, by all processes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caps: Option<Caps>,
    /// Share of the upstream's own rate limit, in percent, that is kept for clients: background work
    /// stops when no more than this is left. Absent: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_reserve: Option<u32>,
}

/// Caps on the use of one upstream, over all processes: each process takes an even share among
/// those that asked the upstream lately. While NATS is away a process goes on with the share it
/// had; one that never heard of others takes the whole. Clients go before background work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Calls that begin per second; redirects and tokens belong to their call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Calls under way at once, bodies included. Never less than one per process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Bytes of blobs read per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteSize>,
}

/// How large blobs are read as parallel ranges. Each range is a request of its own and counts as
/// one against `concurrency`; together they read each byte once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parallel {
    /// The smallest blob that is read so.
    #[serde(default = "Parallel::default_from")]
    pub from: ByteSize,
    /// Most ranges of one blob under way at once.
    #[serde(default = "Parallel::default_ranges")]
    pub ranges: u32,
}

impl Parallel {
    const fn default_from() -> ByteSize {
        ByteSize(64 << 20)
    }

    const fn default_ranges() -> u32 {
        4
    }
}

impl Upstream {
    const fn default_timeout() -> Span {
        Span::from_secs(15)
    }

    const fn default_concurrency() -> u32 {
        64
    }
}

/// A credential set: where a username and a password are, never what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    pub name: Name,
    pub username: Secret,
    pub password: Secret,
}

/// Where a secret lives. It is read when used, so a rotated file is seen at the next use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Secret {
    /// The name of an environment variable.
    Env(String),
    /// A file; one trailing newline is dropped. A relative path is relative to the configuration
    /// file that names it.
    File(PathBuf),
}

/// A cache rule: maps downstream repositories to upstream ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub name: Name,
    /// Downstream repository: exact, or ending in `/*`; `*` alone takes everything.
    pub downstream: String,
    pub upstream: Name,
    /// Upstream repository path; `*` stands for what the downstream `*` matched.
    #[serde(default = "Rule::default_repository")]
    pub repository: String,
    #[serde(default)]
    pub platforms: Platforms,
    /// How long a tag is served without asking the upstream.
    #[serde(default = "Rule::default_fresh_for")]
    pub fresh_for: Span,
    /// For how long after `fresh_for` a tag is still served at once, while the upstream is asked
    /// behind the answer.
    #[serde(default = "Rule::default_revalidate_for")]
    pub revalidate_for: Span,
    /// Longest wait of a client for the upstream's word on a tag that is local; then the local one
    /// goes out, and the check goes on behind it.
    #[serde(default = "Rule::default_check_within")]
    pub check_within: Span,
    /// How long after its last confirmation a tag is still served, marked stale, while the
    /// upstream cannot tell.
    #[serde(default = "Rule::default_stale_for")]
    pub stale_for: Span,
    #[serde(default)]
    pub when_gone: WhenGone,
    /// How stored blobs are delivered.
    #[serde(default)]
    pub delivery: Delivery,
    /// Other terms for some tags; the first pattern that fits decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<TagTerms>,
}

impl Rule {
    fn default_repository() -> String {
        "*".to_owned()
    }

    const fn default_fresh_for() -> Span {
        Span::from_secs(5 * 60)
    }

    const fn default_revalidate_for() -> Span {
        Span::from_secs(0)
    }

    const fn default_check_within() -> Span {
        Span::from_secs(2)
    }

    const fn default_stale_for() -> Span {
        Span::from_secs(30 * 24 * 60 * 60)
    }
}

/// Which platforms of an index are hydrated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, from = "platforms::Written", into = "platforms::Written")]
pub enum Platforms {
    /// Those that clients have pulled.
    #[default]
    Pulled,
    All,
    These(Vec<Platform>),
}

mod platforms {
    //! `"pulled"`, `"all"` or a list.

    use super::{Platform, Platforms};
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Serialize, Deserialize)]
    #[serde(
        untagged,
        expecting = "platforms must be \"pulled\", \"all\" or a list like [\"linux/amd64\"]"
    )]
    pub enum Written {
        Word(Word),
        List(Vec<Platform>),
    }

    #[derive(Clone, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Word {
        Pulled,
        All,
    }

    impl From<Written> for Platforms {
        fn from(written: Written) -> Self {
            match written {
                Written::Word(Word::Pulled) => Self::Pulled,
                Written::Word(Word::All) => Self::All,
                Written::List(list) => Self::These(list),
            }
        }
    }

    impl From<Platforms> for Written {
        fn from(platforms: Platforms) -> Self {
            match platforms {
                Platforms::Pulled => Self::Word(Word::Pulled),
                Platforms::All => Self::Word(Word::All),
                Platforms::These(list) => Self::List(list),
            }
        }
    }
}

/// How a blob in storage reaches the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Through the frontend.
    #[default]
    Stream,
    /// By a redirect to a presigned URL, where the store can sign; else streamed.
    Redirect,
}

/// An endpoint that hears of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    pub name: Name,
    /// `https://…`. Plain http only with `allow_private`.
    #[serde(deserialize_with = "written_url::read")]
    pub url: Url,
    #[serde(default)]
    pub allow_private: bool,
    /// Standard Webhooks secret: `whsec_` and the base64 of 24 to 64 random bytes.
    pub secret: Secret,
    /// Event kinds, exact or ending in `.*`; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// Downstream repositories, exact or ending in `/*`; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<String>,
    /// Why nothing is sent at the moment; absent while the webhook is enabled.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "reason_if_any")]
    pub disabled: Option<String>,
}

/// An empty reason is none.
fn reason_if_any<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|reason| !reason.is_empty()))
}
