//! What a process says about itself when it is up: a short page for a person at a terminal, one
//! log line otherwise.

use crate::{embedded::NatsServer, process::Listeners};
use hydrant_boot::{Context, Role};
use hydrant_rules::Table;
use std::{fmt::Write as _, io::IsTerminal as _, net::SocketAddr};
use tokio::net::TcpListener;

/// Rules shown; more are counted.
const SHOWN_RULES: usize = 8;

/// What is told.
pub struct Facts {
    role: Role,
    pulls: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    nats: Option<String>,
}

impl Facts {
    /// Looks at what was bound before the roles take it away.
    pub fn gather(
        role: Role,
        context: &Context,
        listeners: &Listeners,
        nats: Option<&NatsServer>,
    ) -> Self {
        let bound = |listener: &TcpListener| listener.local_addr().ok();
        Self {
            role,
            pulls: listeners.pulls.as_ref().and_then(bound),
            admin: bound(&listeners.admin),
            nats: nats
                .map(NatsServer::describe)
                .or_else(|| context.settings.bus.nats_url.as_ref().map(|_| "as given".to_owned())),
        }
    }

    pub fn tell(&self, context: &Context) {
        let table = context.feed.current();
        tracing::info!(
            role = self.role.as_str(),
            listen = self.pulls.map(|address| address.to_string()),
            admin = self.admin.map(|address| address.to_string()),
            store = context.settings.store_url(),
            data = %context.settings.data().display(),
            rules = table.resources().rule.len(),
            "hydrant is up"
        );
        if self.role == Role::Up && std::io::stderr().is_terminal() {
            eprint!("{}", self.page(context, &table));
        }
    }

    fn page(&self, context: &Context, table: &Table) -> String {
        let mut page = format!("\nhydrant {} is up\n", env!("CARGO_PKG_VERSION"));
        let mut line = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(page, "  {name:<7} {value}");
        };
        let (pulls, admin) = (text(self.pulls), text(self.admin));
        line("pulls", &pulls);
        line("admin", &format!("http://{admin}  (/metrics, /readyz?verbose, /api/v1)"));
        line("store", &context.settings.store_url());
        line("data", &context.settings.data().display().to_string());
        line("nats", self.nats.as_deref().unwrap_or_default());
        rules(table, &mut line);
        page.push_str(&next(table, &pulls));
        page
    }
}

fn rules(table: &Table, line: &mut impl FnMut(&str, &str)) {
    let rules = &table.resources().rule;
    for (index, rule) in rules.iter().take(SHOWN_RULES).enumerate() {
        let name = if index == 0 { "rules" } else { "" };
        let host = table.upstream(rule.upstream.as_str()).map(|upstream| &upstream.endpoint);
        let host = host.map(ToString::to_string).unwrap_or_default();
        line(name, &format!("{} -> {host} ({})", rule.downstream, rule.repository));
    }
    if rules.len() > SHOWN_RULES {
        line("", &format!("and {} more: hydrant rule list", rules.len() - SHOWN_RULES));
    }
}

/// What to try next.
fn next(table: &Table, pulls: &str) -> String {
    let Some(rule) = table.resources().rule.first() else {
        return "\nThere are no rules yet. Write some, and: hydrant apply -f hydrant.toml\n\n"
            .into();
    };
    let image = match rule.downstream.strip_suffix('*') {
        Some(prefix) => format!("{prefix}NAME:TAG"),
        None => format!("{}:TAG", rule.downstream),
    };
    format!(
        "\nTry:\n  docker pull {pulls}/{image}\n  hydrant hydrate {image} --wait\n  hydrant events --follow\n\n"
    )
}

fn text(address: Option<SocketAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}
