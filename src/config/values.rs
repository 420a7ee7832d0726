//! Values: from the text of one value to its type, and back.
//!
//! A parser takes one spelling only and, where it can guess what was meant, says which. The
//! text is the same whether it comes from the file, the environment, a flag or the table of
//! keys; quotes and places are the reader's business.

mod addresses;
mod files;
mod names;
mod quantities;
mod requests;
mod telemetry;

use std::path::PathBuf;

use super::keys::Kind;
use super::mistakes::Problem;
use super::{
    AccessFormat, BodyMode, ClientAuth, Coding, ForwardingHeaders, Immutable, Level, LogFormat,
    Mode, OnDisconnect, OtlpProtocol, Secret, TlsVersion,
};

pub(super) use addresses::UnixSocket;
pub(super) use files::{Folder, Header, MediaType, Name};
pub(super) use names::{AppName, Dotted, Host};
pub(super) use quantities::Size;
pub(super) use requests::RoutePath;
pub(super) use telemetry::{Attribute, HttpUrl, Title};

pub(super) trait Value: Sized {
    /// Whether the table's description of the key is that of this type.
    fn is(kind: Kind) -> bool;

    fn parse(text: &str) -> Result<Self, Problem>;

    /// What `parse` would take.
    fn show(&self) -> String;

    /// What the table's range is about.
    fn measure(&self) -> Option<u64> {
        None
    }
}

/// Each is one of the words in its `ALL`.
macro_rules! words {
    ($($name:ty),+ $(,)?) => {$(
        impl Value for $name {
            fn is(kind: Kind) -> bool {
                matches!(kind, Kind::Word(words) if *words == Self::ALL.map(Self::as_str))
            }

            fn parse(text: &str) -> Result<Self, Problem> {
                word(text, &Self::ALL, Self::as_str)
            }

            fn show(&self) -> String {
                self.as_str().to_owned()
            }
        }
    )+};
}

words!(
    AccessFormat,
    BodyMode,
    ClientAuth,
    Coding,
    ForwardingHeaders,
    Immutable,
    Level,
    LogFormat,
    Mode,
    OnDisconnect,
    OtlpProtocol,
    TlsVersion,
);

impl Value for bool {
    fn is(kind: Kind) -> bool {
        kind == Kind::Truth
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let problem = Problem::new("is not a truth value");
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            "True" | "TRUE" | "yes" | "on" | "1" => Err(problem.say("write true")),
            "False" | "FALSE" | "no" | "off" | "0" => Err(problem.say("write false")),
            _ => Err(problem.say("write true or false")),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

fn word<T: Copy>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, Problem> {
    if let Some(found) = all.iter().find(|value| name(**value) == text) {
        return Ok(*found);
    }
    let unknown = Problem::new("is not one of the values");
    Err(all
        .iter()
        .fold(unknown, |problem, value| problem.write(name(*value))))
}

impl Value for PathBuf {
    fn is(kind: Kind) -> bool {
        kind == Kind::Path
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() || text.contains('\0') {
            return Err(Problem::new("is not a path"));
        }
        Ok(PathBuf::from(text))
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for Secret {
    fn is(kind: Kind) -> bool {
        kind == Kind::DatabaseUrl
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let rest = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"));
        match rest {
            Some("") | None => Err(Problem::new("is not a PostgreSQL URL")),
            Some(_) => Ok(Secret(text.to_owned())),
        }
    }

    fn show(&self) -> String {
        "***".to_owned()
    }
}

/// Of two programs. It stands in a header of HTTP as it is.
#[derive(PartialEq, Eq)]
pub struct SharedSecret(pub String);

/// Of random letters and digits more than anybody can try.
const SHORTEST_SECRET: usize = 32;
const LONGEST_SECRET: usize = 1024;

impl Value for SharedSecret {
    fn is(kind: Kind) -> bool {
        kind == Kind::SharedSecret
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let make = "write what `openssl rand -hex 32` prints";
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Problem::new("has blanks, or characters beyond ASCII").say(make));
        }
        match text.len() {
            ..SHORTEST_SECRET => {
                let problem = format!("is shorter than {SHORTEST_SECRET} characters");
                Err(Problem::new(problem).say(make))
            }
            SHORTEST_SECRET..=LONGEST_SECRET => Ok(Self(text.to_owned())),
            _ => Err(Problem::new("is too long").say(make)),
        }
    }

    fn show(&self) -> String {
        "***".to_owned()
    }
}
