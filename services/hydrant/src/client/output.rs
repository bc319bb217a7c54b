//! Output for people, as aligned columns, and for programs.

use super::failure::Failure;
use crate::cli::Output;
use serde_json::Value;
use std::io::{self, Write as _};

/// Prints `value` as a program reads it; `table` is asked for what people read.
pub fn print(
    output: Output,
    value: &Value,
    table: impl FnOnce() -> Vec<Vec<String>>,
) -> Result<(), Failure> {
    let text = match output {
        Output::Table => columns(&table()),
        Output::Json => format!("{value:#}\n"),
        Output::Toml => toml_text(value)?,
    };
    line(&text)
}

/// Writes to standard output; a reader that went away (`| head`) is no failure.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Rows as columns, two spaces apart.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// TOML has no null: fields without a value are left out.
fn toml_text(value: &Value) -> Result<String, Failure> {
    let printed = toml::to_string_pretty(&without_nulls(value.clone()));
    printed.map_err(|error| Failure::Failed(format!("cannot be written as TOML: {error}")))
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// Bytes for people: `512 B`, `1.4 MiB`.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_aligned_without_trailing_blanks() {
        let rows = [vec!["NAME".into(), "UP".into()], vec!["a".into(), String::new()]];
        assert_eq!(columns(&rows), "NAME  UP\na\n");
    }

    #[test]
    fn nulls_do_not_hinder_toml() {
        let text = toml_text(&json!({"a": null, "b": {"c": null, "d": 1}})).unwrap();
        assert_eq!(text.trim(), "[b]\nd = 1");
    }
}
