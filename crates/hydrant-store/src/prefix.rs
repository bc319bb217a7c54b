//! Multipart uploads and signing below a prefix, which `object_store`'s own prefix store leaves out.

use crate::open::Client;
use object_store::{
    MultipartId, PutPayload, PutResult, Result,
    multipart::{MultipartStore, PartId},
    path::Path,
    signer::Signer,
};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use url::Url;

#[derive(Debug)]
pub(crate) struct Prefixed {
    client: Arc<Client>,
    prefix: Path,
}

impl Prefixed {
    pub fn new(client: Arc<Client>, prefix: &str) -> Self {
        Self { client, prefix: Path::from(prefix) }
    }

    fn full(&self, path: &Path) -> Path {
        self.prefix.parts().chain(path.parts()).collect()
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl MultipartStore for Prefixed {
    fn create_multipart<'a, 'b, 'c>(&'a self, path: &'b Path) -> Answer<'c, MultipartId>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move { self.client.create_multipart(&self.full(path)).await })
    }

    fn put_part<'a, 'b, 'd, 'c>(
        &'a self,
        path: &'b Path,
        id: &'d MultipartId,
        part: usize,
        data: PutPayload,
    ) -> Answer<'c, PartId>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        Box::pin(async move { self.client.put_part(&self.full(path), id, part, data).await })
    }

    fn complete_multipart<'a, 'b, 'd, 'c>(
        &'a self,
        path: &'b Path,
        id: &'d MultipartId,
        parts: Vec<PartId>,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        Box::pin(async move { self.client.complete_multipart(&self.full(path), id, parts).await })
    }

    fn abort_multipart<'a, 'b, 'd, 'c>(
        &'a self,
        path: &'b Path,
        id: &'d MultipartId,
    ) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        Box::pin(async move { self.client.abort_multipart(&self.full(path), id).await })
    }
}

impl Signer for Prefixed {
    fn signed_url<'a, 'b, 'c>(
        &'a self,
        method: http::Method,
        path: &'b Path,
        expires_in: Duration,
    ) -> Answer<'c, Url>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move { self.client.signed_url(method, &self.full(path), expires_in).await })
    }
}
