//! What parked requests wait for, for people: by origin, as far as it is one.
//!
//! Written at every park, so what it takes there is a few small allocations; added up when somebody looks.
//! A request is listed from its park to its resume under every origin of its plan, also under those that
//! have answered already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::plan::{Fetch, Gather, Thing};
use crate::workers::Awaited;

/// So many origins of one plan are listed.
const ORIGINS: usize = 8;

/// So many origins are told, those with most requests first.
const TOLD: usize = 50;

/// Longest name of a host.
const HOST: usize = 253;

#[derive(Debug, Clone, Default)]
pub struct ParkedBoard(Arc<Mutex<Slab<Parked>>>);

/// A request is parked for as long as this lives.
#[derive(Debug)]
pub struct Listed {
    board: ParkedBoard,
    place: usize,
}

#[derive(Debug)]
struct Parked {
    since: Instant,
    what: What,
}

#[derive(Debug)]
enum What {
    Origins(Vec<Box<str>>),
    Time,
    Body,
    Process,
}

/// What some parked requests wait for.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitedFor {
    /// `origin`, `time`, `body` or `process`.
    pub what: &'static str,
    pub origin: Option<String>,
    pub requests: usize,
    /// The longest of these waits until now.
    pub longest: Duration,
}

impl ParkedBoard {
    pub fn list(&self, awaited: &Awaited) -> Listed {
        let parked = Parked {
            since: Instant::now(),
            what: What::of(awaited),
        };
        Listed {
            place: self.parked().insert(parked),
            board: self.clone(),
        }
    }

    /// What most wait for comes first.
    pub fn waited_for(&self, now: Instant) -> Vec<WaitedFor> {
        let mut sums: HashMap<(&'static str, Option<String>), (usize, Duration)> = HashMap::new();
        for (_, Parked { since, what }) in self.parked().iter() {
            let waited = now.saturating_duration_since(*since);
            let mut add = |what, origin: Option<&str>| {
                let (requests, longest) =
                    sums.entry((what, origin.map(str::to_owned))).or_default();
                *requests += 1;
                *longest = waited.max(*longest);
            };
            match what {
                What::Origins(origins) => {
                    origins
                        .iter()
                        .for_each(|origin| add("origin", Some(origin)));
                }
                What::Time => add("time", None),
                What::Body => add("body", None),
                What::Process => add("process", None),
            }
        }
        let waited_for = |((what, origin), (requests, longest))| WaitedFor {
            what,
            origin,
            requests,
            longest,
        };
        let mut list: Vec<WaitedFor> = sums.into_iter().map(waited_for).collect();
        list.sort_by(|one, other| {
            let most_first = other.requests.cmp(&one.requests);
            most_first.then_with(|| (one.what, &one.origin).cmp(&(other.what, &other.origin)))
        });
        list.truncate(TOLD);
        list
    }

    fn parked(&self) -> MutexGuard<'_, Slab<Parked>> {
        self.0.lock().expect("no code that holds this lock panics")
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.board.parked().remove(self.place);
    }
}

impl What {
    fn of(awaited: &Awaited) -> Self {
        let mut origins = Vec::new();
        match awaited {
            Awaited::Plan(plan) => gathered(&plan.root, &mut origins),
            Awaited::Relay(relay) => fetched(&relay.fetch, &mut origins),
            Awaited::Body => return Self::Body,
            Awaited::Local(_) => return Self::Process,
        }
        match origins.is_empty() {
            true => Self::Time,
            false => Self::Origins(origins),
        }
    }
}

fn gathered(gather: &Gather, origins: &mut Vec<Box<str>>) {
    for thing in &gather.things {
        match thing {
            Thing::Fetch(fetch) => fetched(fetch, origins),
            Thing::Gather(inner) => gathered(inner, origins),
            Thing::Sleep(_) | Thing::Done(_) => {}
        }
    }
}

fn fetched(fetch: &Fetch, origins: &mut Vec<Box<str>>) {
    let host = host(&fetch.url);
    let mut listed = origins.iter();
    if origins.len() < ORIGINS && !listed.any(|origin| origin.eq_ignore_ascii_case(host)) {
        origins.push(host.to_ascii_lowercase().into());
    }
}

/// Of a URL that nobody has vetted yet: what stands where the host does, and never more, since passwords stand
/// beside it. Parsing it for good would cost more than the rest of the park.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = match host.split_once(']') {
        Some((address, _)) => &host[..=address.len()],
        None => host.split(':').next().unwrap_or_default(),
    };
    let fits = host.len() <= HOST && host.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { host } else { "" }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::plan::{Join, Plan};

    fn fetch(url: &str) -> Thing {
        Thing::Fetch(Fetch {
            method: Method::GET,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            timeout: None,
            follow: false,
            body: None,
            span: None,
        })
    }

    fn gather(things: Vec<Thing>) -> Gather {
        Gather {
            things,
            join: Join::All,
            timeout: None,
        }
    }

    fn plan(things: Vec<Thing>) -> Awaited {
        let root = gather(things);
        Awaited::Plan(Plan { root, hold: None })
    }

    fn told(board: &ParkedBoard) -> Vec<(&'static str, Option<String>, usize)> {
        let list = board.waited_for(Instant::now());
        let told = |each: WaitedFor| (each.what, each.origin, each.requests);
        list.into_iter().map(told).collect()
    }

    #[test]
    fn requests_are_listed_while_they_are_parked_under_what_they_wait_for() {
        let board = ParkedBoard::default();
        let inner = gather(vec![fetch("https://ship.example:8443/quote?zip=1")]);
        let both = plan(vec![fetch("https://pay.example/a"), Thing::Gather(inner)]);
        let _both = board.list(&both);
        let twice = vec![fetch("http://PAY.example/b"), fetch("http://pay.example/c")];
        let pay = board.list(&plan(twice));
        let _body = board.list(&Awaited::Body);
        let _sleep = board.list(&plan(vec![Thing::Sleep(Duration::from_secs(1))]));
        let origin = |name: &str| Some(name.to_owned());
        assert_eq!(
            told(&board),
            [
                ("origin", origin("pay.example"), 2),
                ("body", None, 1),
                ("origin", origin("ship.example"), 1),
                ("time", None, 1),
            ]
        );
        drop(pay);
        assert_eq!(told(&board)[1], ("origin", origin("pay.example"), 1));
    }

    #[test]
    fn of_a_url_the_host_is_told_and_never_a_secret() {
        for (url, expected) in [
            ("https://pay.example/charge?key=s3cret", "pay.example"),
            ("https://user:s3cret@pay.example:443/", "pay.example"),
            ("https://user:s3:cr@t@pay.example", "pay.example"),
            ("http://[::1]:8000/x", "[::1]"),
            ("http://127.0.0.1?s3cret", "127.0.0.1"),
            ("http://a\\@b/s3cret", "a"),
            ("s3cret", ""),
            ("http://s3 cret/", ""),
            (&format!("http://{}/", "x".repeat(300)), ""),
        ] {
            assert_eq!(host(url), expected, "{url}");
        }
    }

    #[test]
    fn many_origins_are_bounded_in_a_plan_and_in_what_is_told() {
        let board = ParkedBoard::default();
        let urls = |from: usize| (from..from + 20).map(|n| fetch(&format!("http://h{n}/")));
        let listed: Vec<Listed> = (0..100)
            .map(|from| board.list(&plan(urls(20 * from).collect())))
            .collect();
        let told = told(&board);
        assert_eq!(told.len(), TOLD);
        let kept = board.parked();
        let origins = |parked: &Parked| match &parked.what {
            What::Origins(origins) => origins.len(),
            _ => 0,
        };
        assert_eq!(
            kept.iter()
                .map(|(_, parked)| origins(parked))
                .sum::<usize>(),
            800
        );
        drop(kept);
        drop(listed);
        assert!(board.waited_for(Instant::now()).is_empty());
    }
}
