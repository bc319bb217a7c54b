//! The wire codec: MessagePack by field name inside a versioned envelope.
//!
//! Fields may be added at any time: a reader ignores those it does not know, and a new field has a
//! default. Anything else raises [`Message::VERSION`]. The bytes of every message are kept as
//! fixtures in `proto/tests/fixtures`, so that an incompatible change shows itself.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::Cursor;

/// Longest message accepted, in bytes. NATS refuses more than 1 MiB by default.
pub const MAX_BYTES: usize = 512 * 1024;

/// A value that travels on the bus.
pub trait Message: Serialize + DeserializeOwned {
    /// Names the message inside the envelope, so that one is never taken for another.
    const KIND: &'static str;
    /// Raised when a reader of the previous version would misunderstand the new one.
    const VERSION: u16;
}

/// The bytes are not a message of the expected kind; never retried.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("message has {0} bytes, more than {MAX_BYTES}")]
    TooLong(usize),
    #[error("message is not valid MessagePack of the expected shape: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    #[error("message has {0} bytes after its end")]
    Trailing(usize),
    #[error("message is a `{found}`, expected a `{expected}`")]
    WrongKind { expected: &'static str, found: String },
    #[error("message version {found} is not the supported {supported}")]
    UnknownVersion { supported: u16, found: u16 },
}

#[derive(Serialize)]
struct Sealed<'a, M> {
    kind: &'static str,
    version: u16,
    body: &'a M,
}

#[derive(Deserialize)]
struct Label {
    kind: String,
    version: u16,
}

#[derive(Deserialize)]
struct Opened<M> {
    body: M,
}

/// The bytes of `message`.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    let sealed = Sealed { kind: M::KIND, version: M::VERSION, body: message };
    rmp_serde::to_vec_named(&sealed).expect("messages hold only strings, numbers, lists and maps")
}

/// Reads a message of type `M`, checking length, kind, version and that nothing follows it.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let label: Label = rmp_serde::from_slice(bytes)?;
    if label.kind != M::KIND {
        return Err(CodecError::WrongKind { expected: M::KIND, found: label.kind });
    }
    if label.version != M::VERSION {
        return Err(CodecError::UnknownVersion { supported: M::VERSION, found: label.version });
    }
    let mut reader = rmp_serde::Deserializer::new(Cursor::new(bytes));
    let opened = Opened::<M>::deserialize(&mut reader)?;
    let read = usize::try_from(reader.position()).expect("the position is inside the slice");
    match bytes.len() - read {
        0 => Ok(opened.body),
        left => Err(CodecError::Trailing(left)),
    }
}
