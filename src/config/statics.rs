//! Mounts: the sections of the file that say which files are sent without the application.
//!
//! Each is read by itself; no two may have the same path, since one of them would say nothing.

use super::keys::STATICS;
use super::mistakes::{Mistake, Place};
use super::read::{ListTable, Reader};
use super::routes::{list, said};
use super::values::{Folder, Header, Name, RoutePath};
use super::{Entry, Immutable, Mount};

/// What an answer has that was handed off, the application has said.
const NOT_INTERNAL: [&str; 6] = [
    "static.index",
    "static.fallthrough",
    "static.cache_control",
    "static.immutable",
    "static.precompressed",
    "static.headers",
];

impl Reader {
    pub fn mounts(&mut self) -> Vec<Mount> {
        let mut mounts: Vec<(Mount, Place)> = Vec::new();
        for table in self.lists.remove(STATICS).unwrap_or_default() {
            let Some(mount) = self.mount(&table) else {
                continue;
            };
            if let Some((_, before)) = mounts.iter().find(|(other, _)| other.path == mount.path) {
                let text = format!("has the path of the one at {before} already; keep one");
                self.mistakes
                    .push(Mistake::new(table.place.clone(), STATICS, text));
            }
            self.entries.push(Entry {
                key: STATICS,
                value: Some(shown(&mount)),
                source: table.place.clone(),
            });
            mounts.push((mount, table.place));
        }
        mounts.into_iter().map(|(mount, _)| mount).collect()
    }

    /// None if its path or its root is wrong or missing.
    fn mount(&mut self, table: &ListTable) -> Option<Mount> {
        let path = self.within(table, "static.path").pop();
        let root = self.within(table, "static.root").pop();
        let index = self.within(table, "static.index").pop();
        let fallthrough = self.within(table, "static.fallthrough").pop();
        let internal = self.within(table, "static.internal").pop();
        let cache_control = self.within(table, "static.cache_control").pop();
        let immutable = self.within(table, "static.immutable").pop();
        let precompressed = self.within(table, "static.precompressed");
        let headers = self.within(table, "static.headers").into_iter();
        for (key, example) in [("static.path", "/static"), ("static.root", "./static")] {
            if !table.layer.contains_key(key) {
                let text = format!("is missing; write it like {example:?}");
                let mistake = Mistake::new(table.place.clone(), key, text);
                self.mistakes.push(mistake);
            }
        }
        let internal = internal.expect("the table has a default for it");
        for key in NOT_INTERNAL.iter().filter(|_| internal) {
            if let Some(given) = table.layer.get(key) {
                let text = "says nothing of internal files; the application's answer does";
                let mistake = Mistake::new(given.place.clone(), *key, text);
                self.mistakes.push(mistake);
            }
        }
        Some(Mount {
            path: path.map(|RoutePath(path)| path)?,
            root: root.map(|Folder(root)| root)?,
            index: index.map(|Name(name)| name),
            fallthrough: fallthrough.expect("the table has a default for it"),
            internal,
            cache_control,
            immutable: immutable.expect("the table has a default for it"),
            precompressed,
            headers: headers.map(|Header(name, value)| (name, value)).collect(),
        })
    }
}

/// As it would be written in the file.
fn shown(mount: &Mount) -> String {
    let Mount {
        path,
        root,
        index,
        fallthrough,
        internal,
        cache_control,
        immutable,
        precompressed,
        headers,
    } = mount;
    let yes = |value: &bool| list(value.then_some(true));
    let immutable = (*immutable != Immutable::None).then_some(*immutable);
    let headers = headers.iter().cloned();
    let headers: Vec<_> = headers.map(|(name, value)| Header(name, value)).collect();
    let keys = [
        ("path", said("static.path", &[RoutePath(path.clone())])),
        ("root", said("static.root", &[Folder(root.clone())])),
        (
            "index",
            said("static.index", &list(index.clone().map(Name))),
        ),
        ("fallthrough", said("static.fallthrough", &yes(fallthrough))),
        ("internal", said("static.internal", &yes(internal))),
        (
            "cache_control",
            said("static.cache_control", &list(cache_control.clone())),
        ),
        ("immutable", said("static.immutable", &list(immutable))),
        ("precompressed", said("static.precompressed", precompressed)),
        ("headers", said("static.headers", &headers)),
    ];
    let keys = keys
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} = {}", value?)));
    format!("{{ {} }}", keys.collect::<Vec<_>>().join(", "))
}
