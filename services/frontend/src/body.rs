//! Response bodies: nothing, bytes, a file, or a stream that may break, with the record of the answer
//! that is written when the last of it has gone out, or the client has.

use crate::{record::Record, sent_file::SentFile};
use bytes::Bytes;
use futures::Stream;
use http_body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// The body broke before its end. The connection is cut, so that the client cannot take what it
/// has for the whole.
#[derive(Clone, Debug, thiserror::Error)]
#[error("content broke off: {0}")]
pub struct Broken(pub String);

pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Broken>> + Send>>;

pub enum Content {
    Empty,
    Bytes(Bytes),
    File(SentFile),
    Stream(ByteStream),
}

pub struct Body {
    content: Content,
    record: Record,
}

impl Body {
    pub fn new(content: Content, record: Record) -> Self {
        Self { content, record }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let next = match &mut self.content {
            Content::Empty => None,
            Content::Bytes(bytes) => Some(Ok(std::mem::take(bytes))),
            Content::File(file) => ready!(file.poll_next(cx)),
            Content::Stream(stream) => ready!(stream.as_mut().poll_next(cx)),
        };
        let goes_on = matches!(self.content, Content::File(_) | Content::Stream(_));
        if !goes_on || !matches!(next, Some(Ok(_))) {
            self.content = Content::Empty;
        }
        Poll::Ready(match next {
            Some(Ok(bytes)) => {
                self.record.sent(bytes.len());
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(broken)) => {
                self.record.broke();
                Some(Err(broken))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::File(file) => file.is_at_end(),
            Content::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::File(_) | Content::Stream(_) => SizeHint::default(),
        }
    }
}
