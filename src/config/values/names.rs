//! Names: of Python objects, and of hosts.

use std::net::IpAddr;

use super::addresses::{network, show_network};
use super::{Kind, Problem, Value};
use crate::config::Allow;

/// `module:object`.
#[derive(Debug, PartialEq, Eq)]
pub struct AppName(pub String);

/// `module.attribute`.
#[derive(Debug, PartialEq, Eq)]
pub struct Dotted(pub String);

/// A name or an address, lower case.
#[derive(Debug, PartialEq, Eq)]
pub struct Host(pub String);

impl Value for AppName {
    fn is(kind: Kind) -> bool {
        kind == Kind::App
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let (module, object) = text.split_once(':').unwrap_or((text, "application"));
        if is_dotted(module) && is_dotted(object) {
            return Ok(AppName(format!("{module}:{object}")));
        }
        let problem = Problem::new("is not a Python name, module:object");
        let from_path = module
            .trim_start_matches("./")
            .trim_end_matches(".py")
            .replace('/', ".");
        Err(if from_path != module && is_dotted(&from_path) {
            problem.write(format!("{from_path}:{object}"))
        } else if object.ends_with(')') {
            Problem::new("calls something").say("name an object that is a WSGI application already")
        } else {
            problem
        })
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Value for Dotted {
    fn is(kind: Kind) -> bool {
        kind == Kind::Dotted
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if is_dotted(text) && text.contains('.') {
            return Ok(Dotted(text.to_owned()));
        }
        let problem = Problem::new("is not a Python name, module.attribute");
        let dots = text.replace(':', ".");
        Err(if dots != text && is_dotted(&dots) {
            problem.write(dots)
        } else {
            problem
        })
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// Python identifiers with dots between them.
fn is_dotted(text: &str) -> bool {
    text.split('.').all(|name| {
        let mut chars = name.chars();
        let first = |c: char| c == '_' || c.is_alphabetic();
        chars.next().is_some_and(first) && chars.all(|c| c == '_' || c.is_alphanumeric())
    })
}

impl Value for Allow {
    fn is(kind: Kind) -> bool {
        kind == Kind::Allow
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "public" {
            return Ok(Allow::Public);
        }
        if text == "*" {
            return Err(Problem::new("would reach internal services").write("public"));
        }
        if let Some(net) = network(text) {
            return net.map(Allow::Net);
        }
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = host_name(name)?;
        // Rule: a name never leads to loopback. Say so now, not at the first fetch.
        if name == "localhost" || name.ends_with(".localhost") {
            return Err(
                Problem::new("is loopback, which only an address allows").write("127.0.0.1")
            );
        }
        Ok(if wildcard {
            Allow::Wildcard(name)
        } else {
            Allow::Name(name)
        })
    }

    fn show(&self) -> String {
        match self {
            Allow::Public => "public".to_owned(),
            Allow::Name(name) => name.clone(),
            Allow::Wildcard(name) => format!("*.{name}"),
            Allow::Net(net) => show_network(net),
        }
    }
}

impl Value for Host {
    fn is(kind: Kind) -> bool {
        kind == Kind::Host
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Host(address.to_string())),
            Err(_) => host_name(text).map(Host),
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// A name as URLs have it: lower case, ASCII, no dot at the end.
fn host_name(text: &str) -> Result<String, Problem> {
    let problem = || Problem::new("is not a host name");
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#', ':']).next().unwrap_or(rest);
        return Err(match host_name(host) {
            Ok(host) if !rest.contains('@') => problem().write(host),
            _ => problem(),
        });
    }
    if let Some((host, port)) = text.split_once(':') {
        let has_port = host_name(host).is_ok() && port.parse::<u16>().is_ok();
        return Err(match has_port {
            true => Problem::new("has a port; every port counts").write(host),
            false => problem(),
        });
    }
    match url::Host::parse(text) {
        Ok(url::Host::Domain(name)) => {
            let name = name.strip_suffix('.').unwrap_or(&name);
            let right = |label: &str| {
                (1..=63).contains(&label.len())
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            };
            match name.split('.').all(right) && name.len() <= 253 {
                true => Ok(name.to_owned()),
                false => Err(problem()),
            }
        }
        // 0x7f.1 and its like.
        Ok(address) => {
            Err(Problem::new("is an address by another spelling").write(address.to_string()))
        }
        Err(_) => Err(problem()),
    }
}
