//! Mistakes: what is wrong with a configuration, where, and what to write instead.
//!
//! A parser of values knows neither key nor place and gives a [`Problem`]; whoever has both
//! makes it a [`Mistake`], one line for a person. A secret never gets into either.

use std::borrow::Cow;
use std::fmt;

/// Where a value comes from. Sorted as a person would go through the sources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Default,
    /// The line is missing if it is about the whole file.
    File {
        path: String,
        line: Option<usize>,
    },
    Variable(String),
    Flag(&'static str),
}

/// One mistake. `Display` is the line to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// None: no source in particular, because something is missing.
    pub place: Option<Place>,
    /// The key, as far as there is one.
    pub key: Option<String>,
    pub text: String,
}

/// At least one mistake, in the order of their places. `Display` has one line for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

/// What is wrong with a value, and what to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Completes a sentence that begins with the value.
    pub(super) what: Cow<'static, str>,
    pub(super) advice: Advice,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    None,
    /// Values, each of them right.
    Write(Vec<String>),
    /// A smallest and a largest value.
    Range(&'static str, &'static str),
    /// Anything else.
    Say(Cow<'static, str>),
}

impl Place {
    /// A value as one would write it here: texts in a file have quotes.
    pub(super) fn quote(&self, value: &str) -> String {
        let number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        match self {
            Place::File { .. } if !number => format!("{value:?}"),
            _ => value.to_owned(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Default => f.write_str("default"),
            Place::File { path, line: None } => f.write_str(path),
            Place::File {
                path,
                line: Some(line),
            } => write!(f, "{path}:{line}"),
            Place::Variable(name) => f.write_str(name),
            Place::Flag(flag) => f.write_str(flag),
        }
    }
}

impl Mistake {
    pub(super) fn new(place: Place, key: impl Into<String>, text: impl Into<String>) -> Self {
        Mistake {
            place: Some(place),
            key: Some(key.into()),
            text: text.into(),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        // A variable and a flag say which key it is.
        let named = matches!(self.place, Some(Place::Variable(_) | Place::Flag(_)));
        match &self.key {
            Some(key) if !named => write!(f, "{key}: {}", self.text),
            _ => f.write_str(&self.text),
        }
    }
}

impl Mistakes {
    pub(super) fn new(mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by(|a, b| {
            let placeless = |mistake: &Mistake| mistake.place.is_none();
            (placeless(a), &a.place).cmp(&(placeless(b), &b.place))
        });
        mistakes.dedup();
        Mistakes(mistakes)
    }

    /// Whether the command line alone is to blame.
    #[must_use]
    pub fn are_wrong_usage(&self) -> bool {
        let flag = |mistake: &Mistake| matches!(mistake.place, Some(Place::Flag(_)));
        self.0.iter().all(flag)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.0.iter().enumerate() {
            let end = if number == 0 { "" } else { "\n" };
            write!(f, "{end}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl Problem {
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Problem {
            what: what.into(),
            advice: Advice::None,
        }
    }

    /// A value that would be right.
    pub fn write(mut self, value: impl Into<String>) -> Self {
        match &mut self.advice {
            Advice::Write(values) => values.push(value.into()),
            advice => *advice = Advice::Write(vec![value.into()]),
        }
        self
    }

    pub fn say(mut self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.advice = Advice::Say(advice.into());
        self
    }

    /// The sentence, about a value as it was written, for somebody who writes at `place`.
    pub fn about(&self, written: &str, place: &Place) -> String {
        let what = &self.what;
        match &self.advice {
            Advice::None => format!("{written} {what}"),
            Advice::Say(advice) => format!("{written} {what}; {advice}"),
            Advice::Range(low, high) => {
                let (low, high) = (place.quote(low), place.quote(high));
                format!("{written} {what}; write {low} to {high}")
            }
            Advice::Write(values) => {
                let values: Vec<_> = values.iter().map(|value| place.quote(value)).collect();
                format!("{written} {what}; write {}", alternatives(&values))
            }
        }
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn alternatives(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

/// A value as it may be shown: what stands between `://` and `@` can be a password.
pub(super) fn masked(value: &str) -> Cow<'_, str> {
    match (value.find("://"), value.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 < at => {
            Cow::Owned(format!("{}***{}", &value[..scheme + 3], &value[at..]))
        }
        _ => Cow::Borrowed(value),
    }
}
