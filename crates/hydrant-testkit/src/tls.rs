//! Certificates for local servers.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A self-signed certificate for `localhost` and `127.0.0.1`, made anew for each test.
#[derive(Debug)]
pub struct TestCertificate {
    /// The certificate, which is also what clients must trust.
    pub certificate_pem: String,
    pub key_pem: String,
}

impl TestCertificate {
    pub fn generate() -> Self {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(names).expect("both names are valid");
        Self { certificate_pem: cert.pem(), key_pem: signing_key.serialize_pem() }
    }

    /// Writes `cert.pem` and `key.pem` into `directory` and returns their paths.
    pub fn write(&self, directory: &Path) -> (PathBuf, PathBuf) {
        let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        fs::write(&certificate, &self.certificate_pem).expect("the directory is writable");
        fs::write(&key, &self.key_pem).expect("the directory is writable");
        (certificate, key)
    }
}
