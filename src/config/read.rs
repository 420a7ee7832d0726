//! Putting the sources together: which value of a key is in force, and is it right?
//!
//! Every source is checked wholly, also what a stronger one overrides, so that a mistake does
//! not come to light only when a flag is dropped. While there are mistakes, reading goes on
//! with the defaults. Whether the values of different keys fit is the business of
//! [`super::rules`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::effective::{Effective, Entry};
use super::environment;
use super::file::{File, Parsed};
use super::keys::{self, Default, Key, Kind};
use super::mistakes::{Advice, Mistake, Mistakes, Place, Problem, masked};
use super::telemetry;
use super::values::Value;
use super::{Loaded, Sources};

/// What one source says, by name of the key.
pub(super) type Layer = BTreeMap<&'static str, Given>;

/// What one source says for one key.
#[derive(Debug)]
pub(super) struct Given {
    pub items: Vec<Item>,
    pub place: Place,
}

/// One section of a list, a `[[route]]` say: what it says, and where it begins.
#[derive(Debug)]
pub(super) struct ListTable {
    pub layer: Layer,
    pub place: Place,
}

/// One value, or one of a list.
#[derive(Debug)]
pub(super) struct Item {
    pub text: String,
    pub written: Written,
    pub place: Place,
}

/// What a value looked like at its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Where everything is text: environment, flags, defaults.
    Plain,
    Quoted,
    Number,
    Truth,
    /// A float, a date.
    Other,
}

/// `file` is what came of reading it; there may be none.
pub(super) fn resolve(
    file: Result<Option<File>, Mistake>,
    sources: &Sources,
) -> Result<Loaded, Mistakes> {
    let (mut reader, broken_lines) = Reader::new(file, sources);
    let config = reader.config(sources.role);

    reader.mistakes.retain(|mistake| match &mistake.place {
        Some(Place::File {
            line: Some(line), ..
        }) => mistake.key.is_none() || !broken_lines.contains(line),
        _ => true,
    });
    match config {
        Some(config) if reader.mistakes.is_empty() => Ok(Loaded {
            config,
            effective: Effective(reader.entries),
            warnings: reader.warnings,
        }),
        _ => Err(Mistakes::new(reader.mistakes)),
    }
}

/// Where the admin listener is. Nothing else of the sources counts.
pub(super) fn admin(
    file: Result<Option<File>, Mistake>,
    sources: &Sources,
) -> Result<SocketAddr, Mistakes> {
    let (mut reader, _) = Reader::new(file, sources);
    let admin = reader.one("admin");
    // A file that cannot be read might have said it, unless somebody has.
    let said = reader.place("admin") != Place::Default;
    reader
        .mistakes
        .retain(|mistake| match mistake.key.as_deref() {
            Some(key) => key == "admin",
            None => !said,
        });
    match reader.mistakes.is_empty() {
        true => Ok(admin),
        false => Err(Mistakes::new(reader.mistakes)),
    }
}

fn flags(flags: &[(&'static str, Vec<String>)]) -> Layer {
    let given = |(name, values): &(&'static str, Vec<String>)| {
        let flag = keys::find(name).and_then(|key| key.flag);
        let place = Place::Flag(flag.expect("the command line has flags of the table only"));
        let item = |text: &String| Item {
            text: text.clone(),
            written: Written::Plain,
            place: place.clone(),
        };
        let items = values.iter().map(item).collect();
        (*name, Given { items, place })
    };
    flags.iter().map(given).collect()
}

/// Reads the values in force, and gathers what is wrong on the way.
pub(super) struct Reader {
    /// OpenTelemetry's variables, file, environment, flags: the weaker before the stronger.
    pub layers: [Layer; 4],
    pub lists: BTreeMap<&'static str, Vec<ListTable>>,
    pub mistakes: Vec<Mistake>,
    pub entries: Vec<Entry>,
    pub warnings: Vec<String>,
    /// All of the file could be read. Else nothing can be said to be missing.
    pub complete: bool,
}

impl Reader {
    /// And the lines of the file that could not be read.
    fn new(file: Result<Option<File>, Mistake>, sources: &Sources) -> (Self, BTreeSet<usize>) {
        let mut unreadable = None;
        let file = file.unwrap_or_else(|mistake| {
            unreadable = Some(mistake);
            None
        });
        let Parsed {
            layer,
            lists,
            mut mistakes,
            broken_lines,
        } = file.as_ref().map(File::parse).unwrap_or_default();
        let complete = unreadable.is_none() && broken_lines.is_empty();
        mistakes.extend(unreadable);
        let environment = environment::read(&sources.env);
        mistakes.extend(environment.mistakes);
        let endpoint = "tracing.otlp_endpoint";
        let traced = layer.contains_key(endpoint) || environment.layer.contains_key(endpoint);
        let telemetry = telemetry::read(&sources.env, traced);
        let mut warnings = environment.warnings;
        warnings.extend(telemetry.warnings);

        let reader = Reader {
            layers: [
                telemetry.layer,
                layer,
                environment.layer,
                flags(&sources.flags),
            ],
            lists,
            mistakes,
            entries: Vec::new(),
            warnings,
            complete,
        };
        (reader, broken_lines)
    }

    /// The value of a key that has a default.
    pub fn one<T: Value>(&mut self, name: &'static str) -> T {
        let value = self.optional(name);
        value.expect("the table has a default for every key read with one()")
    }

    pub fn optional<T: Value>(&mut self, name: &'static str) -> Option<T> {
        self.list(name).pop()
    }

    /// The values in force, the default's if the ones in force are wrong.
    pub fn list<T: Value>(&mut self, name: &'static str) -> Vec<T> {
        let key = key(name);
        assert!(T::is(key.kind), "the table has another kind for {name}");
        let mut found = None;
        for layer in &self.layers {
            let Some(given) = layer.get(name) else {
                continue;
            };
            let (values, mistakes) = parse_items(key, given);
            self.mistakes.extend(mistakes);
            found = values.map(|values| (values, given.place.clone()));
        }
        let (values, source) = found.unwrap_or_else(|| (default_values(key), Place::Default));
        self.entries.push(Entry {
            key: key.name,
            value: show(key, &values),
            source,
        });
        values
    }

    /// The values of a key in one section of a list, the default's if none is given or one is wrong.
    pub fn within<T: Value>(&mut self, section: &ListTable, name: &'static str) -> Vec<T> {
        let key = key(name);
        assert!(T::is(key.kind), "the table has another kind for {name}");
        let given = section.layer.get(name).map(|given| parse_items(key, given));
        let (values, mistakes) = given.unwrap_or_default();
        self.mistakes.extend(mistakes);
        values.unwrap_or_else(|| default_values(key))
    }

    /// Whether nothing is wrong with the key by itself.
    pub fn is_right(&self, name: &str) -> bool {
        self.mistakes
            .iter()
            .all(|mistake| mistake.key.as_deref() != Some(name))
    }

    /// Where the value in force comes from.
    pub fn place(&self, name: &str) -> Place {
        let strongest = self.layers.iter().rev().find_map(|layer| layer.get(name));
        strongest.map_or(Place::Default, |given| given.place.clone())
    }

    /// A sentence about the value in force.
    pub fn sentence(&self, name: &str, what: &str) -> String {
        let strongest = self.layers.iter().rev().find_map(|layer| layer.get(name));
        match strongest.and_then(|given| given.items.first()) {
            Some(item) => format!("{} {what}", written(key(name), item)),
            None => what.to_owned(),
        }
    }

    pub fn blame(&mut self, name: &'static str, text: impl Into<String>) {
        let place = self.place(name);
        self.mistakes.push(Mistake::new(place, name, text));
    }
}

pub(super) fn key(name: &str) -> &'static Key {
    keys::find(name).expect("every key that is read stands in the table")
}

/// The values, unless one is wrong.
fn parse_items<T: Value>(key: &Key, given: &Given) -> (Option<Vec<T>>, Vec<Mistake>) {
    let mut values = Vec::new();
    let mut mistakes = Vec::new();
    for item in &given.items {
        match parse_item(key, item) {
            Ok(value) => values.push(value),
            Err(problem) => {
                let text = problem.about(&written(key, item), &item.place);
                mistakes.push(Mistake::new(item.place.clone(), key.name, text));
            }
        }
    }
    (mistakes.is_empty().then_some(values), mistakes)
}

fn parse_item<T: Value>(key: &Key, item: &Item) -> Result<T, Problem> {
    let value = T::parse(&item.text)
        .and_then(|value| in_range(key, value))
        .map_err(|mut problem| {
            if problem.advice == Advice::None {
                problem.advice = match key.range {
                    Some((low, high)) => Advice::Range(low, high),
                    None => Advice::Say(
                        format!("write it like {}", item.place.quote(key.example)).into(),
                    ),
                };
            }
            problem
        })?;
    // Only now: what is wrong with `5` as a duration is its unit, not its type.
    let digits = item.text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits && matches!(key.kind, Kind::Number | Kind::Count);
    match item.written {
        Written::Quoted if number => Err(Problem::new("is a text").write(&item.text)),
        Written::Number
            if !matches!(
                key.kind,
                Kind::Number | Kind::Count | Kind::Size | Kind::Ratio
            ) =>
        {
            Err(Problem::new("is a number").say(format!("write {:?}", item.text)))
        }
        Written::Quoted if matches!(key.kind, Kind::Truth | Kind::Ratio) => {
            Err(Problem::new("is a text").say(format!("write {}", item.text)))
        }
        Written::Truth if key.kind == Kind::Truth => Ok(value),
        Written::Other if key.kind == Kind::Ratio => Ok(value),
        Written::Truth | Written::Other => {
            Err(Problem::new("is not a text").say(format!("write {:?}", item.text)))
        }
        _ => Ok(value),
    }
}

fn in_range<T: Value>(key: &Key, value: T) -> Result<T, Problem> {
    let Some((low, high)) = key.range else {
        return Ok(value);
    };
    let bound = |text| {
        let bound = T::parse(text).ok().and_then(|bound| bound.measure());
        bound.expect("the table's ranges are values of their keys: tested")
    };
    match value.measure() {
        Some(measure) if measure < bound(low) => Err(Problem::new("is too small")),
        Some(measure) if measure > bound(high) => Err(Problem::new("is too large")),
        _ => Ok(value),
    }
}

/// Empty if the key has no default.
fn default_values<T: Value>(key: &Key) -> Vec<T> {
    let Default::Value { text, .. } = key.default else {
        return Vec::new();
    };
    let items = text.split(',').filter(|item| !item.is_empty());
    let parse = |item| T::parse(item).expect("the table's defaults are right: tested");
    items.map(parse).collect()
}

/// A value as its source has it, fit to be shown.
fn written(key: &Key, item: &Item) -> String {
    if key.is_secret() {
        return "***".to_owned();
    }
    let text = masked(&item.text);
    match item.written {
        Written::Number | Written::Truth | Written::Other => text.into_owned(),
        Written::Quoted => format!("{text:?}"),
        Written::Plain if text.chars().all(|c| c.is_ascii_alphanumeric()) && !text.is_empty() => {
            text.into_owned()
        }
        Written::Plain => format!("{text:?}"),
    }
}

/// Values as the file would have them.
pub(super) fn show<T: Value>(key: &Key, values: &[T]) -> Option<String> {
    let one = |value: &T| {
        let text = value.show();
        match matches!(key.kind, Kind::Truth | Kind::Ratio)
            || text.bytes().all(|byte| byte.is_ascii_digit())
        {
            true => text,
            false => format!("{text:?}"),
        }
    };
    if key.list {
        let values: Vec<String> = values.iter().map(one).collect();
        return Some(format!("[{}]", values.join(", ")));
    }
    values.first().map(one)
}
