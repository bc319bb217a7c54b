//! docs/promises.md names the tests that show each promise; every one of them exists.

use hydrant_testkit::binaries::workspace_root;
use std::{collections::BTreeMap, fs};

/// `file::test` as the page writes them, in backquotes.
fn named(page: &str) -> Vec<(&str, &str)> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted.filter_map(|text| text.split_once(".rs::")).collect()
}

/// Whether this text holds a function of that name that is run by a test: by its attribute, or by
/// the table of a suite.
fn runs(source: &str, name: &str) -> bool {
    let defined = format!("fn {name}(");
    source.lines().any(|line| line.contains(&defined))
}

#[test]
fn every_test_that_the_page_of_promises_names_exists() {
    let root = workspace_root();
    let page = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let (mut sources, named) = (BTreeMap::new(), named(&page));
    assert!(named.len() > 100, "the page names {} tests", named.len());
    for (file, name) in named {
        let file = format!("{file}.rs");
        let source = sources.entry(file.clone()).or_insert_with(|| {
            fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"))
        });
        assert!(runs(source, name), "{file} has no `{name}`");
    }
}

#[test]
fn every_promise_fault_and_kind_of_input_has_its_line() {
    let page = fs::read_to_string(workspace_root().join("docs/promises.md")).unwrap();
    let lines: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("| ")).collect();
    let promises = (1..=20).map(|n| format!("P{n} "));
    let faults = (1..=49).map(|n| format!("{n} "));
    for item in promises.chain(faults) {
        let line = lines.iter().find(|line| line.starts_with(&item));
        let line = line.unwrap_or_else(|| panic!("no line for {item}"));
        let told = ["`", "later", "not shown"].iter().any(|how| line.contains(how));
        assert!(told, "{item}says nothing: {line}");
    }
}
