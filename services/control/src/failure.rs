//! Every failure of the API as an answer: a status and `{"error": {field, message, remedy}}`.
//! What a caller reads and what the log says are separate: causes that are ours are logged here.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hydrant_boot::EditError;
use hydrant_bus::BusError;
use hydrant_proto::FailureClass;
use hydrant_rules::{Kind, Problem, Problems};
use hydrant_store::StoreError;
use serde::Serialize;
use std::borrow::Cow;

/// Seconds after which a caller may ask again when a dependency is away.
const RETRY_AFTER: &str = "2";

/// Most characters of one word, and of one text, of an answer.
const LONGEST_WORD: usize = 120;
const LONGEST_TEXT: usize = 2_000;

/// Why a request was not served.
#[derive(Debug)]
pub(crate) enum Failure {
    /// 400: something in the request is wrong, told by field.
    Invalid(Vec<Told>),
    /// 401.
    Unauthorized,
    /// 403: the API is not open to this caller.
    Forbidden { message: &'static str, remedy: &'static str },
    /// 404: this thing is not there.
    Missing { field: &'static str, message: String, remedy: String },
    /// 409: it clashes with, or is needed by, something else.
    Conflict(Vec<Told>),
    /// 412: it is not, or no longer, in the state the caller demanded.
    Precondition(String),
    /// 413.
    TooLarge,
    /// 503: storage does not answer, or cannot at the moment.
    Storage(String),
    /// 503: it may work later.
    Unavailable { message: String, remedy: &'static str },
    /// 500.
    Broken { message: String, remedy: &'static str },
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Told {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// What kind of failure it is, where it is none of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
}

impl Told {
    pub fn new(
        field: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), message: message.into(), remedy: remedy.into(), class: None }
    }

    /// For the answer: what the caller sent comes back short, however long it was.
    fn shortened(self) -> Self {
        let (field, message) = (shortened(&self.field), shortened(&self.message));
        Self { field, message, remedy: shortened(&self.remedy), ..self }
    }
}

impl From<Problem> for Told {
    fn from(problem: Problem) -> Self {
        Self::new(problem.field, problem.message, problem.remedy)
    }
}

impl Failure {
    pub fn invalid(
        field: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Invalid(vec![Told::new(field, message, remedy)])
    }

    pub fn no_resource(kind: Kind, name: &str) -> Self {
        Self::Missing {
            field: kind.as_str(),
            message: format!("there is no {kind} `{name}`"),
            remedy: format!("see GET /api/v1/{kind}s for those there are"),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::Missing { .. } => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Precondition(_) => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Storage(_) | Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub fn told(self) -> Vec<Told> {
        let one =
            |field: &str, message: String, remedy: &str| vec![Told::new(field, message, remedy)];
        match self {
            Self::Invalid(told) | Self::Conflict(told) => told,
            Self::Unauthorized => one(
                "authorization",
                "a valid bearer token is needed".to_owned(),
                "send `Authorization: Bearer …` with the value of HYDRANT_ADMIN_TOKEN",
            ),
            Self::Forbidden { message, remedy } => one("", message.to_owned(), remedy),
            Self::Missing { field, message, remedy } => one(field, message, &remedy),
            Self::Precondition(message) => {
                one("if-match", message, "read it again and decide anew")
            }
            Self::TooLarge => {
                one("body", "the request body is larger than 1 MiB".to_owned(), "send less")
            }
            Self::Storage(message) => {
                let told = Told::new("", message, "try again; see /readyz?verbose");
                vec![Told { class: Some(FailureClass::Storage), ..told }]
            }
            Self::Unavailable { message, remedy } | Self::Broken { message, remedy } => {
                one("", message, remedy)
            }
        }
    }
}

/// `text` with each long word, which is a value that somebody sent, cut to [`LONGEST_WORD`]
/// characters, and as a whole to [`LONGEST_TEXT`].
fn shortened(text: &str) -> String {
    let words =
        text.split_inclusive(char::is_whitespace).map(|word| match cut(word, LONGEST_WORD) {
            None => Cow::Borrowed(word),
            Some(head) => {
                // The quotes and the punctuation behind the value stay.
                let end =
                    word.trim_end_matches(|c: char| c.is_whitespace() || c.is_ascii_punctuation());
                let end = &word[end.len()..];
                Cow::Owned(format!("{head}…{}", cut(end, 4).unwrap_or(end)))
            }
        });
    let text: String = words.collect();
    match cut(&text, LONGEST_TEXT) {
        None => text,
        Some(head) => format!("{head}…"),
    }
}

/// The first `limit` characters of a text that has more.
fn cut(text: &str, limit: usize) -> Option<&str> {
    text.char_indices().nth(limit).map(|(end, _)| &text[..end])
}

#[derive(Serialize)]
struct Body {
    error: Told,
    /// Everything that is wrong, when it is more than one thing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Told>,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.status();
        let told: Vec<Told> = self.told().into_iter().map(Told::shortened).collect();
        let error = told.first().cloned().unwrap_or_else(|| Told::new("", "failed", ""));
        let errors = if told.len() > 1 { told } else { Vec::new() };
        let mut response = (status, Json(Body { error, errors })).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Problems> for Failure {
    /// A document that would not be valid: 409 when all that is wrong are clashes with others.
    fn from(problems: Problems) -> Self {
        let clashes = problems.0.iter().all(|problem| problem.conflict);
        let told = problems.0.into_iter().map(Told::from).collect();
        if clashes { Self::Conflict(told) } else { Self::Invalid(told) }
    }
}

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        tracing::warn!(%error, "a request to the API failed at the bus");
        let message = error.to_string();
        match error {
            BusError::Disconnected(_) | BusError::Unknown { .. } | BusError::Conflict { .. } => {
                Self::Unavailable { message, remedy: "try again; see /readyz?verbose" }
            }
            BusError::Full { .. } => {
                Self::Unavailable { message, remedy: "try again when the queue is shorter" }
            }
            BusError::Refused { .. } | BusError::Malformed { .. } => {
                Self::Broken { message, remedy: "see the log of this process" }
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "a request to the API failed at the store");
        let message = error.to_string();
        match error.retry() {
            hydrant_store::Retry::Later | hydrant_store::Retry::Observe => Self::Storage(message),
            hydrant_store::Retry::Never => {
                Self::Broken { message, remedy: "see the log of this process" }
            }
        }
    }
}

impl From<EditError<Failure>> for Failure {
    fn from(error: EditError<Failure>) -> Self {
        match error {
            EditError::Refused(failure) => failure,
            EditError::Invalid(problems) => problems.into(),
            EditError::Unreadable(reason) => Self::Broken {
                message: format!("the shared configuration is not readable: {reason}"),
                remedy: "replace it whole with `hydrant apply --prune -f FILE`",
            },
            EditError::Contended => Self::Unavailable {
                message: "the configuration is being changed by others".to_owned(),
                remedy: "try again",
            },
            EditError::Bus(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_and_what_is_said_of_them_stays() {
        let long = "é".repeat(5_000);
        let told = shortened(&format!("`{long}`: it is not a tag; {long}"));
        assert!(told.contains("…`: it is not a tag; é") && told.ends_with("é…"), "{told}");
        assert!(told.chars().count() < 300, "{told}");
        let usual = "rule.x.upstream names `lab`,\nwhich is not there";
        assert_eq!(shortened(usual), usual);
        assert_eq!(shortened(&"a ".repeat(5_000)).chars().count(), LONGEST_TEXT + 1);
    }
}
