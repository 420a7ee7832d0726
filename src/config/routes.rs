//! Routes: the sections of the file that are for some requests only.
//!
//! Each is read by itself; no two may be for the same requests, since one of them would say nothing.
//! Which route a request takes is decided where requests are.

use super::addresses;
use super::keys::ROUTES;
use super::mistakes::{Mistake, Place};
use super::read::{ListTable, Reader, key, show};
use super::values::{Host, RoutePath, Size, Value};
use super::{BodyMode, Entry, Listen, Route, RouteUpstream, Upstream};

impl Reader {
    pub fn routes(&mut self) -> Vec<Route> {
        let mut routes: Vec<(Route, Place)> = Vec::new();
        let tables = self.lists.remove(ROUTES).unwrap_or_default();
        for table in &tables {
            let Some(route) = self.route(table) else {
                continue;
            };
            self.check_upstream(&route, table, &routes);
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
            routes.push((route, table.place.clone()));
        }
        self.lists.insert(ROUTES, tables);
        routes.into_iter().map(|(route, _)| route).collect()
    }

    /// What a route says of its upstream, by itself and beside the routes before it.
    fn check_upstream(&mut self, route: &Route, table: &ListTable, before: &[(Route, Place)]) {
        let mut blame = |key: &'static str, text: String| {
            let given = table.layer.get(key);
            let place = given.map_or(&table.place, |given| &given.place);
            self.mistakes.push(Mistake::new(place.clone(), key, text));
        };
        let Some(upstream) = &route.upstream else {
            let right = table.layer.contains_key("route.upstream");
            for key in ["route.connections", "route.plans"] {
                if table.layer.contains_key(key) && !right {
                    let text = "says nothing without upstream; remove it, or set upstream";
                    blame(key, text.to_owned());
                }
            }
            return;
        };
        if route.body == BodyMode::Lazy {
            let text = "\"lazy\" is not for an upstream, which cannot ask for a body; write \"buffered\", \
                        or remove it";
            blame("route.body", text.to_owned());
        }
        let differs = before.iter().find(|(other, _)| {
            other.upstream.as_ref().is_some_and(|other| {
                other.server == upstream.server && other.connections != upstream.connections
            })
        });
        if let Some((other, place)) = differs {
            let connections = other.upstream.as_ref().map_or(0, |it| it.connections);
            let text = format!(
                "{} has {connections} of them by the route at {place}; write {connections} here too",
                upstream.server
            );
            blame("route.connections", text);
        }
        let differs = before.iter().find(|(other, _)| {
            other.upstream.as_ref().is_some_and(|other| {
                other.server == upstream.server && other.plans != upstream.plans
            })
        });
        if let Some((_, place)) = differs {
            let other = !upstream.plans;
            let text = format!(
                "{} has {other} by the route at {place}; write {other} here too",
                upstream.server
            );
            blame("route.plans", text);
        }
    }

    /// No route leads back to one of these addresses.
    pub fn check_elsewhere(&mut self, own: &[(&'static str, Listen)]) {
        for table in self.lists.get(ROUTES).into_iter().flatten() {
            let Some(given) = table.layer.get("route.upstream") else {
                continue;
            };
            let server = given.items.first().map(|item| Upstream::parse(&item.text));
            if let Some(Ok(server)) = server
                && addresses::own(&server, own).is_some()
            {
                let text = format!("{server} is this gateway itself; write another");
                let place = given.place.clone();
                self.mistakes
                    .push(Mistake::new(place, "route.upstream", text));
            }
        }
    }

    /// All requests go to this server already.
    pub fn check_beside(&mut self, main: &Upstream) {
        let mut mistakes = Vec::new();
        for table in self.lists.get(ROUTES).into_iter().flatten() {
            let said = |key: &str| {
                let given = table.layer.get(key)?;
                Some((given.items.first()?.text.clone(), given.place.clone()))
            };
            if let Some((text, place)) = said("route.upstream")
                && Upstream::parse(&text).is_ok_and(|server| server == *main)
            {
                let text = format!("{main} is workers.upstream already; remove it");
                mistakes.push(Mistake::new(place, "route.upstream", text));
            }
            if let Some((text, place)) = said("route.body")
                && text == BodyMode::Lazy.as_str()
                && said("route.upstream").is_none()
            {
                let text = "\"lazy\" is not for workers.upstream, which cannot ask for a body; write \
                            \"buffered\", or remove it";
                mistakes.push(Mistake::new(place, "route.body", text.to_owned()));
            }
        }
        self.mistakes.extend(mistakes);
    }

    /// None if its path is wrong or missing.
    fn route(&mut self, table: &ListTable) -> Option<Route> {
        let path = self.within(table, "route.path").pop();
        let host = self.within(table, "route.host").pop();
        let methods = self.within(table, "route.methods");
        let body = self.within(table, "route.body").pop();
        let max_body = self.within(table, "route.max_body").pop();
        let server = self.within(table, "route.upstream").pop();
        let connections = self.within(table, "route.connections").pop();
        let connections = connections.expect("the table has a default for it");
        let plans = self.within(table, "route.plans").pop();
        let plans = plans.expect("the table has a default for it");
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
            upstream: server.map(|server| RouteUpstream {
                server,
                connections,
                plans,
            }),
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
        upstream,
    } = route;
    let server = upstream.as_ref().map(|it| &it.server);
    let connections = upstream.as_ref().map(|it| it.connections);
    let plans = upstream.as_ref().map(|it| it.plans).filter(|plans| *plans);
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
        ("upstream", said("route.upstream", &list(server.cloned()))),
        ("connections", said("route.connections", &list(connections))),
        ("plans", said("route.plans", &list(plans))),
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
