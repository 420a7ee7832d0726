//! Where telemetry goes, how much of it, and what is said with it.

use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use super::{Kind, Problem, Value};
use crate::config::{Ratio, SecretHeader};

/// A server's address, maybe with a path. Without user, query and fragment.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpUrl(pub Url);

impl Value for HttpUrl {
    fn is(kind: Kind) -> bool {
        kind == Kind::HttpUrl
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let web = text.starts_with("http://") || text.starts_with("https://");
        let Some(url) = Url::parse(text).ok().filter(|url| web && url.has_host()) else {
            let problem = Problem::new("is not an http:// or https:// URL");
            let bare = !text.contains("://") && text.contains(':') && !text.starts_with(':');
            return Err(match Self::parse(&format!("http://{text}")) {
                Ok(_) if bare => problem.write(format!("http://{text}")),
                _ => problem,
            });
        };
        if !url.username().is_empty() || url.password().is_some() {
            let problem = Problem::new("has a user in it");
            return Err(problem.say("say who you are in a header"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(Problem::new("has more than a path").say("remove the rest"));
        }
        Ok(Self(url))
    }

    fn show(&self) -> String {
        let text = self.0.as_str();
        match self.0.path() {
            "/" => text.trim_end_matches('/').to_owned(),
            _ => text.to_owned(),
        }
    }
}

impl Value for Ratio {
    fn is(kind: Kind) -> bool {
        kind == Kind::Ratio
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(percent) = text.strip_suffix('%').map(str::trim) {
            let problem = Problem::new("is a percentage");
            return Err(match percent.parse::<f64>() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => {
                    problem.write((percent / 100.0).to_string())
                }
                _ => problem.say("write a number from 0 to 1"),
            });
        }
        match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Self(ratio)),
            _ => Err(Problem::new("is not a number from 0 to 1")),
        }
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Title(pub String);

impl Value for Title {
    fn is(kind: Kind) -> bool {
        kind == Kind::Title
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            return Err(Problem::new("is no name"));
        }
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Value for SecretHeader {
    fn is(kind: Kind) -> bool {
        kind == Kind::SecretHeader
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let Some((name, value)) = text.split_once(':') else {
            return Err(Problem::new("is not NAME: VALUE"));
        };
        let Ok(name) = HeaderName::from_bytes(name.trim_end().as_bytes()) else {
            return Err(Problem::new("begins with no name of a header"));
        };
        let mut value = HeaderValue::parse(value.trim())?;
        value.set_sensitive(true);
        Ok(Self(name, value))
    }

    fn show(&self) -> String {
        format!("{}: ***", self.0)
    }
}

/// The value is percent-decoded, as in OpenTelemetry's variable.
#[derive(Debug, PartialEq, Eq)]
pub struct Attribute(pub String, pub String);

impl Value for Attribute {
    fn is(kind: Kind) -> bool {
        kind == Kind::Attribute
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| Problem::new("is not NAME=VALUE"))?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() {
            return Err(Problem::new("has no name"));
        }
        match percent_decode_str(value).decode_utf8() {
            Ok(value) => Ok(Self(name.to_owned(), value.into_owned())),
            Err(_) => Err(Problem::new("has a value that is not UTF-8")),
        }
    }

    fn show(&self) -> String {
        format!(
            "{}={}",
            self.0,
            self.1.replace('%', "%25").replace(',', "%2C")
        )
    }
}
