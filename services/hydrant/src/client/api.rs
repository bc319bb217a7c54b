//! Requests to the API of a hydrant.

use super::failure::{Failure, Told};
use crate::cli::Server;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer that is no stream: longer than the longest long poll.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);

/// The API of one hydrant.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    server: Server,
}

/// What the API answers when it refuses.
#[derive(Deserialize)]
struct Refusal {
    error: Told,
    #[serde(default)]
    errors: Vec<Told>,
}

impl Api {
    pub fn new(server: Server) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Failure::Failed(format!("cannot set up TLS: {error}")))?;
        Ok(Self { http, server })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let (value, _) = self.json(self.request(Method::GET, path)).await?;
        Ok(value)
    }

    /// With the `ETag`, for a conditional write.
    pub async fn get_tagged(&self, path: &str) -> Result<(Value, Option<String>), Failure> {
        self.json(self.request(Method::GET, path)).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Failure> {
        let (value, _) = self.json(self.request(Method::POST, path).json(body)).await?;
        Ok(value)
    }

    /// Writes if the resource is still as `tag` says; without one, whatever is there.
    pub async fn put(&self, path: &str, body: &Value, tag: Option<&str>) -> Result<bool, Failure> {
        let mut request = self.request(Method::PUT, path).json(body);
        if let Some(tag) = tag {
            request = request.header(header::IF_MATCH, tag);
        }
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        Ok(response.status() == StatusCode::CREATED)
    }

    pub async fn delete(&self, path: &str) -> Result<(), Failure> {
        self.send(self.request(Method::DELETE, path).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// An answer whose body goes on for as long as it likes.
    pub async fn stream(&self, path: &str) -> Result<Response, Failure> {
        self.send(self.request(Method::GET, path)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let base = self.server.server.as_str().trim_end_matches('/');
        let request = self.http.request(method, format!("{base}/api/v1{path}"));
        match &self.server.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<(T, Option<String>), Failure> {
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
        let tag = tag.map(str::to_owned);
        let value = response.json().await.map_err(|error| {
            Failure::Failed(format!(
                "{} does not answer as hydrant does: {error}",
                self.server.server
            ))
        })?;
        Ok((value, tag))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        Err(refusal(status, &text))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // The innermost cause says what happened; the outer ones repeat the URL.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Failure::Unreachable { server: self.server.server.to_string(), reason: cause.to_string() }
    }
}

fn refusal(status: StatusCode, text: &str) -> Failure {
    let told = match serde_json::from_str::<Refusal>(text) {
        Ok(Refusal { error, errors }) if errors.is_empty() => vec![error],
        Ok(Refusal { errors, .. }) => errors,
        Err(_) => {
            let text: String = text.trim().chars().take(200).collect();
            vec![Told {
                message: format!("the server answers {status}: {text}"),
                ..Told::default()
            }]
        }
    };
    Failure::Refused { status: status.as_u16(), told }
}

/// `text` as the value of a query parameter, or as one segment of a path.
pub fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment() {
        assert_eq!(encoded("lab/app:1 2&x=y"), "lab%2Fapp%3A1%202%26x%3Dy");
    }

    #[test]
    fn a_refusal_that_is_not_ours_is_shown_as_it_is() {
        let failure = refusal(StatusCode::BAD_GATEWAY, "<html>proxy</html>");
        assert!(failure.to_string().contains("502") && failure.may_pass(), "{failure}");
        let ours = r#"{"error":{"field":"a","message":"b","remedy":"c"}}"#;
        let failure = refusal(StatusCode::BAD_REQUEST, ours);
        assert_eq!(failure.to_string(), "a: b; c");
    }
}
