//! Routes: the sections of the file that are for some requests only.
//!
//! Each is read by itself; no two may be for the same requests, since one of them would say nothing.
//! Which route a request takes is decided where requests are.

use super::keys::ROUTES;
use super::mistakes::{Mistake, Place};
use super::read::{ListTable, Reader, key, show};
use super::values::{Host, RoutePath, Size, Value};
use super::{BodyMode, Entry, Route};

impl Reader {
    pub fn routes(&mut self) -> Vec<Route> {
        let mut routes: Vec<(Route, Place)> = Vec::new();
        for table in self.lists.remove(ROUTES).unwrap_or_default() {
            let Some(route) = self.route(&table) else {
                continue;
            };
            if let Some((_, before)) = routes.iter().find(|(other, _)| same(&route, other)) {
                let text = format!("is for requests of the route at {before} already; keep one");
                self.mistakes
                    .push(Mistake::new(table.place.clone(), "route", text));
            }
            self.entries.push(Entry {
                key: "route",
                value: Some(shown(&route)),
                source: table.place.clone(),
            });
            routes.push((route, table.place));
        }
        routes.into_iter().map(|(route, _)| route).collect()
    }

    /// None if its path is wrong or missing.
    fn route(&mut self, table: &ListTable) -> Option<Route> {
        let path = self.within(table, "route.path").pop();
        let host = self.within(table, "route.host").pop();
        let methods = self.within(table, "route.methods");
        let body = self.within(table, "route.body").pop();
        let max_body = self.within(table, "route.max_body").pop();
        if path.is_none() && !table.layer.contains_key("route.path") {
            let text = "is missing; write path = \"/\" for every path";
            let mistake = Mistake::new(table.place.clone(), "route.path", text);
            self.mistakes.push(mistake);
        }
        Some(Route {
            path: path.map(|RoutePath(path)| path)?,
            host: host.map(|Host(name)| name),
            methods,
            body: body.expect("the table has a default for it"),
            max_body: max_body.map(|Size(bytes)| bytes),
        })
    }
}

/// Whether there are requests that both are for, and neither is for fewer.
fn same(one: &Route, other: &Route) -> bool {
    let methods = match (&one.methods[..], &other.methods[..]) {
        ([], []) => true,
        (one, other) => one.iter().any(|method| other.contains(method)),
    };
    one.path == other.path && one.host == other.host && methods
}

/// As it would be written in the file.
fn shown(route: &Route) -> String {
    let Route {
        path,
        host,
        methods,
        body,
        max_body,
    } = route;
    let default = (*body != BodyMode::Buffered).then_some(*body);
    let keys = [
        ("path", said("route.path", &[RoutePath(path.clone())])),
        ("host", said("route.host", &list(host.clone().map(Host)))),
        ("methods", said("route.methods", methods)),
        ("body", said("route.body", &list(default))),
        (
            "max_body",
            said("route.max_body", &list(max_body.map(Size))),
        ),
    ];
    let keys = keys
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} = {}", value?)));
    format!("{{ {} }}", keys.collect::<Vec<_>>().join(", "))
}

pub(super) fn said<T: Value>(name: &str, values: &[T]) -> Option<String> {
    match values {
        [] => None,
        values => show(key(name), values),
    }
}

pub(super) fn list<T>(value: Option<T>) -> Vec<T> {
    value.into_iter().collect()
}
