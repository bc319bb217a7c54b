//! Settings checked against each other before anything is started.

use super::{Role, Settings};
use hydrant_store::StoreUrl;
use std::{fmt, path::Path, time::Duration};

/// Longest drain that makes sense: orchestrators kill long before.
const LONGEST_DRAIN: Duration = Duration::from_secs(60 * 60);

/// Smallest spool: one large layer.
const SMALLEST_SPOOL: u64 = 64 << 20;

/// One setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsProblem {
    /// The flag, such as `--nats-url`; its variable is named in `--help`.
    pub flag: &'static str,
    pub message: String,
    pub remedy: String,
}

impl fmt::Display for SettingsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; {}", self.flag, self.message, self.remedy)
    }
}

/// Everything that is wrong with the settings; at least one thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SettingsProblems(pub Vec<SettingsProblem>);

impl fmt::Display for SettingsProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

pub(super) fn check(settings: &Settings, role: Role) -> Result<(), SettingsProblems> {
    let mut found = Found(Vec::new());
    found.addresses(settings, role);
    found.bus(settings, role);
    found.files(settings);
    found.store(settings);
    found.times(settings);
    found.work(settings);
    if found.0.is_empty() { Ok(()) } else { Err(SettingsProblems(found.0)) }
}

struct Found(Vec<SettingsProblem>);

impl Found {
    fn wrong(&mut self, flag: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(SettingsProblem { flag, message: message.into(), remedy: remedy.into() });
    }

    fn addresses(&mut self, settings: &Settings, role: Role) {
        let listens = matches!(role, Role::Up | Role::Frontend);
        let same = settings.listen == settings.admin && settings.listen.port() != 0;
        if listens && same {
            let message = format!("is {}, as --listen is", settings.admin);
            self.wrong("--admin", message, "give them different ports");
        }
        let others = [Some(settings.admin), listens.then_some(settings.listen)];
        let peer = settings.peer.filter(|peer| peer.port() != 0);
        if peer.is_some() && others.contains(&peer) {
            self.wrong("--peer", "is the address of another port", "give it a port of its own");
        }
    }

    fn work(&mut self, settings: &Settings) {
        let work = &settings.work;
        let second = Duration::from_secs(1);
        for (flag, span, least, most) in [
            ("--ack-wait", work.ack_wait, 2 * second, 600 * second),
            ("--sweep-every", work.sweep_every, second, 300 * second),
            ("--sweep-after", work.sweep_after, second, 300 * second),
        ] {
            if !(least..=most).contains(&span.0) {
                let message = format!("is {span}, outside {least:?} to {most:?}");
                self.wrong(flag, message, "leave it out for the default");
            }
        }
    }

    fn bus(&mut self, settings: &Settings, role: Role) {
        match &settings.bus.nats_url {
            Some(url) => self.nats_urls(url),
            None if role == Role::Up => {}
            None => self.wrong(
                "--nats-url",
                format!("is missing: `hydrant {}` takes its work from NATS", role.as_str()),
                "give it (or HYDRANT_NATS_URL), or run `hydrant up`, which starts its own",
            ),
        }
        if !matches!(settings.bus.nats_replicas, 1 | 3 | 5) {
            let message = format!("is {}", settings.bus.nats_replicas);
            self.wrong("--nats-replicas", message, "use 1, or 3 on a cluster");
        }
    }

    fn nats_urls(&mut self, urls: &str) {
        for url in urls.split(',').map(str::trim) {
            let scheme = url.split_once("://").map(|(scheme, _)| scheme);
            if !matches!(scheme, Some("nats" | "tls")) {
                // The URL may hold a password: it is not repeated.
                self.wrong(
                    "--nats-url",
                    "holds something that is no NATS address",
                    "write nats://host:4222 or tls://host:4222, several separated by commas",
                );
            }
        }
    }

    fn files(&mut self, settings: &Settings) {
        let files = [
            ("--config", &settings.config),
            ("--nats-credentials", &settings.bus.nats_credentials),
            ("--nats-ca", &settings.bus.nats_ca),
        ];
        for (flag, file) in files {
            if let Some(file) = file.as_deref().filter(|file| !file.is_file()) {
                self.wrong(
                    flag,
                    format!("names {}, {}", file.display(), what(file)),
                    "check the path",
                );
            }
        }
    }

    fn store(&mut self, settings: &Settings) {
        match settings.store_url().parse::<StoreUrl>() {
            Err(why) => self.wrong(
                "--store",
                why.to_string(),
                "such as s3://cache or /var/lib/hydrant/store",
            ),
            Ok(StoreUrl::Directory(_)) if settings.s3_public_endpoint.is_some() => self.wrong(
                "--s3-public-endpoint",
                "means nothing for a directory, which has no presigned URLs",
                "drop it, or use an s3:// store",
            ),
            Ok(_) => {}
        }
    }

    fn times(&mut self, settings: &Settings) {
        for (flag, span) in
            [("--drain-deadline", settings.drain_deadline), ("--drain-delay", settings.drain_delay)]
        {
            if span.0 > LONGEST_DRAIN {
                self.wrong(flag, format!("of {span} is too long"), "use at most 1h");
            }
        }
        if settings.spool.0 < SMALLEST_SPOOL {
            let message = format!("of {} holds not even one layer", settings.spool);
            self.wrong("--spool", message, "give it at least 64MiB");
        }
    }
}

fn what(file: &Path) -> &'static str {
    if file.exists() { "which is not a file" } else { "which does not exist" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }

    fn problems(role: Role, flags: &[&str]) -> String {
        let line = Line::try_parse_from([&["hydrant"], flags].concat()).unwrap();
        line.settings.check(role).err().map(|found| found.to_string()).unwrap_or_default()
    }

    #[test]
    fn defaults_are_enough_for_up_and_for_nobody_else() {
        assert_eq!(problems(Role::Up, &[]), "");
        for role in [Role::Frontend, Role::Importer, Role::Notifier, Role::Control] {
            let told = problems(role, &[]);
            assert!(told.starts_with("--nats-url is missing") && told.contains("hydrant up"));
            assert_eq!(problems(role, &["--nats-url", "nats://a:1,tls://b:2"]), "");
        }
    }

    #[test]
    fn every_problem_names_its_flag_and_the_remedy() {
        for (flags, expected) in [
            (
                &["--listen=127.0.0.1:9464"][..],
                "--admin is 127.0.0.1:9464, as --listen is; give them different ports",
            ),
            (&["--nats-url=http://user:hunter2@a"], "--nats-url holds something that is no NATS"),
            (&["--nats-replicas=2"], "--nats-replicas is 2; use 1"),
            (&["--config=/nowhere.toml"], "--config names /nowhere.toml, which does not exist"),
            (&["--nats-ca=/"], "--nats-ca names /, which is not a file"),
            (&["--store=gs://bucket"], "--store store \"gs://bucket\" must be"),
            (&["--store=/d", "--s3-public-endpoint=https://x"], "--s3-public-endpoint means"),
            (&["--drain-deadline=2h"], "--drain-deadline of 2h is too long; use at most 1h"),
            (&["--spool=1MiB"], "--spool of 1MiB holds not even one layer"),
        ] {
            let told = problems(Role::Up, flags);
            assert!(told.contains(expected), "{flags:?} told {told:?}");
            assert!(!told.contains("hunter2"), "{told}");
        }
        let both = problems(Role::Up, &["--listen=127.0.0.1:9464", "--spool=1MiB"]);
        assert_eq!(both.lines().count(), 2, "{both}");
    }

    #[test]
    fn values_that_do_not_parse_are_refused_with_an_example() {
        for (flag, example) in [
            ("--listen=5000", "127.0.0.1:5000"),
            ("--drain-deadline=-1s", "`90s`"),
            ("--spool=5MB", "`512MiB`"),
            ("--log-format=xml", "`json`"),
        ] {
            let refused = Line::try_parse_from(["hydrant", flag]).err().unwrap().to_string();
            assert!(refused.contains(example), "{refused}");
        }
    }
}
