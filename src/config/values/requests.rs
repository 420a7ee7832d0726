//! What requests are told apart by: paths and methods.

use http::Method;

use super::{Kind, Problem, Value};

/// Decoded; begins with `/` and ends without, but for `/` itself.
#[derive(Debug, PartialEq, Eq)]
pub struct RoutePath(pub String);

impl Value for RoutePath {
    fn is(kind: Kind) -> bool {
        kind == Kind::RoutePath
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.contains(['?', '#', '\0']) {
            let path = text.split(['?', '#', '\0']).next().unwrap_or_default();
            let problem = Problem::new("is more than a path");
            return Err(match Self::parse(path) {
                Ok(RoutePath(path)) => problem.write(path),
                Err(_) => problem,
            });
        }
        if text.contains('%') {
            let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
            let problem = Problem::new("is encoded; requests are decoded before they are compared");
            return Err(match decoded {
                Ok(path) if !path.contains('%') => problem.write(path),
                _ => problem,
            });
        }
        let mut segments: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let plain = format!("/{}", segments.join("/"));
        if segments.iter().any(|part| matches!(*part, "." | "..")) {
            segments.retain(|part| *part != ".");
            let problem = Problem::new("has steps in it");
            return Err(match segments.contains(&"..") {
                true => problem.say("write the path that they lead to"),
                false => problem.write(format!("/{}", segments.join("/"))),
            });
        }
        if text.ends_with('*') {
            let problem = Problem::new("has a star; what is below a path belongs to it");
            let path = Self::parse(text.trim_end_matches('*').trim_end_matches('/'));
            return Err(match path {
                Ok(RoutePath(path)) => problem.write(path),
                Err(_) => problem,
            });
        }
        match text == plain {
            true => Ok(RoutePath(plain)),
            false => {
                Err(Problem::new("is not a path from / on, without / at its end").write(plain))
            }
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Value for Method {
    fn is(kind: Kind) -> bool {
        kind == Kind::Method
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let upper = text.to_ascii_uppercase();
        match Method::from_bytes(upper.as_bytes()) {
            Ok(method) if upper == text => Ok(method),
            Ok(_) => Err(Problem::new("is not in capitals, as methods are").write(upper)),
            Err(_) => Err(Problem::new("is not a method")),
        }
    }

    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}
