//! `apply`: a file of resources laid over the configuration.

use super::{api::Api, failure::Failure, fields, output};
use crate::cli::Apply;
use hydrant_boot::{Action, Change};
use hydrant_rules::{Resources, Table};
use serde::Deserialize;

#[derive(Deserialize)]
struct Applied {
    changes: Vec<Change>,
}

pub async fn run(flags: Apply) -> Result<(), Failure> {
    let (text, base) = fields::text(&flags.file)?;
    let wanted = read(&text, &base, &flags)?;
    let Apply { prune, allow_empty, dry_run, .. } = flags;
    let path = format!("/apply?prune={prune}&allow_empty={allow_empty}&dry_run={dry_run}");
    let body = serde_json::to_value(&wanted).expect("resources are strings, numbers and lists");
    let applied: Applied = Api::new(flags.server)?.post(&path, &body).await?;
    output::line(&report(&applied.changes, flags.dry_run))
}

/// Read here and not by the server, so that a mistake is told with its line.
fn read(text: &str, base: &std::path::Path, flags: &Apply) -> Result<Resources, Failure> {
    let wrong = |problems| Failure::Usage(format!("{}: {problems}", flags.file.display()));
    let wanted = Resources::from_toml(text, base).map_err(wrong)?;
    if flags.prune {
        // Then it stands alone, and can be checked whole.
        Table::compile(wanted.clone()).map_err(wrong)?;
    }
    Ok(wanted)
}

fn report(changes: &[Change], dry_run: bool) -> String {
    let mut text = String::new();
    for change in changes {
        let sign = match change.action {
            Action::Created => '+',
            Action::Changed => '~',
            Action::Deleted => '-',
            Action::Unchanged => continue,
        };
        text.push_str(&format!("{sign} {} {}\n", change.kind, change.name));
    }
    let made = text.lines().count();
    let (done, same) = (if dry_run { "would change" } else { "changed" }, changes.len() - made);
    text.push_str(&format!("{made} {done}, {same} as they were\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_rules::Kind;

    #[test]
    fn the_report_names_what_changed_and_counts_the_rest() {
        let change =
            |name: &str, action| Change { kind: Kind::Rule, name: name.parse().unwrap(), action };
        let changes = [
            change("a", Action::Created),
            change("b", Action::Unchanged),
            change("c", Action::Deleted),
        ];
        assert_eq!(report(&changes, false), "+ rule a\n- rule c\n2 changed, 1 as they were\n");
        assert!(report(&changes, true).contains("2 would change"));
    }
}
