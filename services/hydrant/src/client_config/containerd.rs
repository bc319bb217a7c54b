//! containerd: a `hosts.toml` for each registry, read at each pull.

use super::{
    Plan,
    mirror::{Mirror, Upstream},
    output::{Document, MARK},
};

const DIRECTORY: &str = "/etc/containerd/certs.d";

pub fn plan(mirror: &Mirror) -> Plan {
    let documents = mirror.upstreams.iter().map(|upstream| hosts(mirror, upstream)).collect();
    let note = format!(
        "containerd reads it when its configuration names {DIRECTORY} as `config_path` of the \
         registry (plugin io.containerd.grpc.v1.cri in containerd 1, io.containerd.cri.v1.images in \
         2); ctr and nerdctl take --hosts-dir {DIRECTORY}"
    );
    Plan { documents, notes: vec![note] }
}

fn hosts(mirror: &Mirror, upstream: &Upstream) -> Document {
    let name = &upstream.name;
    let mut text = format!(
        "{MARK}: pulls of {name} go through hydrant, and\n# to the registry itself when hydrant \
         cannot serve them.\nserver = {:?}\n\n[host.{:?}]\n  capabilities = [\"pull\", \
         \"resolve\"]\n",
        upstream.url(),
        mirror.url,
    );
    if let Some((file, _)) = mirror.authority() {
        text.push_str(&format!("  ca = {:?}\n", file.to_string_lossy()));
    }
    Document::ours(format!("{DIRECTORY}/{name}/hosts.toml"), text)
}
