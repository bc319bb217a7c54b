//! CRI-O, podman, skopeo and buildah: one file for `registries.conf.d`.
//!
//! These clients do not say whom they take a mirror for, so its location does: the registry's name
//! is the first part of the path.

use super::{
    ConfigError, Plan,
    mirror::{Mirror, Security, Upstream},
    output::{Document, MARK},
};

const FILE: &str = "/etc/containers/registries.conf.d/50-hydrant.conf";

pub fn plan(mirror: &Mirror, note: &str) -> Result<Plan, ConfigError> {
    let mut text = format!(
        "{MARK}: pulls go through hydrant, and to the\n# registry itself when hydrant cannot serve \
         them.\n"
    );
    for upstream in &mirror.upstreams {
        text.push_str(&registry(mirror, upstream)?);
    }
    let mut documents = vec![Document::ours(FILE, text)];
    if let Some((_, pem)) = mirror.authority() {
        let path = format!("/etc/containers/certs.d/{}/ca.crt", mirror.host);
        documents.push(Document::shared(path, pem.to_owned()));
    }
    Ok(Plan { documents, notes: vec![note.to_owned()] })
}

fn registry(mirror: &Mirror, upstream: &Upstream) -> Result<String, ConfigError> {
    let name = &upstream.name;
    if name.contains(':') {
        return Err(ConfigError::Usage(format!(
            "{name} has a port, which cannot stand in the path of a mirror; give its upstream in \
             hydrant a `namespace` without one"
        )));
    }
    // Docker Hub is known to these clients by its name.
    let location = if name == "docker.io" { name.clone() } else { upstream.host() };
    let mut text = format!("\n[[registry]]\nprefix = {name:?}\nlocation = {location:?}\n");
    if upstream.endpoint.scheme() == "http" {
        text.push_str("insecure = true\n");
    }
    text.push_str(&format!("\n[[registry.mirror]]\nlocation = \"{}/{name}\"\n", mirror.host));
    if mirror.security == Security::Plain {
        text.push_str("insecure = true\n");
    }
    Ok(text)
}
