//! What a request says, read strictly: unknown fields and parameters are refused by name.

use crate::failure::Failure;
use axum::{
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{StatusCode, header::CONTENT_LENGTH, request::Parts},
};
use bytes::Bytes;
use hydrant_boot::admin::MAX_BODY_BYTES;
use hydrant_proto::Image;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Query parameters.
pub(crate) struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let text = rejection.body_text();
                let message = text.rsplit_once("query string: ").map_or(&*text, |(_, why)| why);
                let field = named_in(message).unwrap_or("query");
                Err(Failure::invalid(field, message, "see /api/v1/openapi.json"))
            }
        }
    }
}

/// The bytes of a request body, at most what the admin port takes.
pub(crate) struct Body(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        if announced(&request).is_some_and(|length| length > MAX_BODY_BYTES) {
            return Err(Failure::TooLarge);
        }
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| {
            match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Failure::TooLarge,
                _ => Failure::invalid("body", rejection.body_text(), "send the body again"),
            }
        })
    }
}

/// The length a request says its body has, so that nobody sends in vain what is not taken.
fn announced(request: &Request) -> Option<usize> {
    request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Body {
    /// The body as JSON of one shape; an error names the field it is about.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let value: Value = serde_json::from_slice(&self.0).map_err(|error| {
            Failure::invalid("body", format!("is not JSON: {error}"), "send a JSON object")
        })?;
        from_value(value)
    }
}

/// A JSON value as one shape; an error names the field it is about.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    T::deserialize(&value).map_err(|error| {
        let message = error.to_string();
        let field = named_in(&message).map(str::to_owned);
        let field = field.or_else(|| culprit::<T>(&value, &message));
        let field = field.unwrap_or_else(|| "body".to_owned());
        Failure::invalid(field, message, "see /api/v1/openapi.json for the fields there are")
    })
}

/// The field that serde's message names in backquotes.
fn named_in(message: &str) -> Option<&str> {
    let rest = ["unknown field `", "missing field `", "duplicate field `"]
        .into_iter()
        .find_map(|prefix| Some(message.split_once(prefix)?.1))?;
    rest.split('`').next()
}

/// The field whose value is wrong: the one without which the message is another.
fn culprit<T: DeserializeOwned>(value: &Value, message: &str) -> Option<String> {
    let object = value.as_object()?;
    let is_to_blame = |key: &&String| {
        let mut without = object.clone();
        without.remove(*key);
        let outcome = T::deserialize(&Value::Object(without));
        outcome.err().is_none_or(|error| error.to_string() != message)
    };
    object.keys().find(is_to_blame).cloned()
}

/// An image as a caller writes it.
pub(crate) fn image(text: &str) -> Result<Image, Failure> {
    text.parse().map_err(|error| {
        let remedy = "write repository:tag or repository@sha256:…, without a registry host";
        Failure::invalid("image", format!("{text:?}: {error}"), remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_rules::Rule;
    use serde_json::json;

    fn field(value: Value) -> String {
        match from_value::<Rule>(value) {
            Err(Failure::Invalid(told)) => told[0].field.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_field_in_question_is_named() {
        for (more, named) in [
            (json!({"freshfor": "5m"}), "freshfor"),
            (json!({"fresh_for": "-1s"}), "fresh_for"),
            (json!({"platforms": "some"}), "platforms"),
            (json!({"upstream": 7}), "upstream"),
        ] {
            let mut rule = json!({"name": "lab", "downstream": "lab/*", "upstream": "lab"});
            rule.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
            assert_eq!(field(rule), named);
        }
        assert_eq!(field(json!({"name": "lab", "downstream": "lab/*"})), "upstream");
        assert_eq!(field(json!([])), "body");
    }
}
