//! What files are found by, and what is said of them: folders, names, media types, headers.

use std::path::{Component, Path, PathBuf};

use http::{HeaderName, HeaderValue};

use super::{Kind, Problem, Value};

/// From `/` on, or from `./` on; without steps back, and not all of the machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Folder(pub PathBuf);

impl Value for Folder {
    fn is(kind: Kind) -> bool {
        kind == Kind::Folder
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let path = Path::new(text);
        if text.is_empty() || text.contains('\0') {
            return Err(Problem::new("is not a path"));
        }
        if !text.starts_with('/') && !text.starts_with("./") {
            let problem = Problem::new("does not say from where on");
            return Err(problem.write(format!("/{text}")).write(format!("./{text}")));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            let problem = Problem::new("has steps back in it");
            return Err(problem.say("write the path that they lead to"));
        }
        if path == Path::new("/") {
            let problem = Problem::new("is all of the machine");
            return Err(problem.say("write a folder with nothing but these files"));
        }
        Ok(Self(path.to_owned()))
    }

    fn show(&self) -> String {
        self.0.display().to_string()
    }
}

/// The name of a file in any folder.
#[derive(Debug, PartialEq, Eq)]
pub struct Name(pub String);

impl Value for Name {
    fn is(kind: Kind) -> bool {
        kind == Kind::FileName
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() || text.starts_with('.') || text.contains(['/', '\0']) {
            return Err(Problem::new("is not the name of a file"));
        }
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// Lower case, without parameters.
#[derive(Debug, PartialEq, Eq)]
pub struct MediaType(pub String);

impl Value for MediaType {
    fn is(kind: Kind) -> bool {
        kind == Kind::MediaType
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if let Some((media, _)) = text.split_once(';') {
            let problem = Problem::new("has parameters, which do not count");
            return Err(match Self::parse(media.trim()) {
                Ok(Self(media)) => problem.write(media),
                Err(_) => problem,
            });
        }
        let lower = text.to_ascii_lowercase();
        let token = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte);
            !part.is_empty() && part.bytes().all(plain)
        };
        match lower.split_once('/') {
            Some((kind, "*")) if token(kind) => {
                Err(Problem::new("has a star").say("write each type that is meant"))
            }
            Some((kind, name)) if token(kind) && token(name) => Ok(Self(lower)),
            _ => Err(Problem::new("is not a media type")),
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Value for HeaderValue {
    fn is(kind: Kind) -> bool {
        kind == Kind::HeaderValue
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        match HeaderValue::from_str(text) {
            Ok(value) if text.is_ascii() && !text.is_empty() && text.trim() == text => Ok(value),
            _ => Err(Problem::new("is not the value of a header")),
        }
    }

    fn show(&self) -> String {
        let text = self.to_str();
        text.expect("ASCII, or it had not been parsed").to_owned()
    }
}

/// One that an answer may have besides what the gateway says of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Header(pub HeaderName, pub HeaderValue);

/// What the gateway says of a file by itself, or of its connection.
const OURS: &[&str] = &[
    "accept-ranges",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "keep-alive",
    "last-modified",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Value for Header {
    fn is(kind: Kind) -> bool {
        kind == Kind::Header
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let Some((name, value)) = text.split_once(':') else {
            return Err(Problem::new("is not NAME: VALUE"));
        };
        let Ok(name) = HeaderName::from_bytes(name.trim_end().as_bytes()) else {
            return Err(Problem::new("begins with no name of a header"));
        };
        if name == "cache-control" {
            return Err(Problem::new("has a key of its own").say("write it as cache_control"));
        }
        if OURS.contains(&name.as_str()) {
            return Err(Problem::new("is said by the gateway").say("remove it"));
        }
        HeaderValue::parse(value.trim()).map(|value| Self(name, value))
    }

    fn show(&self) -> String {
        format!("{}: {}", self.0, self.1.show())
    }
}
