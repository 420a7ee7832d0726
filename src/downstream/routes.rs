//! Which route a request takes.
//!
//! Of the routes that a request fits, the one for the fewest requests: with the longest path, then
//! with a host, then with methods. Pure, and settled when the configuration is read.

use std::cmp::Reverse;
use std::sync::Arc;

use http::Method;

use crate::config;
use crate::exchange::Exchange;

/// A route, and where its requests go if not to the workers of the whole gateway.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its path, as it is told to people.
    pub name: Arc<str>,
    pub rules: config::Route,
    pub upstream: Option<Exchange>,
}

impl Route {
    pub fn new(rules: config::Route, upstream: Option<Exchange>) -> Self {
        Self {
            name: rules.path.as_str().into(),
            rules,
            upstream,
        }
    }
}

/// The routes, those first that go before others.
#[derive(Debug, Clone, Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    pub fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by_key(|Route { rules: route, .. }| {
            (
                Reverse(route.path.len()),
                route.host.is_none(),
                route.methods.is_empty(),
            )
        });
        Self(routes)
    }

    /// `path` is decoded, `host` as the client named it, without the port.
    pub fn of(&self, path: &[u8], host: &str, method: &Method) -> Option<&Route> {
        self.0.iter().find(|Route { rules: route, .. }| {
            is_below(path, route.path.as_bytes())
                && route.host.as_deref().is_none_or(|name| is_host(host, name))
                && (route.methods.is_empty() || route.methods.contains(method))
        })
    }
}

/// By whole segments.
fn is_below(path: &[u8], of: &[u8]) -> bool {
    let of = of.strip_suffix(b"/").unwrap_or(of);
    path.strip_prefix(of)
        .is_some_and(|rest| (rest.is_empty() && !of.is_empty()) || rest.starts_with(b"/"))
}

fn is_host(named: &str, name: &str) -> bool {
    let named = named.strip_suffix('.').unwrap_or(named);
    let address = named
        .strip_prefix('[')
        .and_then(|named| named.strip_suffix(']'));
    address.unwrap_or(named).eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{BodyMode, Route};

    fn routes(rules: Vec<Route>) -> Routes {
        let alone = |rules| super::Route::new(rules, None);
        Routes::new(rules.into_iter().map(alone).collect())
    }

    fn route(path: &str, host: Option<&str>, methods: &[Method]) -> Route {
        Route {
            path: path.to_owned(),
            host: host.map(str::to_owned),
            methods: methods.to_vec(),
            body: BodyMode::Buffered,
            max_body: None,
            upstream: None,
        }
    }

    #[test]
    fn a_path_stands_for_itself_and_what_is_below() {
        for (path, of, below) in [
            ("/upload", "/upload", true),
            ("/upload/", "/upload", true),
            ("/upload/x/y", "/upload", true),
            ("/upload//x", "/upload", true),
            ("/uploads", "/upload", false),
            ("/Upload", "/upload", false),
            ("/", "/upload", false),
            ("//upload", "/upload", false),
            ("/", "/", true),
            ("/x", "/", true),
            ("*", "/", false),
        ] {
            assert_eq!(
                is_below(path.as_bytes(), of.as_bytes()),
                below,
                "{path} {of}"
            );
        }
    }

    #[test]
    fn hosts_are_compared_as_names() {
        for (named, name, same) in [
            ("Shop.Example", "shop.example", true),
            ("shop.example.", "shop.example", true),
            ("[::1]", "::1", true),
            ("www.shop.example", "shop.example", false),
        ] {
            assert_eq!(is_host(named, name), same, "{named} {name}");
        }
    }

    #[test]
    fn the_route_for_the_fewest_requests_goes_first() {
        let found_in = routes(vec![
            route("/", None, &[]),
            route("/a", None, &[]),
            route("/a", None, &[Method::POST]),
            route("/a", Some("h"), &[]),
            route("/a/b", None, &[Method::PUT]),
        ]);
        for (path, host, method, found) in [
            ("/x", "h", Method::GET, Some(("/", None, 0))),
            ("/a/x", "g", Method::GET, Some(("/a", None, 0))),
            ("/a", "g", Method::POST, Some(("/a", None, 1))),
            ("/a", "h", Method::POST, Some(("/a", Some("h"), 0))),
            ("/a/b/c", "h", Method::PUT, Some(("/a/b", None, 1))),
            ("/a/b/c", "g", Method::GET, Some(("/a", None, 0))),
            ("*", "h", Method::OPTIONS, None),
        ] {
            let taken = found_in.of(path.as_bytes(), host, &method);
            let taken = taken
                .map(|it| &it.rules)
                .map(|it| (&*it.path, it.host.as_deref(), it.methods.len()));
            assert_eq!(taken, found, "{method} {host} {path}");
        }
    }

    fn path() -> impl Strategy<Value = String> {
        let segment = proptest::sample::select(vec!["a", "b", "ab"]);
        let segments = proptest::collection::vec(segment, 0..4);
        segments.prop_map(|segments| format!("/{}", segments.join("/")))
    }

    fn method() -> impl Strategy<Value = Method> {
        proptest::sample::select(vec![Method::GET, Method::POST])
    }

    fn host() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec!["g", "h"])
    }

    fn any_route() -> impl Strategy<Value = Route> {
        let methods = proptest::collection::vec(method(), 0..2);
        (path(), proptest::option::of(host()), methods)
            .prop_map(|(path, host, methods)| route(&path, host, &methods))
    }

    /// Segment by segment, without the trick.
    fn fits(route: &Route, path: &str, host: &str, method: &Method) -> bool {
        let segments = |path: &str| {
            let parts = path.split('/').filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect::<Vec<_>>()
        };
        segments(path).starts_with(&segments(&route.path))
            && route.host.as_deref().is_none_or(|name| name == host)
            && (route.methods.is_empty() || route.methods.contains(method))
    }

    proptest! {
        #[test]
        fn no_route_that_fits_goes_before_the_one_taken(
            list in proptest::collection::vec(any_route(), 0..8),
            path in path(), host in host(), method in method(),
        ) {
            let found_in = routes(list.clone());
            let rank = |route: &Route| {
                (route.path.len(), route.host.is_some(), !route.methods.is_empty())
            };
            let fitting = list.iter().filter(|route| fits(route, &path, host, &method));
            let best = fitting.map(rank).max();
            let taken = found_in.of(path.as_bytes(), host, &method).map(|it| &it.rules);
            prop_assert_eq!(taken.map(rank), best);
            if let Some(taken) = taken {
                prop_assert!(fits(taken, &path, host, &method));
            }
        }

        #[test]
        fn the_order_in_the_file_does_not_matter(
            list in proptest::collection::vec(any_route(), 0..6),
            path in path(), host in host(), method in method(),
        ) {
            let rank = |route: Option<&super::Route>| {
                route.map(|it| &it.rules).map(|it| (it.path.clone(), it.host.clone(), !it.methods.is_empty()))
            };
            let reversed = list.iter().rev().cloned().collect();
            prop_assert_eq!(
                rank(routes(list).of(path.as_bytes(), host, &method)),
                rank(routes(reversed).of(path.as_bytes(), host, &method))
            );
        }
    }
}
