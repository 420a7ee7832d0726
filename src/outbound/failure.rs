//! Why a fetch has no response, in words that may be logged.
//!
//! The one place that turns errors of reqwest, hyper and the system into kind, phase and
//! message. A message is the chain of causes below the client's own layers, which say
//! nothing; a URL appears in it never, and beside it only masked.

use std::error::Error;
use std::time::Duration;

use url::{Position, Url};

use super::resolve::ResolveError;
use crate::plan::{Failure, FailureKind, Outcome, Phase, Thing};

/// A failure without its where and when.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: FailureKind,
    pub(super) phase: Phase,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(kind: FailureKind, phase: Phase, message: impl ToString) -> Self {
        let message = message.to_string();
        Self {
            kind,
            phase,
            message,
        }
    }

    /// `phase`: how far the exchange had come.
    pub(super) fn of(error: &reqwest::Error, phase: Phase) -> Self {
        if let Some(error) = find::<ResolveError>(error) {
            let kind = match error {
                ResolveError::Refused(_) => FailureKind::Refused,
                ResolveError::TimedOut => FailureKind::Timeout,
                ResolveError::Failed(_) => FailureKind::Connect,
            };
            return Self::new(kind, Phase::Dns, causes(error));
        }
        let (kind, phase) = if error.is_builder() {
            (FailureKind::Failed, Phase::Url)
        } else if error.is_connect() && error.is_timeout() {
            (FailureKind::Timeout, Phase::Connect)
        } else if error.is_connect() {
            (FailureKind::Connect, Phase::Connect)
        } else if find::<hyper::Error>(error).is_some_and(|e| e.is_canceled() || e.is_closed()) {
            (FailureKind::Failed, Phase::Send)
        } else {
            (FailureKind::Failed, phase)
        };
        Self::new(kind, phase, causes(error))
    }

    pub(super) fn at(self, url: &str, elapsed: Duration) -> Outcome {
        Outcome::Failed(self.failure(url, elapsed))
    }

    pub(super) fn failure(self, url: &str, elapsed: Duration) -> Failure {
        Failure {
            kind: self.kind,
            phase: self.phase,
            message: self.message,
            url: masked(url),
            elapsed,
        }
    }
}

/// What is left to say of a thing that is cut short by something outside it.
pub(super) fn cut(thing: &Thing, kind: FailureKind, message: &str, elapsed: Duration) -> Outcome {
    match thing {
        Thing::Fetch(fetch) => Fault::new(kind, Phase::Join, message).at(&fetch.url, elapsed),
        Thing::Sleep(_) => Fault::new(kind, Phase::Join, message).at("", elapsed),
        Thing::Gather(gather) => Outcome::Gathered(
            gather
                .things
                .iter()
                .map(|thing| cut(thing, kind, message, elapsed))
                .collect(),
        ),
        Thing::Done(ok) => Outcome::Done(*ok),
    }
}

/// The URL with `***` for what is or may be secret: user and password, and query values
/// with a telling name. The fragment goes, it says nothing to an origin.
pub(super) fn masked(url: &str) -> String {
    let mut masked = match Url::parse(url) {
        Ok(url) => masked_url(&url),
        // It may be a piece of anything.
        Err(_) if url.contains(['@', '?', '#', ':']) => "***".to_owned(),
        Err(_) => url.to_owned(),
    };
    if let Some((end, _)) = masked.char_indices().nth(SHOWN) {
        masked.truncate(end);
        masked.push('…');
    }
    masked
}

fn masked_url(url: &Url) -> String {
    let mut masked = format!("{}:", url.scheme());
    if url.has_authority() {
        masked.push_str("//");
    }
    if !url.username().is_empty() || url.password().is_some() {
        masked.push_str("***@");
    }
    masked.push_str(&url[Position::BeforeHost..Position::AfterPath]);
    for (n, pair) in url
        .query()
        .iter()
        .flat_map(|query| query.split('&'))
        .enumerate()
    {
        masked.push(if n == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) if is_telling(name) => {
                masked.push_str(name);
                masked.push_str("=***");
            }
            _ => masked.push_str(pair),
        }
    }
    masked
}

/// Characters of a URL that are shown.
const SHOWN: usize = 2000;

/// What the names of secrets are made of. Too many are hidden rather than one too few.
const TELLING: [&str; 11] = [
    "auth", "code", "cred", "jwt", "key", "pass", "pwd", "secret", "session", "sig", "token",
];

fn is_telling(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // A name may be written with escapes to the same effect; such names are rare enough.
    name.contains('%') || TELLING.iter().any(|part| name.contains(part))
}

fn find<E: Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn causes(error: &(dyn Error + 'static)) -> String {
    let mut said = String::new();
    for error in chain(error) {
        // Their texts name the layer and, in reqwest's case, the URL.
        if error.is::<reqwest::Error>() || error.is::<hyper_util::client::legacy::Error>() {
            continue;
        }
        let text = error.to_string();
        if said.ends_with(&text) {
            continue;
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(&text);
    }
    if said.is_empty() {
        said.push_str("the request could not be made");
    }
    said
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_urls_hold_no_secrets() {
        for (url, shown) in [
            ("https://a.example:81/b?c=d", "https://a.example:81/b?c=d"),
            ("https://me:pw@a.example/b", "https://***@a.example/b"),
            ("https://pw@a.example", "https://***@a.example/"),
            ("http:/\\me:p@ss@a.example/@b", "http://***@a.example/@b"),
            ("https://a.example/#access_token=x", "https://a.example/"),
            (
                "https://a.example/?x=1&api_key=2&y",
                "https://a.example/?x=1&api_key=***&y",
            ),
            (
                "http://a/?Token=2&X-Amz-Signature=3&=4",
                "http://a/?Token=***&X-Amz-Signature=***&=4",
            ),
            ("http://a/?%74oken=2", "http://a/?%74oken=***"),
            ("mailto:me@a.example", "mailto:me@a.example"),
            ("/relative", "/relative"),
            ("/relative?token=2", "***"),
            ("//me:pw@a.example", "***"),
            ("http://me:pw@a.example:99999/", "***"),
            ("", ""),
        ] {
            assert_eq!(masked(url), shown, "{url}");
        }
    }

    #[test]
    fn long_urls_are_cut() {
        let shown = masked(&"é".repeat(5000));
        assert_eq!(shown.chars().count(), SHOWN + 1);
        assert!(shown.ends_with('…'));
    }
}
