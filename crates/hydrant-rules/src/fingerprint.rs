//! A short name for the exact content of a value, the same in every process.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// 64 bits of the SHA-256 of the value's JSON, as 16 hex digits.
pub fn fingerprint(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).expect("resources hold only strings, numbers and lists");
    hex::encode(&Sha256::digest(json)[..8])
}
