//! Checks of a whole document of resources: each alone, and against each other. Every problem
//! names the field and the remedy.

mod freshness;

use crate::{
    duration::Span,
    private::is_plainly_private,
    resources::{
        Caps, Kind, Name, Parallel, Platforms, Resources, Rule, Secret, Upstream, Webhook,
    },
    size::ByteSize,
};
use hydrant_proto::{EventKind, Platform, RepositoryName};
use std::{collections::HashSet, fmt, path::Path, time::Duration};
use url::Url;

/// How much one document may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Resources of each kind.
    pub per_kind: usize,
    /// Patterns of tags in one rule.
    pub tags_per_rule: usize,
    /// Bytes of the document as JSON; a NATS message holds 1 MiB.
    pub document_bytes: usize,
}

pub const LIMITS: Limits =
    Limits { per_kind: 2_000, tags_per_rule: 32, document_bytes: 900 * 1024 };

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, such as `rule.lab.downstream`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// Whether it is a clash with another resource and not a mistake of its own.
    pub conflict: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// Everything that is wrong with a document; at least one thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl Resources {
    /// Reads a TOML document. An unknown key is refused with its line; relative secret files are
    /// taken to be relative to `base_dir`.
    pub fn from_toml(text: &str, base_dir: &Path) -> Result<Self, Problems> {
        let mut resources: Self = toml::from_str(text).map_err(|error| {
            Problems(vec![Problem {
                field: "configuration".to_owned(),
                message: error.to_string().trim_end().to_owned(),
                remedy: String::new(),
                conflict: false,
            }])
        })?;
        resources.resolve_files(base_dir);
        Ok(resources)
    }

    /// Makes relative secret files absolute.
    pub fn resolve_files(&mut self, base_dir: &Path) {
        let credentials =
            self.credential.iter_mut().flat_map(|c| [&mut c.username, &mut c.password]);
        let webhooks = self.webhook.iter_mut().map(|webhook| &mut webhook.secret);
        for secret in credentials.chain(webhooks) {
            if let Secret::File(path) = secret {
                *path = base_dir.join(&*path);
            }
        }
    }
}

pub fn check(resources: &Resources) -> Result<(), Problems> {
    let mut found = Found::default();
    found.sizes(resources);
    found.names(resources);
    for upstream in &resources.upstream {
        found.upstream(upstream, resources);
    }
    found.namespaces(resources);
    for credential in &resources.credential {
        let at = format!("credential.{}", credential.name);
        found.secret(&format!("{at}.username"), &credential.username);
        found.secret(&format!("{at}.password"), &credential.password);
    }
    for rule in &resources.rule {
        found.rule(rule, resources);
    }
    found.downstreams(resources);
    for webhook in &resources.webhook {
        found.webhook(webhook);
    }
    if found.0.is_empty() { Ok(()) } else { Err(Problems(found.0)) }
}

#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn wrong(&mut self, field: impl Into<String>, message: impl Into<String>, remedy: &str) {
        let (field, message) = (field.into(), message.into());
        self.0.push(Problem { field, message, remedy: remedy.to_owned(), conflict: false });
    }

    fn clash(&mut self, field: impl Into<String>, message: impl Into<String>, remedy: &str) {
        self.wrong(field, message, remedy);
        self.0.last_mut().expect("one was just added").conflict = true;
    }

    fn sizes(&mut self, resources: &Resources) {
        let counts = [
            (Kind::Upstream, resources.upstream.len()),
            (Kind::Credential, resources.credential.len()),
            (Kind::Rule, resources.rule.len()),
            (Kind::Webhook, resources.webhook.len()),
        ];
        for (kind, count) in counts {
            if count > LIMITS.per_kind {
                let limit = LIMITS.per_kind;
                self.wrong(
                    kind.as_str(),
                    format!("{count} are more than {limit}"),
                    "use wildcards",
                );
            }
        }
        let bytes = serde_json::to_vec(resources).map_or(0, |json| json.len());
        if bytes > LIMITS.document_bytes {
            let limit = LIMITS.document_bytes;
            self.wrong(
                "configuration",
                format!("{bytes} bytes are more than {limit}"),
                "shorten it",
            );
        }
    }

    fn names(&mut self, resources: &Resources) {
        self.unique(Kind::Upstream, resources.upstream.iter().map(|x| &x.name));
        self.unique(Kind::Credential, resources.credential.iter().map(|x| &x.name));
        self.unique(Kind::Rule, resources.rule.iter().map(|x| &x.name));
        self.unique(Kind::Webhook, resources.webhook.iter().map(|x| &x.name));
    }

    fn unique<'a>(&mut self, kind: Kind, names: impl Iterator<Item = &'a Name>) {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name) {
                self.clash(format!("{kind}.{name}"), "is there twice", "give each its own name");
            }
        }
    }

    fn upstream(&mut self, upstream: &Upstream, resources: &Resources) {
        let at = format!("upstream.{}", upstream.name);
        self.url(&format!("{at}.endpoint"), &upstream.endpoint, upstream.allow_private);
        if upstream.endpoint.query().is_some() {
            self.wrong(
                format!("{at}.endpoint"),
                "has a query",
                "write https://host[:port][/prefix]",
            );
        }
        if let Some(name) = &upstream.credential
            && !resources.credential.iter().any(|credential| credential.name == *name)
        {
            let message = format!("there is no credential set `{name}`");
            self.wrong(format!("{at}.credential"), message, "add a [[credential]] of that name");
        }
        for (field, hosts) in
            [("token_hosts", &upstream.token_hosts), ("redirect_hosts", &upstream.redirect_hosts)]
        {
            for host in hosts.iter().filter(|host| !is_host_pattern(host)) {
                let message = format!("{host:?} is not a host name");
                self.wrong(format!("{at}.{field}"), message, "write `host`, or `*.suffix`");
            }
        }
        self.span(&format!("{at}.timeout"), upstream.timeout, 1, 300);
        if !(1..=1_000).contains(&upstream.concurrency) {
            self.wrong(format!("{at}.concurrency"), "must be 1 to 1000", "leave it out for 64");
        }
        if let Some(parallel) = &upstream.parallel {
            self.parallel(&format!("{at}.parallel"), parallel, upstream.concurrency);
        }
        if let Some(caps) = &upstream.caps {
            self.caps(&format!("{at}.caps"), caps);
        }
        if upstream.quota_reserve.is_some_and(|percent| percent > 90) {
            self.wrong(format!("{at}.quota_reserve"), "must be 0 to 90", "leave it out for 20");
        }
    }

    fn caps(&mut self, at: &str, caps: &Caps) {
        const REMEDY: &str = "leave it out for no cap";
        if caps.requests_per_second.is_some_and(|rate| !(1..=100_000).contains(&rate)) {
            self.wrong(format!("{at}.requests_per_second"), "must be 1 to 100000", REMEDY);
        }
        if caps.connections.is_some_and(|most| !(1..=10_000).contains(&most)) {
            self.wrong(format!("{at}.connections"), "must be 1 to 10000", REMEDY);
        }
        // Less, and a body would be taken for one that crawls.
        const SLOWEST: ByteSize = ByteSize(64 << 10);
        if caps.bytes_per_second.is_some_and(|rate| rate < SLOWEST) {
            let message = format!("must be at least {SLOWEST}");
            self.wrong(format!("{at}.bytes_per_second"), message, REMEDY);
        }
    }

    fn parallel(&mut self, at: &str, parallel: &Parallel, concurrency: u32) {
        // Less, and the requests cost more than they save; each also costs a part in memory.
        const SMALLEST: ByteSize = ByteSize(1 << 20);
        if parallel.from < SMALLEST {
            let message = format!("must be at least {SMALLEST}");
            self.wrong(format!("{at}.from"), message, "leave it out for 64MiB");
        }
        if !(2..=16).contains(&parallel.ranges) {
            let remedy = "leave it out for 4, or leave out `parallel` to read blobs whole";
            self.wrong(format!("{at}.ranges"), "must be 2 to 16", remedy);
        } else if parallel.ranges > concurrency {
            let message = format!("is more than the upstream's concurrency of {concurrency}");
            self.wrong(format!("{at}.ranges"), message, "lower it, or raise `concurrency`");
        }
    }

    fn namespaces(&mut self, resources: &Resources) {
        let mut seen = HashSet::new();
        for upstream in &resources.upstream {
            let Some(namespace) = &upstream.namespace else { continue };
            let field = format!("upstream.{}.namespace", upstream.name);
            if !is_authority(namespace) {
                self.wrong(&field, "is not a registry name", "write `docker.io` or `host:port`");
            }
            if !seen.insert(namespace) {
                let message = format!("`{namespace}` is another upstream's namespace already");
                self.clash(&field, message, "give it to one upstream only");
            }
        }
    }

    fn rule(&mut self, rule: &Rule, resources: &Resources) {
        let at = format!("rule.{}", rule.name);
        if !is_pattern(&rule.downstream) {
            let message = format!("{:?} is not a repository name", rule.downstream);
            self.wrong(format!("{at}.downstream"), message, "write `path/name`, `path/*` or `*`");
        }
        if !resources.upstream.iter().any(|upstream| upstream.name == rule.upstream) {
            let message = format!("there is no upstream `{}`", rule.upstream);
            self.wrong(format!("{at}.upstream"), message, "add an [[upstream]] of that name");
        }
        let (from, to) = (rule.downstream.ends_with('*'), rule.repository.ends_with('*'));
        if !is_pattern(&rule.repository) {
            let message = format!("{:?} is not a repository name", rule.repository);
            self.wrong(format!("{at}.repository"), message, "write `path/name`, `path/*` or `*`");
        } else if from != to {
            let remedy = if from {
                "end it in `*`, as downstream does"
            } else {
                "name one upstream repository, as downstream is exact"
            };
            self.wrong(format!("{at}.repository"), "does not fit downstream", remedy);
        }
        if let Platforms::These(list) = &rule.platforms {
            self.platforms(&format!("{at}.platforms"), list);
        }
        self.freshness(rule);
    }

    fn platforms(&mut self, field: &str, list: &[Platform]) {
        if list.is_empty() {
            let remedy = "write \"pulled\", \"all\" or a list like [\"linux/amd64\"]";
            self.wrong(field, "is an empty list", remedy);
        }
        let mut seen = HashSet::new();
        for platform in list {
            let text = platform.to_string();
            let lower = text.to_ascii_lowercase();
            if text != lower {
                // Indexes spell them as Go does, and are compared as they are.
                let remedy = format!("write \"{lower}\"");
                self.wrong(field, format!("\"{text}\" is not in lower case"), &remedy);
            }
            if !seen.insert(lower) {
                self.wrong(field, format!("\"{text}\" is there twice"), "drop one of the two");
            }
        }
    }

    fn downstreams(&mut self, resources: &Resources) {
        let mut seen = HashSet::new();
        for rule in &resources.rule {
            if !seen.insert(&rule.downstream) {
                let message = format!("`{}` is another rule's already", rule.downstream);
                self.clash(
                    format!("rule.{}.downstream", rule.name),
                    message,
                    "keep one of the two",
                );
            }
        }
    }

    fn webhook(&mut self, webhook: &Webhook) {
        let at = format!("webhook.{}", webhook.name);
        self.url(&format!("{at}.url"), &webhook.url, webhook.allow_private);
        self.secret(&format!("{at}.secret"), &webhook.secret);
        for event in webhook.events.iter().filter(|event| !is_event_pattern(event)) {
            let all = EventKind::ALL.map(EventKind::as_str).join(", ");
            let message = format!("{event:?} is no event");
            let remedy = format!("use one of {all}, or a prefix such as `hydration.*`");
            self.wrong(format!("{at}.events"), message, &remedy);
        }
        for repository in webhook.repositories.iter().filter(|pattern| !is_pattern(pattern)) {
            let message = format!("{repository:?} is not a repository name");
            self.wrong(format!("{at}.repositories"), message, "write `path/name`, `path/*` or `*`");
        }
    }

    fn url(&mut self, field: &str, url: &Url, allow_private: bool) {
        match url.scheme() {
            "https" => {}
            "http" if allow_private => {}
            "http" => {
                self.wrong(field, "is plain http", "use https, or set allow_private = true");
            }
            other => self.wrong(field, format!("has the scheme `{other}`"), "use https"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            self.wrong(field, "has a username or password", "use a credential set");
        }
        if url.fragment().is_some() {
            self.wrong(field, "has a fragment", "drop what follows the `#`");
        }
        match url.host() {
            None => self.wrong(field, "has no host", "write https://host[:port][/path]"),
            Some(host) if !allow_private && is_plainly_private(&host) => {
                self.wrong(
                    field,
                    "is a private address",
                    "set allow_private = true if it is meant",
                );
            }
            Some(_) => {}
        }
    }

    fn secret(&mut self, field: &str, secret: &Secret) {
        match secret {
            Secret::Env(name) => {
                let valid = !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                if !valid {
                    self.wrong(field, "names no environment variable", "write { env = \"NAME\" }");
                }
            }
            Secret::File(path) if !path.is_absolute() => {
                self.wrong(field, "is a relative file", "write an absolute path");
            }
            Secret::File(_) => {}
        }
    }

    fn span(&mut self, field: &str, span: Span, least: u64, most: u64) {
        let range = Duration::from_secs(least)..=Duration::from_secs(most);
        if !range.contains(&span.0) {
            let (least, most) = (Span::from_secs(least), Span::from_secs(most));
            self.wrong(field, format!("must be {least} to {most}"), "change it");
        }
    }
}

/// A repository name, one ending in `/*`, or `*`.
fn is_pattern(text: &str) -> bool {
    let exact = match text {
        "*" => return true,
        _ => text.strip_suffix("/*").unwrap_or(text),
    };
    exact.parse::<RepositoryName>().is_ok()
}

fn is_event_pattern(text: &str) -> bool {
    let known = |matches: &dyn Fn(&str) -> bool| EventKind::ALL.iter().any(|k| matches(k.as_str()));
    match text.strip_suffix('*') {
        Some("") => true,
        Some(prefix) => prefix.ends_with('.') && known(&|kind| kind.starts_with(prefix)),
        None => known(&|kind| kind == text),
    }
}

fn is_host_pattern(text: &str) -> bool {
    let host = text.strip_prefix("*.").unwrap_or(text);
    is_authority(host) && !host.contains('*')
}

/// A lower-case host name or address, with an optional port.
fn is_authority(text: &str) -> bool {
    Url::parse(&format!("https://{text}/")).is_ok_and(|url| {
        let host = url.host_str().unwrap_or_default();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{host}{port}") == text || format!("{host}:443") == text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Table;

    const LAB: &str = include_str!("../tests/lab.toml");

    fn problems(text: &str) -> String {
        let base = Path::new("/etc/hydrant");
        match Resources::from_toml(text, base).and_then(Table::compile) {
            Ok(_) => String::new(),
            Err(problems) => problems.to_string(),
        }
    }

    #[test]
    fn the_lab_is_fine_and_its_files_are_beside_it() {
        assert_eq!(problems(LAB), "");
        let lab = Resources::from_toml(LAB, Path::new("/etc/hydrant")).unwrap();
        assert_eq!(lab.credential[0].password, Secret::File("/etc/hydrant/secret".into()));
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let lab = Resources::from_toml(LAB, Path::new("/etc/hydrant")).unwrap();
        let json = serde_json::to_string(&lab).unwrap();
        assert_eq!(serde_json::from_str::<Resources>(&json).unwrap(), lab);
        let text = toml::to_string(&lab).unwrap();
        assert_eq!(Resources::from_toml(&text, Path::new("/")).unwrap(), lab);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let text = LAB.replace("fresh_for", "fresh_fro");
        let line = 1 + text.lines().position(|line| line.starts_with("fresh_fro")).unwrap();
        let found = problems(&text);
        assert!(found.contains(&format!("line {line}")), "{found}");
        assert!(found.contains("unknown field `fresh_fro`"), "{found}");
    }

    #[test]
    fn each_mistake_names_its_field() {
        for (from, to, field) in [
            ("\"5m\"", "\"-1s\"", "not a duration"),
            ("http://127.0.0.1:5100", "http://u:p@127.0.0.1:5100", "upstream.lab.endpoint"),
            ("http://127.0.0.1:5100", "file:///etc", "upstream.lab.endpoint"),
            ("http://127.0.0.1:5100", "http://127.0.0.1:5100/?a=b", "upstream.lab.endpoint"),
            ("allow_private = true            #", "#", "upstream.lab.endpoint: is plain http"),
            ("http://127.0.0.1:5100\"\nallow_private = true", "https://2130706433\"", "private"),
            ("credential = \"lab-user\"", "credential = \"no\"", "upstream.lab.credential"),
            ("upstream = \"lab\"", "upstream = \"no\"", "rule.lab.upstream"),
            ("downstream = \"lab/*\"", "downstream = \"Lab/*\"", "rule.lab.downstream"),
            ("downstream = \"lab/*\"", "downstream = \"lab/x\"", "rule.lab.repository"),
            ("platforms = \"pulled\"", "platforms = []", "rule.lab.platforms"),
            ("platforms = \"pulled\"", "platforms = \"some\"", "platforms must be"),
            ("\"pulled\"", "[\"Linux/amd64\"]", "write \"linux/amd64\""),
            ("\"pulled\"", "[\"linux/ARM/V7\"]", "write \"linux/arm/v7\""),
            ("\"pulled\"", "[\"linux/amd64\", \"linux/amd64\"]", "is there twice"),
            ("http://127.0.0.1:5100", "http://127.0.0.1:5100/a/../b", "`..` in its path"),
            ("http://127.0.0.1:5100", "http:///127.0.0.1", "names no host"),
            ("http://127.0.0.1:5100", "http://127.0.0.1:0", "port 0"),
            ("http://127.0.0.1:9000/hook", "http://127.0.0.1:9000/\\r\\nhook", "line end"),
            ("http://127.0.0.1:5100\"\nallow_private = true", "https://100.64.0.1\"", "private"),
            ("\"hydration.*\"", "\"nothing.*\"", "webhook.ci.events"),
            ("repositories = [\"lab/*\"]", "repositories = [\"\"]", "webhook.ci.repositories"),
            ("env = \"HOOK_SECRET\"", "env = \"\"", "webhook.ci.secret"),
            ("allow_private = true ", "parallel = { from = \"1MB\" } #", "`1MB` is not a size"),
            (
                "allow_private = true ",
                "parallel = { from = \"1KiB\" } #",
                "upstream.lab.parallel.from",
            ),
            (
                "allow_private = true ",
                "parallel = { ranges = 1 } #",
                "upstream.lab.parallel.ranges",
            ),
            ("allow_private = true ", "parallel = { parts = 4 } #", "unknown field `parts`"),
            (
                "allow_private = true ",
                "caps = { connections = 0 } #",
                "caps.connections: must be 1",
            ),
            ("allow_private = true ", "caps = { rps = 1 } #", "unknown field `rps`"),
            (
                "allow_private = true ",
                "caps = { bytes_per_second = \"1KiB\" } #",
                "caps.bytes_per_second: must be at least 64KiB",
            ),
            (
                "allow_private = true ",
                "caps = { requests_per_second = 0 } #",
                "caps.requests_per_second: must be",
            ),
            ("allow_private = true ", "quota_reserve = 91 #", "upstream.lab.quota_reserve"),
            (
                "allow_private = true ",
                "concurrency = 2\nparallel = {} #",
                "parallel.ranges: is more than the upstream's concurrency of 2",
            ),
            ("name = \"ci\"", "name = \"c.i\"", "lower-case letters, digits and inner dashes"),
        ] {
            let text = LAB.replacen(from, to, 1);
            assert_ne!(text, LAB, "{from}");
            let found = problems(&text);
            assert!(found.contains(field), "{to}: {found}");
        }
    }

    #[test]
    fn an_empty_reason_disables_no_webhook() {
        let lab = Resources::from_toml(&format!("{LAB}disabled = \"\"\n"), Path::new("/")).unwrap();
        assert_eq!(lab.webhook[0].disabled, None);
    }

    #[test]
    fn duplicates_clash() {
        let twice = format!("{LAB}\n[[rule]]\nname='b'\ndownstream='lab/*'\nupstream='lab'\n");
        let base = Path::new("/");
        let found = Table::compile(Resources::from_toml(&twice, base).unwrap()).unwrap_err();
        assert!(found.0.iter().all(|problem| problem.conflict), "{found}");
    }

    #[test]
    fn a_hundred_thousand_rules_are_too_many() {
        let mut resources = Resources::from_toml(LAB, Path::new("/")).unwrap();
        resources.rule = vec![resources.rule[0].clone(); 100_000];
        let found = Table::compile(resources).unwrap_err().to_string();
        assert!(found.contains("100000 are more than 2000"), "{found:.200}");
    }
}
