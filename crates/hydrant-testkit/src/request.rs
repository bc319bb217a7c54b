//! What a scripted server was asked, and what it answered.

use crate::pattern;
use hyper::{HeaderMap, http::request::Parts};
use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

/// One request, as far as it has come.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Without the `?`; empty when there is none.
    pub query: String,
    pub headers: HeaderMap,
    /// Absent while, or because, nothing was answered.
    pub status: Option<u16>,
    /// Body bytes given to the connection so far.
    pub bytes: u64,
    pub started: Instant,
    /// When the answer was sent whole, or given up.
    pub ended: Option<Instant>,
}

impl Request {
    /// A header as text; the first when there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the method is `method` (or `*`) and the path fits `pattern`.
    pub fn fits(&self, method: &str, pattern: &str) -> bool {
        (method == "*" || self.method == method) && pattern::matches(pattern, &self.path)
    }
}

/// All requests of one server, in the order of their arrival.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestLog(Arc<Mutex<Vec<Entry>>>);

impl RequestLog {
    pub fn begin(&self, parts: &Parts) -> Entry {
        let request = Request {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.clone(),
            status: None,
            bytes: 0,
            started: Instant::now(),
            ended: None,
        };
        let entry = Entry(Arc::new(Mutex::new(request)));
        self.entries().push(entry.clone());
        entry
    }

    pub fn all(&self) -> Vec<Request> {
        self.entries().iter().map(|entry| entry.request().clone()).collect()
    }

    pub fn fitting(&self, method: &str, pattern: &str) -> Vec<Request> {
        self.all().into_iter().filter(|request| request.fits(method, pattern)).collect()
    }

    /// The largest number of fitting requests that were under way at the same time.
    pub fn peak(&self, method: &str, pattern: &str) -> usize {
        let requests = self.fitting(method, pattern);
        let at = |moment: Instant| {
            let open = |r: &&Request| r.started <= moment && r.ended.is_none_or(|end| end > moment);
            requests.iter().filter(open).count()
        };
        requests.iter().map(|request| at(request.started)).max().unwrap_or(0)
    }

    pub fn forget(&self) {
        self.entries().clear();
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().expect("no holder panics")
    }
}

/// The log's line of one request, still being written.
#[derive(Clone, Debug)]
pub(crate) struct Entry(Arc<Mutex<Request>>);

impl Entry {
    pub fn answered(&self, status: u16) {
        self.request().status = Some(status);
    }

    pub fn sent(&self, bytes: usize) {
        self.request().bytes += bytes as u64;
    }

    /// Ends the line when dropped: keep it as long as the answer is being sent.
    pub fn until_dropped(&self) -> Ending {
        Ending(self.clone())
    }

    fn request(&self) -> MutexGuard<'_, Request> {
        self.0.lock().expect("no holder panics")
    }
}

pub(crate) struct Ending(Entry);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.request().ended = Some(Instant::now());
    }
}
