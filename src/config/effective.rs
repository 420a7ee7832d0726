//! The effective configuration: every value in force, and which source it came from.
//!
//! For the start-up log and `layby check`. Secrets have become `***` before they get here.

use std::fmt;

use super::mistakes::Place;

/// In the order of the reference page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective(pub Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: &'static str,
    /// As it would be written in the file; none if there is no value.
    pub value: Option<String>,
    pub source: Place,
}

impl Effective {
    /// The entry of a key; none for keys that say nothing beside the chosen source of workers.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }

    /// A number that two configurations share when all their values are the same, wherever they come from.
    /// It is the same on every machine and in every build, and secrets are not in it.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let values = self
            .0
            .iter()
            .filter_map(|entry| Some((entry.key, entry.value.as_ref()?)));
        // After a reload they may stand in another order. Those of one key keep theirs.
        let mut values: Vec<_> = values.collect();
        values.sort_by_key(|(key, _)| *key);
        let text: String = values
            .into_iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect();
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let first = digest.as_ref().first_chunk();
        u64::from_be_bytes(*first.expect("SHA-256 has 32 bytes"))
    }

    /// What is in force after a reload that keeps the values of these keys.
    #[must_use]
    pub fn reloaded(&self, new: Effective, kept: &[&str]) -> Self {
        let stays = |entry: &Entry| kept.contains(&entry.key);
        let mut entries = new.0;
        entries.retain(|entry| !stays(entry));
        entries.extend(self.0.iter().filter(|entry| stays(entry)).cloned());
        Self(entries)
    }

    /// One line at `info` for each section, keys without a value left out.
    pub fn log(&self) {
        for (section, values) in self.sections() {
            tracing::info!(section, values, "configuration");
        }
    }

    /// The name of each section and its values, with the sources that are not the default.
    pub(super) fn sections(&self) -> Vec<(&'static str, String)> {
        let mut sections: Vec<(&str, Vec<String>)> = Vec::new();
        for entry in &self.0 {
            let Some(value) = &entry.value else { continue };
            let (section, key) = entry.key.split_once('.').unwrap_or(("general", entry.key));
            let text = match &entry.source {
                Place::Default => format!("{key} = {value}"),
                source => format!("{key} = {value} ({source})"),
            };
            match sections.last_mut() {
                Some((last, texts)) if *last == section => texts.push(text),
                _ => sections.push((section, vec![text])),
            }
        }
        let joined = |(section, texts): (_, Vec<String>)| (section, texts.join(", "));
        sections.into_iter().map(joined).collect()
    }
}

/// One line for each key, with its source as a comment.
impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = |entry: &Entry| match &entry.value {
            Some(value) => format!("{} = {value}", entry.key),
            None => format!("{} is not set", entry.key),
        };
        let settings: Vec<String> = self.0.iter().map(setting).collect();
        // One long list must not push every comment to the right.
        let width = settings.iter().map(String::len).filter(|len| *len <= 48);
        let width = width.max().unwrap_or(0);
        for (setting, entry) in settings.iter().zip(&self.0) {
            match entry.value {
                Some(_) => writeln!(f, "{setting:width$}  # {}", entry.source)?,
                None => writeln!(f, "{setting}")?,
            }
        }
        Ok(())
    }
}
