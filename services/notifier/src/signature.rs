//! Standard Webhooks signatures (<https://www.standardwebhooks.com>, version 1, symmetric): what a
//! delivery is signed with, and how a receiver checks it.
//!
//! The signed text is `<webhook-id>.<webhook-timestamp>.<body>`; the signature is HMAC-SHA256.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretBox};
use sha2::Sha256;

pub const ID: &str = "webhook-id";
pub const TIMESTAMP: &str = "webhook-timestamp";
pub const SIGNATURE: &str = "webhook-signature";

const PREFIX: &str = "whsec_";
const VERSION: &str = "v1";
/// Key lengths in bytes, as the specification bounds them.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// How far the sender's clock may be from the receiver's; five minutes, as the specification's
/// libraries have it.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// Why a text is no signing secret. Never shows any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeakSecret {
    #[error(
        "the webhook secret is not `whsec_` followed by base64; make one with \
         `echo whsec_$(openssl rand -base64 32)`"
    )]
    Malformed,
    #[error(
        "the webhook secret holds {0} bytes, which must be 24 to 64; make one with \
         `echo whsec_$(openssl rand -base64 32)`"
    )]
    Length(usize),
}

/// Why a received delivery is not to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("the header `{0}` is missing or unreadable")]
    Header(&'static str),
    #[error("the delivery was signed more than five minutes from now")]
    Stale,
    #[error("no signature fits the body")]
    Signature,
}

/// A signing key. Its bytes are wiped when it is dropped and show up in no dump.
#[derive(Debug)]
pub struct Key(SecretBox<[u8]>);

impl Key {
    /// Reads a secret as people hold it: `whsec_` and base64, or the base64 alone.
    pub fn parse(text: &str) -> Result<Self, WeakSecret> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).unwrap_or(text);
        let bytes = STANDARD.decode(encoded).map_err(|_| WeakSecret::Malformed)?;
        let length = bytes.len();
        let key = Self(SecretBox::new(bytes.into_boxed_slice()));
        if KEY_BYTES.contains(&length) { Ok(key) } else { Err(WeakSecret::Length(length)) }
    }

    /// The value of `webhook-signature` for a body sent at `at`.
    pub fn sign(&self, id: &str, at: Timestamp, body: &[u8]) -> String {
        let code = self.mac(id, at.as_second(), body).finalize().into_bytes();
        format!("{VERSION},{}", STANDARD.encode(code))
    }

    /// Checks what a receiver got. Several signatures, separated by spaces, are allowed, as a
    /// sender makes while it changes keys; one must fit. Compares in constant time.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), Untrusted> {
        let id = header(headers, ID)?;
        let second: i64 =
            header(headers, TIMESTAMP)?.parse().map_err(|_| Untrusted::Header(TIMESTAMP))?;
        let at = Timestamp::from_second(second).map_err(|_| Untrusted::Header(TIMESTAMP))?;
        if now.duration_since(at).abs() > TOLERANCE {
            return Err(Untrusted::Stale);
        }
        let offered = header(headers, SIGNATURE)?.split(' ').filter_map(code_of);
        let fits = |code: Vec<u8>| self.mac(id, second, body).verify_slice(&code).is_ok();
        if offered.into_iter().any(fits) { Ok(()) } else { Err(Untrusted::Signature) }
    }

    fn mac(&self, id: &str, second: i64, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose_secret())
            .expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{second}.").as_bytes());
        mac.update(body);
        mac
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Untrusted> {
    headers.get(name).and_then(|value| value.to_str().ok()).ok_or(Untrusted::Header(name))
}

/// The bytes of one `v1,<base64>`; other versions are passed over.
fn code_of(signature: &str) -> Option<Vec<u8>> {
    let (version, code) = signature.split_once(',')?;
    if version == VERSION { STANDARD.decode(code).ok() } else { None }
}

/// Checks a received delivery against the secret as people hold it: the one call a receiver needs.
pub fn verify(secret: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), VerifyError> {
    Ok(Key::parse(secret)?.verify(headers, body, Timestamp::now())?)
}

/// Why [`verify`] cannot vouch for a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Secret(#[from] WeakSecret),
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";

    fn signed(key: &Key, id: &str, at: Timestamp, body: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ID, id.parse().unwrap());
        headers.insert(TIMESTAMP, at.as_second().to_string().parse().unwrap());
        headers.insert(SIGNATURE, key.sign(id, at, body).parse().unwrap());
        headers
    }

    #[test]
    fn the_vector_of_the_reference_library_holds() {
        // crate standardwebhooks 1.0.1, src/lib.rs, `test_sign`
        let key = Key::parse("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
        let at = Timestamp::from_second(1_649_367_553).unwrap();
        let body = br#"{"email":"test@example.com","username":"test_user"}"#;
        let signature = key.sign("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", at, body);
        assert_eq!(signature, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
    }

    #[test]
    fn the_reference_library_accepts_what_we_sign() {
        let key = Key::parse(SECRET).unwrap();
        let body = "{\"größe\":1}".as_bytes();
        let headers = signed(&key, "0123abcd", Timestamp::now(), body);
        standardwebhooks::Webhook::new(SECRET).unwrap().verify(body, &headers).unwrap();
        verify(SECRET, &headers, body).unwrap();
        verify(&SECRET[PREFIX.len()..], &headers, body).unwrap();
    }

    #[test]
    fn whatever_was_changed_is_noticed() {
        let key = Key::parse(SECRET).unwrap();
        let now = Timestamp::now();
        let good = signed(&key, "id", now, b"{}");
        assert_eq!(key.verify(&good, b"{}", now), Ok(()));
        assert_eq!(key.verify(&good, b"{ }", now), Err(Untrusted::Signature));
        let other_id = {
            let mut headers = good.clone();
            headers.insert(ID, "other".parse().unwrap());
            headers
        };
        assert_eq!(key.verify(&other_id, b"{}", now), Err(Untrusted::Signature));
        for name in [ID, TIMESTAMP, SIGNATURE] {
            let mut headers = good.clone();
            headers.remove(name);
            assert_eq!(key.verify(&headers, b"{}", now), Err(Untrusted::Header(name)));
        }
        for minutes in [-6, 6] {
            let later = now + SignedDuration::from_mins(minutes);
            assert_eq!(key.verify(&good, b"{}", later), Err(Untrusted::Stale));
        }
    }

    #[test]
    fn one_fitting_signature_among_several_is_enough() {
        let (old, new) =
            (Key::parse(SECRET).unwrap(), Key::parse(&STANDARD.encode([7; 32])).unwrap());
        let now = Timestamp::now();
        let mut headers = signed(&old, "id", now, b"{}");
        let both =
            format!("v1a,AAAA {} {}", new.sign("id", now, b"{}"), old.sign("id", now, b"{}"));
        headers.insert(SIGNATURE, both.parse().unwrap());
        assert_eq!(old.verify(&headers, b"{}", now), Ok(()));
        headers.insert(SIGNATURE, "v2,AAAA junk v1, v1,!!".parse().unwrap());
        assert_eq!(old.verify(&headers, b"{}", now), Err(Untrusted::Signature));
    }

    #[test]
    fn weak_and_malformed_secrets_are_refused_with_the_remedy() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![1; bytes]));
        for good in [of(24), of(32), of(64), format!(" {}\n", of(32))] {
            assert!(Key::parse(&good).is_ok(), "{good}");
        }
        let table = [
            ("", WeakSecret::Length(0)),
            ("changeme", WeakSecret::Length(6)),
            ("hunter2", WeakSecret::Malformed),
            ("whsec_", WeakSecret::Length(0)),
            ("whsec_not base64", WeakSecret::Malformed),
            ("whsk_AAAA", WeakSecret::Malformed),
            (&of(23), WeakSecret::Length(23)),
            (&of(65), WeakSecret::Length(65)),
        ];
        for (text, expected) in table {
            let error = Key::parse(text).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(error.to_string().contains("openssl rand -base64 32"), "{error}");
        }
    }

    #[test]
    fn a_key_shows_nothing_of_itself() {
        let key = Key::parse(&STANDARD.encode([171; 32])).unwrap();
        assert!(!format!("{key:?}").contains("171"));
    }
}
