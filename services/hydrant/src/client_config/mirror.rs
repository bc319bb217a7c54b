//! hydrant as clients reach it, and the registries that it stands before.

use super::ConfigError;
use crate::cli::ClientConfig;
use std::{fs, path::PathBuf, str::FromStr};
use url::Url;

/// Registries that the chart and the example configuration have rules for.
const USUAL: [&str; 4] = ["docker.io", "ghcr.io", "quay.io", "registry.k8s.io"];

/// What stands before the registries.
#[derive(Debug)]
pub struct Mirror {
    /// `http://host:port` of hydrant, without a slash at the end.
    pub url: String,
    /// `host:port` as it stands in image names.
    pub host: String,
    pub security: Security,
    pub upstreams: Vec<Upstream>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    /// By a certificate that the system trusts.
    Tls,
    /// By a certificate of an authority that is to be trusted for it.
    Authority {
        file: PathBuf,
        pem: String,
    },
}

/// A registry by the name that stands in image names, and where it is when hydrant is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: String,
    pub endpoint: Url,
}

impl FromStr for Upstream {
    type Err = String;

    /// `ghcr.io`, or `lab.example=http://10.0.0.7:5000` where it is elsewhere.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, endpoint) = match text.split_once('=') {
            Some((name, endpoint)) => (name, endpoint.to_owned()),
            None if text == "docker.io" => (text, "https://registry-1.docker.io".to_owned()),
            None => (text, format!("https://{text}")),
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-:".contains(&b);
        let is_host = name.bytes().all(allowed) && (name.contains('.') || name.contains(':'));
        if !is_host {
            return Err(format!(
                "`{name}` is no registry as it stands in image names, like ghcr.io"
            ));
        }
        let endpoint = Url::parse(&endpoint).map_err(|error| format!("`{endpoint}`: {error}"))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.path() != "/" {
            return Err(format!("`{endpoint}` is not like https://registry.example.com"));
        }
        Ok(Self { name: name.to_owned(), endpoint })
    }
}

impl Upstream {
    /// `host:port` of where it is.
    pub fn host(&self) -> String {
        host(&self.endpoint)
    }

    pub fn url(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }
}

impl Mirror {
    pub fn new(flags: &ClientConfig) -> Result<Self, ConfigError> {
        let url = &flags.registry;
        let plain = url.username().is_empty() && url.path() == "/" && url.query().is_none();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain {
            let message = format!("--registry {url} is not like https://hydrant.example.com");
            return Err(ConfigError::Usage(message));
        }
        let upstreams = match flags.upstreams.as_slice() {
            [] => USUAL.iter().map(|name| name.parse().expect("they are registries")).collect(),
            named => named.to_vec(),
        };
        let url_text = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { url: url_text, host: host(url), security: security(flags)?, upstreams })
    }

    /// The authority to be trusted, where there is one: its file and what is in it.
    pub fn authority(&self) -> Option<(&PathBuf, &str)> {
        match &self.security {
            Security::Authority { file, pem } => Some((file, pem)),
            Security::Plain | Security::Tls => None,
        }
    }
}

fn security(flags: &ClientConfig) -> Result<Security, ConfigError> {
    match (&flags.ca, flags.registry.scheme()) {
        (Some(_), "http") => Err(ConfigError::Usage(
            "--ca is for https, and --registry is http; drop one".to_owned(),
        )),
        (None, "http") => Ok(Security::Plain),
        (None, _) => Ok(Security::Tls),
        (Some(file), _) => {
            let unreadable =
                |cause| ConfigError::File { what: "read", file: file.display().to_string(), cause };
            let pem = fs::read_to_string(file).map_err(unreadable)?;
            let file = std::path::absolute(file).map_err(unreadable)?;
            Ok(Security::Authority { file, pem })
        }
    }
}

fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_told_by_name_and_where_they_are() {
        for (text, name, url) in [
            ("docker.io", "docker.io", "https://registry-1.docker.io"),
            ("ghcr.io", "ghcr.io", "https://ghcr.io"),
            ("lab.example=http://10.0.0.7:5000", "lab.example", "http://10.0.0.7:5000"),
        ] {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!((upstream.name.as_str(), upstream.url()), (name, url));
        }
        for wrong in ["docker", "https://ghcr.io", "a b.io", "x.io=ftp://x", "x.io=http://x/y", ""]
        {
            assert!(wrong.parse::<Upstream>().is_err(), "{wrong}");
        }
    }
}
