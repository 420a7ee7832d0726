//! The file as a source: TOML, with the line of everything.
//!
//! A syntax error hides as little as possible: the parser goes on behind it where it can, and
//! what it then finds is believed, except on the line of the error itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, KEYS, Key, LISTS, SECTIONS};
use super::mistakes::{Mistake, Place, masked};
use super::read::{Given, Item, Layer, ListTable, Written};

/// Read if it is there.
const DEFAULT_PATH: &str = "layby.toml";

pub(super) struct File {
    pub path: String,
    text: String,
}

#[derive(Default)]
pub(super) struct Parsed {
    pub layer: Layer,
    /// The sections of lists, by the name of the list.
    pub lists: BTreeMap<&'static str, Vec<ListTable>>,
    pub mistakes: Vec<Mistake>,
    /// Lines that are not TOML, and those below a broken section header: nothing else that
    /// is wrong there counts.
    pub broken_lines: BTreeSet<usize>,
}

/// None: there is no `layby.toml`, and nobody asked for another file.
pub(super) fn read(given: Option<&Path>) -> Result<Option<File>, Mistake> {
    let path = given.unwrap_or(Path::new(DEFAULT_PATH));
    let name = path.display().to_string();
    let unreadable = |why: String| Mistake {
        place: Some(Place::File {
            path: name.clone(),
            line: None,
        }),
        key: None,
        text: format!("cannot be read: {why}"),
    };
    match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(File { path: name, text })),
            Err(_) => Err(unreadable("not UTF-8; save it as UTF-8".to_owned())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound && given.is_none() => Ok(None),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

impl File {
    pub fn new(path: &str, text: &str) -> Self {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    pub fn parse(&self) -> Parsed {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let mut parsed = Parsed::default();
        for error in errors {
            // Several errors on one line are most often one mistake.
            let line = self.line(error.span().unwrap_or_default());
            if parsed.broken_lines.insert(line) {
                parsed.mistakes.push(Mistake {
                    place: Some(self.place(line)),
                    key: None,
                    text: self.syntax_error(line, error.message()),
                });
            }
        }
        parsed.broken_lines = self.with_their_sections(&parsed.broken_lines);
        self.read_table("", table.get_ref(), &mut parsed);
        parsed
    }

    /// The lines, and for section headers among them all lines up to the next header: what
    /// section these are in, the parser cannot know.
    fn with_their_sections(&self, broken: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut in_broken_section = false;
        let mut all = broken.clone();
        for (number, line) in (1..).zip(self.text.lines()) {
            if line.trim_start().starts_with('[') {
                in_broken_section = broken.contains(&number);
            }
            if in_broken_section {
                all.insert(number);
            }
        }
        all
    }

    fn read_table(&self, section: &str, table: &DeTable<'_>, parsed: &mut Parsed) {
        for (key, value) in table {
            let name = match section {
                "" => key.get_ref().to_string(),
                _ => format!("{section}.{}", key.get_ref()),
            };
            let place = self.place(self.line(key.span()));
            if let Some((list, _)) = LISTS.iter().find(|(list, _)| *list == name) {
                self.read_list(list, place, value, parsed);
            } else if let Some(key) = keys::find(&name) {
                match self.given(key, value) {
                    Ok(given) => _ = parsed.layer.insert(key.name, given),
                    Err(mistake) => parsed.mistakes.push(mistake),
                }
            } else if SECTIONS.contains(&name.as_str()) {
                match value.get_ref() {
                    DeValue::Table(table) => self.read_table(&name, table, parsed),
                    _ => {
                        let text = format!("is a section; write [{name}] with its keys below");
                        parsed.mistakes.push(Mistake::new(place, name, text));
                    }
                }
            } else {
                let text = unknown(section, &name, value.get_ref());
                parsed.mistakes.push(Mistake::new(place, name, text));
            }
        }
    }

    fn read_list(
        &self,
        list: &'static str,
        place: Place,
        value: &Spanned<DeValue<'_>>,
        parsed: &mut Parsed,
    ) {
        let DeValue::Array(array) = value.get_ref() else {
            let text = format!("is a list of sections; write [[{list}]] above the keys of each");
            parsed.mistakes.push(Mistake::new(place, list, text));
            return;
        };
        for section in array {
            let place = self.place(self.line(section.span()));
            let DeValue::Table(table) = section.get_ref() else {
                let text = format!("an item is not a section; write [[{list}]]");
                parsed.mistakes.push(Mistake::new(place, list, text));
                continue;
            };
            let mut layer = Layer::new();
            for (key, value) in table {
                let name = format!("{list}.{}", key.get_ref());
                match keys::find(&name).map(|key| (key.name, self.given(key, value))) {
                    Some((name, Ok(given))) => _ = layer.insert(name, given),
                    Some((_, Err(mistake))) => parsed.mistakes.push(mistake),
                    None => {
                        let place = self.place(self.line(key.span()));
                        let text = unknown(list, &name, value.get_ref());
                        parsed.mistakes.push(Mistake::new(place, name, text));
                    }
                }
            }
            let sections = parsed.lists.entry(list).or_default();
            sections.push(ListTable { layer, place });
        }
    }

    fn given(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Given, Mistake> {
        let place = self.place(self.line(value.span()));
        let example = place.quote(key.example);
        let items = match value.get_ref() {
            DeValue::Array(array) if key.list => array
                .iter()
                .map(|value| {
                    let place = self.place(self.line(value.span()));
                    scalar(value.get_ref(), place.clone()).ok_or_else(|| {
                        let text = format!("an item is not a text; write [{example}]");
                        Mistake::new(place, key.name, text)
                    })
                })
                .collect::<Result<_, _>>()?,
            value => {
                let item = scalar(value, place.clone()).ok_or_else(|| {
                    let what = value.type_str().replace("array", "list");
                    let text = format!("a {what} is too much; write {example}");
                    Mistake::new(place.clone(), key.name, text)
                })?;
                vec![item]
            }
        };
        Ok(Given { items, place })
    }

    fn place(&self, line: usize) -> Place {
        Place::File {
            path: self.path.clone(),
            line: Some(line),
        }
    }

    fn line(&self, span: Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// What to say about a line that is not TOML, for `message` of the parser.
    fn syntax_error(&self, line: usize, message: &str) -> String {
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        // The most frequent one is a text without its quotes.
        let no_quotes =
            message.starts_with("string values must be quoted") || message.starts_with("invalid ");
        if let Some((key, value)) = text.split_once('=')
            && no_quotes
        {
            let (key, value) = (self.full_name(line, key.trim()), masked(value.trim()));
            // Of other secrets the secret part is known to be masked.
            if keys::find(&key).is_some_and(|key| key.kind == keys::Kind::SharedSecret) {
                return format!("{key}: *** is no text in quotes; write it in quotes");
            }
            if value.is_empty() {
                return format!("{key}: there is no value");
            }
            if !value.contains(['"', '\'', '[', ']', '{', '}', '#', ',']) {
                return format!("{key}: {value} has no quotes; write {value:?}");
            }
        }
        format!("not TOML: {message}")
    }

    /// The key with the section that the line stands in.
    fn full_name(&self, line: usize, key: &str) -> String {
        let above = self.text.lines().take(line).map(str::trim);
        let header = above.filter(|line| line.starts_with('[')).last();
        match header.and_then(|header| header[1..].split(']').next()) {
            Some(section) => format!("{}.{key}", section.trim_start_matches('[')),
            None => key.to_owned(),
        }
    }
}

/// A value that is no list and no table.
fn scalar(value: &DeValue<'_>, place: Place) -> Option<Item> {
    let (text, written) = match value {
        DeValue::String(text) => (text.to_string(), Written::Quoted),
        DeValue::Integer(integer) => (decimal(integer), Written::Number),
        DeValue::Float(float) => (float.to_string(), Written::Other),
        DeValue::Boolean(boolean) => (boolean.to_string(), Written::Truth),
        DeValue::Datetime(datetime) => (datetime.to_string(), Written::Other),
        DeValue::Array(_) | DeValue::Table(_) => return None,
    };
    Some(Item {
        text,
        written,
        place,
    })
}

/// TOML also has `0x10` and `+5`; the parsers of values know plain digits.
fn decimal(integer: &toml::de::DeInteger<'_>) -> String {
    match i128::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(number) => number.to_string(),
        Err(_) => integer.to_string(),
    }
}

fn unknown(section: &str, name: &str, value: &DeValue<'_>) -> String {
    let tables = match value {
        DeValue::Table(_) => true,
        DeValue::Array(array) => {
            matches!(array.first().map(Spanned::get_ref), Some(DeValue::Table(_)))
        }
        _ => false,
    };
    if tables && section.is_empty() {
        let lists = LISTS.iter().map(|(list, _)| *list);
        return match keys::nearest(name, SECTIONS.iter().copied().chain(lists.clone())) {
            Some(meant) if SECTIONS.contains(&meant) => {
                format!("unknown section; did you mean [{meant}]?")
            }
            Some(meant) => format!("unknown section; did you mean [[{meant}]]?"),
            None => {
                let all: Vec<_> = SECTIONS.iter().copied().chain(lists).collect();
                format!("unknown section; there are {}", all.join(", "))
            }
        };
    }
    let list = LISTS.iter().find(|(list, _)| *list == section);
    let meant = match list {
        Some((_, keys)) => keys::meant_among(keys, name),
        None => keys::meant_by(name),
    };
    if let Some(meant) = meant {
        return format!("unknown key; did you mean {meant}?");
    }
    let siblings = list.map_or(KEYS, |(_, keys)| keys).iter();
    let siblings = siblings.filter(|key| key.section() == section);
    let siblings: Vec<&str> = siblings.map(Key::short).collect();
    let here = match (section, list) {
        ("", _) => "at the top level".to_owned(),
        (_, Some(_)) => format!("in [[{section}]]"),
        (_, None) => format!("in [{section}]"),
    };
    format!("unknown key; {here} there are {}", siblings.join(", "))
}
