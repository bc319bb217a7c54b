//! BuildKit: mirrors in `buildkitd.toml`.

use super::{
    Plan,
    mirror::{Mirror, Security},
    output::{Document, MARK},
};

const FILE: &str = "/etc/buildkit/buildkitd.toml";

pub fn plan(mirror: &Mirror) -> Plan {
    let mut text = format!("{MARK}\n");
    for upstream in &mirror.upstreams {
        let (name, host) = (&upstream.name, &mirror.host);
        text.push_str(&format!("\n[registry.{name:?}]\n  mirrors = [{host:?}]\n"));
    }
    match &mirror.security {
        Security::Plain => {
            text.push_str(&format!("\n[registry.{:?}]\n  http = true\n", mirror.host));
        }
        Security::Tls => {}
        Security::Authority { file, .. } => {
            let file = file.to_string_lossy();
            text.push_str(&format!("\n[registry.{:?}]\n  ca = [{file:?}]\n", mirror.host));
        }
    }
    let note = "buildkitd reads it at its start; with docker buildx: docker buildx create \
                --buildkitd-config FILE";
    Plan { documents: vec![Document::ours(FILE, text)], notes: vec![note.to_owned()] }
}
