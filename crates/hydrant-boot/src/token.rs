//! The token of the admin API: where it comes from and what it may not be.

use std::{env, fmt, fs, sync::Arc};

const VARIABLE: &str = "HYDRANT_ADMIN_TOKEN";
const FILE_VARIABLE: &str = "HYDRANT_ADMIN_TOKEN_FILE";

/// Words that people leave in place of a secret.
const PLACEHOLDERS: [&str; 8] =
    ["admin", "changeme", "default", "example", "hydrant", "password", "secret", "token"];

/// The bearer token of the HTTP API. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(Arc<str>);

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

impl AdminToken {
    /// Reads `HYDRANT_ADMIN_TOKEN`, or the file that `HYDRANT_ADMIN_TOKEN_FILE` names. It is no
    /// flag, because the arguments of a process are readable by everyone on the machine.
    pub fn from_env() -> Result<Option<Self>, String> {
        if let Ok(token) = env::var(VARIABLE) {
            return Self::parse(&token).map(Some).map_err(|why| format!("{VARIABLE} {why}"));
        }
        let Some(file) = env::var_os(FILE_VARIABLE) else { return Ok(None) };
        let text = fs::read_to_string(&file)
            .map_err(|error| format!("{FILE_VARIABLE}: cannot read {}: {error}", file.display()))?;
        let token = text.strip_suffix('\n').unwrap_or(&text);
        Self::parse(token).map(Some).map_err(|why| format!("{FILE_VARIABLE} {why}"))
    }

    /// A token of visible ASCII that is not a placeholder.
    pub fn parse(token: &str) -> Result<Self, String> {
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("must be visible ASCII without spaces; try `openssl rand -hex 32`".into());
        }
        if PLACEHOLDERS.contains(&token.to_ascii_lowercase().as_str()) {
            return Err("is a placeholder and no secret; try `openssl rand -hex 32`".into());
        }
        Ok(Self(token.into()))
    }

    /// The token itself, for comparing and for the `Authorization` header.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_and_unsendable_tokens_are_refused() {
        for bad in ["", " ", "a b", "a\n", "täglich", "changeme", "Admin"] {
            assert!(AdminToken::parse(bad).is_err(), "{bad:?}");
        }
        let token = AdminToken::parse("0f9a-visible").unwrap();
        assert_eq!(token.expose(), "0f9a-visible");
        assert!(!format!("{token:?}").contains("0f9a"));
    }
}
