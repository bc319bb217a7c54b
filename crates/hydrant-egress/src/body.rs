//! What is sent, and what comes back.

use crate::error::{Broken, chain};
use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use url::Url;

/// What is asked for.
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer, whatever its status. It is not followed where it redirects to.
pub type Response = http::Response<Body>;

/// The body of an answer. Dropping it before its end closes the connection.
#[derive(Debug)]
pub struct Body(pub(crate) Incoming);

impl Body {
    /// The next bytes, no more than the read buffer holds ([`READ_BUFFER`](crate::READ_BUFFER));
    /// `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        while let Some(frame) = self.0.frame().await {
            let frame = frame.map_err(|error| Broken(chain(&error)))?;
            // Trailers are of no use here.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// How long it is, if its headers say so.
    pub fn length(&self) -> Option<u64> {
        self.0.size_hint().exact()
    }
}
