//! The state machine against a model that knows the future: every leaf's end and every
//! gather's expiry is an instant, and results are computed from them directly.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::plan::{Fetch, Response};

const NEVER: u32 = u32::MAX;

/// A plan together with its future.
#[derive(Debug, Clone)]
enum Future {
    Fetch {
        at: u32,
        status: u16,
    },
    Sleep {
        at: u32,
    },
    Done(bool),
    Gather {
        things: Vec<Future>,
        join: Join,
        expires: u32,
    },
}

/// Results without their content.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Status(u16),
    Slept,
    Done(bool),
    Expired,
    NotNeeded,
    Gathered(Vec<Shape>),
}

/// How something ends if nothing outside it cuts in.
struct End {
    at: u32,
    ok: bool,
    meets_first_ok: bool,
    shape: Shape,
}

impl Future {
    fn end(&self) -> End {
        let end = |at, ok, meets_first_ok, shape| End {
            at,
            ok,
            meets_first_ok,
            shape,
        };
        match self {
            Self::Fetch { at, status } => {
                let ok = (200..300).contains(status);
                end(*at, ok, ok, Shape::Status(*status))
            }
            Self::Sleep { at } => end(*at, true, false, Shape::Slept),
            Self::Done(ok) => end(0, *ok, *ok, Shape::Done(*ok)),
            Self::Gather {
                things,
                join,
                expires,
            } => {
                let ends: Vec<End> = things.iter().map(Self::end).collect();
                let met = met(&ends, *join);
                if *expires < met {
                    let cut = things.iter().map(|thing| thing.cut(*expires)).collect();
                    return end(*expires, false, false, Shape::Gathered(cut));
                }
                let ended = |end: &&End| end.at <= met;
                let ok = match join {
                    Join::FirstOk => ends.iter().any(|end| end.at == met && end.meets_first_ok),
                    _ => ends.iter().filter(ended).all(|end| end.ok),
                };
                let shapes = ends.iter().map(|end| match end.at <= met {
                    true => end.shape.clone(),
                    false => Shape::NotNeeded,
                });
                end(met, ok, ok, Shape::Gathered(shapes.collect()))
            }
        }
    }

    /// What there is of it when the time of the gather around it is over.
    fn cut(&self, at: u32) -> Shape {
        let end = self.end();
        match self {
            _ if end.at < at => end.shape,
            Self::Gather { things, .. } => {
                Shape::Gathered(things.iter().map(|thing| thing.cut(at)).collect())
            }
            _ => Shape::Expired,
        }
    }

    fn thing(&self) -> Thing {
        match self {
            Self::Fetch { .. } => Thing::Fetch(a_fetch()),
            Self::Sleep { .. } => Thing::Sleep(Duration::ZERO),
            Self::Done(ok) => Thing::Done(*ok),
            Self::Gather { things, join, .. } => Thing::Gather(Gather {
                things: things.iter().map(Self::thing).collect(),
                join: *join,
                timeout: None,
            }),
        }
    }

    /// Instant and event of everything in it, with ids in the order of reading.
    fn events(&self, events: &mut Vec<(u32, Event)>, id: &mut Id) {
        let mine = *id;
        *id += 1;
        match self {
            Self::Fetch { at, status } => events.push((*at, Event::Ended(mine, response(*status)))),
            Self::Sleep { at } => {
                let slept = Outcome::Slept(Duration::ZERO);
                events.push((*at, Event::Ended(mine, slept)));
            }
            Self::Done(_) => {}
            Self::Gather {
                things, expires, ..
            } => {
                for thing in things {
                    thing.events(events, id);
                }
                events.push((*expires, Event::Expired(mine, Duration::ZERO)));
            }
        }
    }
}

fn met(ends: &[End], join: Join) -> u32 {
    let mut at: Vec<u32> = ends.iter().map(|end| end.at).collect();
    at.sort_unstable();
    let last = at.len() - 1;
    match join {
        Join::All => at[last],
        Join::Any => at[0],
        Join::Count(n) => at[last.min(n - 1)],
        Join::FirstOk => {
            let ok = ends.iter().filter(|end| end.meets_first_ok);
            ok.map(|end| end.at).min().unwrap_or(at[last])
        }
    }
}

fn a_fetch() -> Fetch {
    Fetch {
        method: Method::GET,
        url: "http://a.example/".to_owned(),
        headers: HeaderMap::new(),
        timeout: None,
        follow: false,
        body: None,
        span: None,
    }
}

fn response(status: u16) -> Outcome {
    Outcome::Response(Response {
        status: StatusCode::from_u16(status).expect("a valid status"),
        url: String::new(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        elapsed: Duration::ZERO,
        redirects: 0,
    })
}

fn shape(outcome: &Outcome) -> Shape {
    match outcome {
        Outcome::Response(response) => Shape::Status(response.status.as_u16()),
        Outcome::Failed(failure) => {
            assert_eq!(failure.kind, FailureKind::Timeout);
            Shape::Expired
        }
        Outcome::Slept(_) => Shape::Slept,
        Outcome::Gathered(results) => Shape::Gathered(results.iter().map(shape).collect()),
        Outcome::Done(ok) => Shape::Done(*ok),
        Outcome::NotNeeded => Shape::NotNeeded,
    }
}

/// Plays the events in order until the plan is met; what was released, in order.
fn play(future: &Future) -> (Vec<Outcome>, Vec<Released>, usize) {
    let Thing::Gather(root) = future.thing() else {
        panic!("the root is a gather");
    };
    let mut joining = Joining::new(&root);
    let mut events = Vec::new();
    future.events(&mut events, &mut 0);
    events.sort_by_key(|(at, _)| *at);

    let begun: Vec<Id> = joining.leaves().map(|(id, _)| id).collect();
    let mut released = Vec::new();
    let mut ended = Vec::new();
    let mut results = joining.results();
    for (_, event) in events {
        if results.is_some() {
            break;
        }
        if let Event::Ended(id, _) = &event
            && joining.is_awaited(*id)
        {
            ended.push(*id);
        }
        released.extend(joining.apply(event));
        results = joining.results();
    }

    // Each leaf that was begun either ended or was released, once.
    let stopped = released.iter().map(|released| released.id);
    let mut accounted: Vec<Id> = stopped
        .filter(|id| begun.contains(id))
        .chain(ended)
        .collect();
    accounted.sort_unstable();
    assert_eq!(accounted, begun);
    (
        results.expect("a plan ends when everything in it has"),
        released,
        begun.len(),
    )
}

/// Ends are given out as distinct instants afterwards: the machine's events have an order.
fn futures() -> impl Strategy<Value = Future> {
    let join = prop_oneof![
        Just(Join::All),
        Just(Join::Any),
        Just(Join::FirstOk),
        (1..5usize).prop_map(Join::Count),
    ];
    let leaf = prop_oneof![
        4 => prop_oneof![Just(200), Just(204), Just(302), Just(404), Just(500)]
            .prop_map(|status| Future::Fetch { at: 0, status }),
        1 => Just(Future::Sleep { at: 0 }),
        1 => any::<bool>().prop_map(Future::Done),
    ];
    let gather = move |thing| {
        let expires = prop_oneof![3 => Just(NEVER), 1 => Just(0)];
        (prop::collection::vec(thing, 1..5), join.clone(), expires).prop_map(
            |(things, join, expires)| Future::Gather {
                things,
                join,
                expires,
            },
        )
    };
    let tree = leaf.prop_recursive(3, 24, 5, gather.clone());
    (gather(tree.boxed()), any::<u64>()).prop_map(|(mut future, seed)| {
        let mut instants: Vec<u32> = (1..=100).collect();
        let mut state = seed | 1;
        for n in (1..instants.len()).rev() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            instants.swap(n, (state >> 33) as usize % (n + 1));
        }
        set_instants(&mut future, &mut instants);
        future
    })
}

fn set_instants(future: &mut Future, instants: &mut Vec<u32>) {
    let mut next = || instants.pop().expect("fewer than 100 things");
    match future {
        Future::Fetch { at, .. } | Future::Sleep { at } => *at = next(),
        Future::Done(_) => {}
        Future::Gather {
            things, expires, ..
        } => {
            if *expires != NEVER {
                *expires = next();
            }
            for thing in things {
                set_instants(thing, instants);
            }
        }
    }
}

proptest! {
    #[test]
    fn results_are_those_of_the_model(future in futures()) {
        let (results, ..) = play(&future);
        let results = Shape::Gathered(results.iter().map(shape).collect());
        prop_assert_eq!(results, future.end().shape);
    }
}

fn fetch(at: u32, status: u16) -> Future {
    Future::Fetch { at, status }
}

fn gather(join: Join, things: Vec<Future>) -> Future {
    Future::Gather {
        things,
        join,
        expires: NEVER,
    }
}

#[test]
fn a_join_releases_what_it_does_not_need() {
    let inner = gather(Join::All, vec![fetch(3, 200), fetch(4, 200)]);
    let plan = gather(Join::FirstOk, vec![fetch(1, 500), fetch(2, 200), inner]);
    let (results, released, _) = play(&plan);
    let results: Vec<_> = results.iter().map(shape).collect();
    assert_eq!(
        results,
        [Shape::Status(500), Shape::Status(200), Shape::NotNeeded]
    );
    let mut ids: Vec<_> = released.iter().map(|released| released.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 3, 4, 5]);
    assert!(
        released
            .iter()
            .all(|released| released.why == Why::NotNeeded)
    );
}

#[test]
fn what_ended_before_may_meet_the_plan_and_then_nothing_begins() {
    let inner = gather(Join::All, vec![Future::Done(true), Future::Done(false)]);
    let plan = gather(Join::Any, vec![fetch(1, 200), inner, fetch(2, 200)]);
    let (results, released, begun) = play(&plan);
    assert_eq!(begun, 0);
    assert_eq!(released, []);
    let results: Vec<_> = results.iter().map(shape).collect();
    let done = [true, false].map(Shape::Done).to_vec();
    assert_eq!(
        results,
        [Shape::NotNeeded, Shape::Gathered(done), Shape::NotNeeded]
    );
}

#[test]
fn a_sleep_neither_meets_first_ok_nor_spoils_a_gather() {
    let sleep = |at| Future::Sleep { at };
    let plan = gather(
        Join::FirstOk,
        vec![
            sleep(1),
            gather(Join::All, vec![fetch(2, 200), sleep(3)]),
            fetch(4, 200),
        ],
    );
    let (results, ..) = play(&plan);
    let both = Shape::Gathered(vec![Shape::Status(200), Shape::Slept]);
    let results: Vec<_> = results.iter().map(shape).collect();
    assert_eq!(results, [Shape::Slept, both, Shape::NotNeeded]);
}

#[test]
fn an_expired_gather_keeps_what_it_has_and_fails_the_rest() {
    let inner = Future::Gather {
        things: vec![fetch(1, 200), fetch(9, 200)],
        join: Join::All,
        expires: 2,
    };
    let plan = gather(Join::All, vec![inner, fetch(3, 200)]);
    let (results, released, _) = play(&plan);
    let results: Vec<_> = results.iter().map(shape).collect();
    let cut = Shape::Gathered(vec![Shape::Status(200), Shape::Expired]);
    assert_eq!(results, [cut, Shape::Status(200)]);
    assert!(released.contains(&Released {
        id: 3,
        why: Why::Expired
    }));
}

#[test]
fn what_comes_too_late_changes_nothing() {
    let Thing::Gather(root) = gather(Join::Any, vec![fetch(1, 200), fetch(2, 200)]).thing() else {
        unreachable!("a gather is a gather");
    };
    let mut joining = Joining::new(&root);
    assert_eq!(joining.apply(Event::Ended(1, response(200))).count(), 2);
    assert_eq!(joining.apply(Event::Ended(2, response(200))).count(), 0);
    assert_eq!(
        joining.apply(Event::Expired(ROOT, Duration::ZERO)).count(),
        0
    );
    assert_eq!(joining.apply(Event::Ended(1, response(404))).count(), 0);
    let results = joining.results().expect("it is met");
    assert_eq!(shape(&results[0]), Shape::Status(200));
    assert!(joining.results().is_none());
}
