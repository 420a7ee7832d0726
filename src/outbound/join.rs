//! When a plan is met, and what becomes of each of its things.
//!
//! Data and one function: events in, what need not be waited for any longer out. No clock,
//! no sockets; `run` makes the events.
//!
//! What counts as ok, for `first_ok` and for the gather around it: a response with status
//! 2xx, a `done` that says so, a gather whose every awaited thing does. A sleep never
//! meets `first_ok`, which is about responses, but spoils no gather either.

use std::time::Duration;

use super::failure::cut;
use crate::plan::{FailureKind, Gather, Join, Outcome, Thing};

/// A place in the plan, in the order of reading; a gather comes before its things.
pub(super) type Id = usize;

pub(super) const ROOT: Id = 0;

pub(super) struct Joining<'p> {
    nodes: Vec<Node<'p>>,
    released: Vec<Released>,
}

#[derive(Debug)]
pub(super) enum Event {
    Ended(Id, Outcome),
    /// The time of this gather is over.
    Expired(Id, Duration),
}

/// No longer waited for: abort it if that is safe. Of a gather, its timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) id: Id,
    pub(super) why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    NotNeeded,
    Expired,
}

struct Node<'p> {
    kind: Kind<'p>,
    parent: Id,
    state: State,
}

enum Kind<'p> {
    Leaf(&'p Thing),
    Gather(&'p Gather),
}

enum State {
    /// → Ended, Over
    Waiting,
    /// → Ended, Over
    Gathering(Gathering),
    /// → Over, when the gather around it takes the outcome
    Ended(Outcome),
    Over,
}

#[derive(Default)]
struct Gathering {
    children: Vec<Id>,
    ended: usize,
    /// Some thing that ended did not count as ok.
    spoiled: bool,
    /// Some thing that ended meets `first_ok`.
    first_ok: bool,
}

/// What an end means to the gather around it.
#[derive(Clone, Copy)]
struct End {
    ok: bool,
    meets_first_ok: bool,
}

impl<'p> Joining<'p> {
    /// What ended before the plan has all ended at once, and may already meet it.
    pub(super) fn new(root: &'p Gather) -> Self {
        let mut joining = Self {
            nodes: Vec::with_capacity(1 + root.things.len()),
            released: Vec::new(),
        };
        joining.add_gather(ROOT, root);
        // Nothing has begun, so nothing need be stopped.
        joining.released.clear();
        joining
    }

    /// The fetches and sleeps that are waited for.
    pub(super) fn leaves(&self) -> impl Iterator<Item = (Id, &'p Thing)> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(id, node)| match (&node.kind, &node.state) {
                (Kind::Leaf(thing), State::Waiting) => Some((id, *thing)),
                _ => None,
            })
    }

    /// The gathers that are waited for and have a timeout.
    pub(super) fn timeouts(&self) -> impl Iterator<Item = (Id, Duration)> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(id, node)| match (&node.kind, &node.state) {
                (Kind::Gather(gather), State::Gathering(_)) => Some((id, gather.timeout?)),
                _ => None,
            })
    }

    pub(super) fn is_awaited(&self, id: Id) -> bool {
        matches!(self.nodes[id].state, State::Waiting | State::Gathering(_))
    }

    /// What is too late changes nothing.
    pub(super) fn apply(&mut self, event: Event) -> impl Iterator<Item = Released> {
        match event {
            Event::Ended(id, outcome) if self.is_awaited(id) => {
                let end = match &outcome {
                    Outcome::Response(response) => End::of(response.status.is_success()),
                    Outcome::Slept(_) => End::SLEEP,
                    _ => End::of(false),
                };
                self.end(id, outcome, end);
            }
            Event::Expired(id, elapsed) if self.is_awaited(id) => {
                let outcome = self.expire(id, elapsed);
                self.end(id, outcome, End::of(false));
            }
            Event::Ended(..) | Event::Expired(..) => {}
        }
        self.released.drain(..)
    }

    /// The results, once the join of the whole plan is met. Only the first call has them.
    pub(super) fn results(&mut self) -> Option<Vec<Outcome>> {
        match std::mem::replace(&mut self.nodes[ROOT].state, State::Over) {
            State::Ended(Outcome::Gathered(results)) => Some(results),
            other => {
                self.nodes[ROOT].state = other;
                None
            }
        }
    }

    /// The new gather's place, and its end if what ended before already meets it.
    fn add_gather(&mut self, parent: Id, gather: &'p Gather) -> (Id, Option<End>) {
        let id = self.add(parent, Kind::Gather(gather), State::Waiting);
        let mut gathering = Gathering::default();
        for thing in &gather.things {
            let (child, end) = match thing {
                Thing::Gather(inner) => self.add_gather(id, inner),
                Thing::Done(ok) => {
                    let ended = State::Ended(Outcome::Done(*ok));
                    (self.add(id, Kind::Leaf(thing), ended), Some(End::of(*ok)))
                }
                leaf => (self.add(id, Kind::Leaf(leaf), State::Waiting), None),
            };
            gathering.children.push(child);
            end.into_iter().for_each(|end| gathering.count(end));
        }
        let end = gathering.met(gather.join);
        self.nodes[id].state = State::Gathering(gathering);
        if end.is_some() {
            self.close(id);
        }
        (id, end)
    }

    fn add(&mut self, parent: Id, kind: Kind<'p>, state: State) -> Id {
        self.nodes.push(Node {
            kind,
            parent,
            state,
        });
        self.nodes.len() - 1
    }

    /// One thing has ended; with it perhaps the gather around it, and so on outwards.
    fn end(&mut self, id: Id, outcome: Outcome, mut end: End) {
        self.nodes[id].state = State::Ended(outcome);
        let mut ended = id;
        while ended != ROOT {
            let around = self.nodes[ended].parent;
            let Node { kind, state, .. } = &mut self.nodes[around];
            let (Kind::Gather(gather), State::Gathering(gathering)) = (kind, state) else {
                unreachable!("what is awaited is within a gather that is awaited");
            };
            gathering.count(end);
            match gathering.met(gather.join) {
                Some(met) => end = met,
                None => return,
            }
            self.close(around);
            ended = around;
        }
    }

    /// The join is met: what has not ended is not needed.
    fn close(&mut self, gather: Id) {
        let results = self.take_children(gather, |joining, child| {
            joining.release(child);
            Outcome::NotNeeded
        });
        self.released.push(Released {
            id: gather,
            why: Why::NotNeeded,
        });
        self.nodes[gather].state = State::Ended(Outcome::Gathered(results));
    }

    fn expire(&mut self, id: Id, elapsed: Duration) -> Outcome {
        self.released.push(Released {
            id,
            why: Why::Expired,
        });
        match self.nodes[id].kind {
            Kind::Leaf(thing) => {
                self.nodes[id].state = State::Over;
                cut(thing, FailureKind::Timeout, "not ended in time", elapsed)
            }
            Kind::Gather(_) => Outcome::Gathered(
                self.take_children(id, |joining, child| joining.expire(child, elapsed)),
            ),
        }
    }

    /// The outcomes of a gather's things, the unfinished ones as `unfinished` has it.
    fn take_children(
        &mut self,
        gather: Id,
        unfinished: impl Fn(&mut Self, Id) -> Outcome,
    ) -> Vec<Outcome> {
        let state = std::mem::replace(&mut self.nodes[gather].state, State::Over);
        let State::Gathering(Gathering { children, .. }) = state else {
            unreachable!("only a gather that is awaited is closed");
        };
        children
            .into_iter()
            .map(
                |child| match std::mem::replace(&mut self.nodes[child].state, State::Over) {
                    State::Ended(outcome) => outcome,
                    awaited => {
                        self.nodes[child].state = awaited;
                        unfinished(self, child)
                    }
                },
            )
            .collect()
    }

    fn release(&mut self, id: Id) {
        let state = std::mem::replace(&mut self.nodes[id].state, State::Over);
        if let State::Gathering(Gathering { children, .. }) = &state {
            for child in children {
                self.release(*child);
            }
        }
        if let State::Waiting | State::Gathering(_) = state {
            self.released.push(Released {
                id,
                why: Why::NotNeeded,
            });
        }
    }
}

impl Gathering {
    fn count(&mut self, end: End) {
        self.ended += 1;
        self.spoiled |= !end.ok;
        self.first_ok |= end.meets_first_ok;
    }

    /// Whether the join is met, or cannot be any more, and what that means further out.
    fn met(&self, join: Join) -> Option<End> {
        let all = self.ended == self.children.len();
        match join {
            Join::FirstOk if self.first_ok => Some(End::of(true)),
            Join::FirstOk => all.then(|| End::of(false)),
            Join::Any if self.ended > 0 => Some(End::of(!self.spoiled)),
            Join::Count(n) if self.ended >= n => Some(End::of(!self.spoiled)),
            Join::All | Join::Any | Join::Count(_) => all.then(|| End::of(!self.spoiled)),
        }
    }
}

impl End {
    const SLEEP: Self = Self {
        ok: true,
        meets_first_ok: false,
    };

    fn of(ok: bool) -> Self {
        Self {
            ok,
            meets_first_ok: ok,
        }
    }
}

#[cfg(test)]
mod tests;
