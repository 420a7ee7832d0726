//! The environment as a source: `LAYBY_SLOTS_COUNT=8`, lists with commas.
//!
//! An unknown `LAYBY_*` variable is only a warning, because orchestrators inject some
//! (Kubernetes does for a service called layby).

use std::ffi::OsString;

use super::keys::{self, KEYS, Key, LISTS};
use super::mistakes::{Mistake, Place};
use super::read::{Given, Item, Layer, Written};

/// Variables that layby's other parts read.
const OTHERS: &[&str] = &[
    "LAYBY_LINK",
    "LAYBY_STRICT",
    "LAYBY_DEBUG",
    "LAYBY_TOKEN",
    "LAYBY_LOG",
    "LAYBY_HANDOVER",
];

#[derive(Default)]
pub(super) struct Environment {
    pub layer: Layer,
    pub mistakes: Vec<Mistake>,
    pub warnings: Vec<String>,
}

pub(super) fn read(variables: &[(OsString, OsString)]) -> Environment {
    let mut found = Environment::default();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with("LAYBY_")) else {
            continue;
        };
        let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
            found.warnings.extend(unknown(name));
            continue;
        };
        let place = Place::Variable(name.to_owned());
        match value.to_str() {
            Some(value) => found.layer.extend(given(key, value.trim(), place)),
            None => {
                let mistake = Mistake::new(place, key.name, "the value is not UTF-8");
                found.mistakes.push(mistake);
            }
        }
    }
    found.warnings.sort();
    found
}

/// An empty variable is an empty list, and otherwise as good as none: templates for
/// containers often leave variables empty that are meant to be absent.
fn given(key: &'static Key, value: &str, place: Place) -> Option<(&'static str, Given)> {
    let texts: Vec<&str> = if key.list {
        let items = value.split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).collect()
    } else if value.is_empty() {
        return None;
    } else {
        vec![value]
    };
    let item = |text: &str| Item {
        text: text.to_owned(),
        written: Written::Plain,
        place: place.clone(),
    };
    let items = texts.into_iter().map(item).collect();
    Some((key.name, Given { items, place }))
}

fn unknown(name: &str) -> Option<String> {
    if OTHERS.contains(&name) {
        return None;
    }
    let list = LISTS.iter().map(|(list, _)| *list).find(|list| {
        let prefix = format!("LAYBY_{}_", list.to_uppercase());
        name.starts_with(&prefix)
    });
    if let Some(list) = list {
        return Some(format!(
            "{name}: unknown variable, ignored; these sections are given in the file, as [[{list}]]"
        ));
    }
    let variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
    let hint = match keys::nearest(name, variables.iter().map(String::as_str)) {
        Some(variable) => format!("; did you mean {variable}?"),
        None => String::new(),
    };
    Some(format!("{name}: unknown variable, ignored{hint}"))
}
