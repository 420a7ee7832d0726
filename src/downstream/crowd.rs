//! How many connections there are: who may come in, and who has to go for it.
//!
//! At the limit the connections that have been idle longest make room, a good part of them at once; where
//! none is idle, whoever comes is told so and let go. Nobody waits here: a connection that is not wanted costs
//! as little as can be, and the loop that accepts goes on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use slab::Slab;

use super::watch::{Activity, Watch};
use crate::descriptors::Spare;
use crate::metrics::{ConnectionState, Metrics, TurnedAway};

/// Of the idle connections, this part goes at a time: looking for them costs time with their number.
const PART: usize = 16;

/// When nobody was idle, nobody is looked for again for so long.
const BARREN: Duration = Duration::from_millis(50);

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 42\r\n\
    Retry-After: 5\r\n\
    Connection: close\r\n\r\n\
    too many connections; please try it later\n";

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    pub connections: usize,
    /// Of one client; None: no limit.
    pub per_client: Option<usize>,
}

/// All connections of clients. Clones are the same crowd.
#[derive(Debug, Clone)]
pub struct Crowd(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    most: Most,
    members: Slab<Member>,
    /// So many have been told to leave.
    leaving: usize,
    /// Those of whom somebody counts.
    clients: HashMap<IpAddr, usize>,
    barren_until: Option<Instant>,
    spare: Spare,
}

#[derive(Debug)]
struct Member {
    watch: Arc<Watch>,
    told: bool,
}

/// A connection's place among the others, until it is dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Shared>,
    key: usize,
    client: Option<IpAddr>,
}

impl Crowd {
    pub fn new(most: Most, metrics: Metrics) -> Self {
        let crowd = Self(Arc::new(Shared {
            metrics: metrics.clone(),
            state: Mutex::new(State {
                most,
                members: Slab::new(),
                leaving: 0,
                clients: HashMap::new(),
                barren_until: None,
                spare: Spare::new(1),
            }),
        }));
        let weak = Arc::downgrade(&crowd.0);
        metrics.before_each_page(move |metrics| {
            if let Some(shared) = weak.upgrade() {
                shared.count(metrics);
            }
        });
        crowd
    }

    /// Who is here already stays.
    pub fn set(&self, most: Most) {
        self.0.state().most = most;
    }

    /// A place for a connection. `client` is who it counts for, if for anybody.
    ///
    /// # Errors
    /// Why there is none.
    pub fn enter(&self, watch: &Arc<Watch>, client: Option<IpAddr>) -> Result<Place, TurnedAway> {
        let client = client.map(network);
        // Those who are told to leave do so in tasks of their own, in a moment.
        if self.0.state().is_full() {
            self.make_room();
        }
        let entered = self.0.state().enter(watch, client);
        match entered {
            Ok(key) => Ok(Place {
                crowd: Arc::clone(&self.0),
                key,
                client,
            }),
            Err(why) => {
                self.0.metrics.turned_away(why);
                Err(why)
            }
        }
    }

    /// Has those leave who have been idle longest; how many will.
    pub fn make_room(&self) -> usize {
        let told = self.0.state().make_room(Instant::now());
        self.0.metrics.made_room(told);
        told
    }

    /// Descriptors have run out: frees one for whoever waits at the door, so that `accept` can take it.
    /// What it takes is let go at once, and the descriptor kept back again. False if there is none.
    pub fn turn_away<T>(&self, accept: impl FnOnce() -> Option<T>, refuse: impl FnOnce(T)) -> bool {
        let mut state = self.0.state();
        if !state.spare.give_up() {
            state.spare.refill();
            return false;
        }
        if let Some(accepted) = accept() {
            self.0.metrics.turned_away(TurnedAway::Descriptors);
            refuse(accepted);
        }
        state.spare.refill();
        true
    }
}

/// Tells a client why it is let go, as far as that can be done without waiting.
pub fn refuse(mut stream: impl Read + Write) {
    // What is unread when a connection is closed may take the answer out of the client's hands.
    let _ = stream.read(&mut [0; 8192]);
    let _ = stream.write(BUSY);
}

/// Whom a connection counts for: a site that has IPv6 has at least 2⁶⁴ addresses.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code that holds this lock panics")
    }

    fn count(&self, metrics: &Metrics) {
        let mut counts = [0; 5];
        for (_, member) in self.state().members.iter() {
            counts[member.watch.activity() as usize] += 1;
        }
        for (activity, state) in [
            (Activity::Idle, ConnectionState::Idle),
            (Activity::Reading, ConnectionState::Reading),
            (Activity::Waiting, ConnectionState::Waiting),
            (Activity::Writing, ConnectionState::Writing),
            (Activity::Tunnel, ConnectionState::Tunnel),
        ] {
            metrics.connections(state, counts[activity as usize]);
        }
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.members.len() - self.leaving >= self.most.connections
    }

    fn make_room(&mut self, now: Instant) -> usize {
        if self.barren_until.is_some_and(|until| now < until) {
            return 0;
        }
        let mut idle = Vec::new();
        for (key, member) in &mut self.members {
            let until = member.watch.idle_until();
            // It had a request on its way when it was told, and may be idle again since.
            if member.told && until.is_none_or(|until| until > now) {
                member.told = false;
                self.leaving -= 1;
            }
            if let Some(until) = until
                && !member.told
            {
                idle.push((until, key));
            }
        }
        if idle.is_empty() {
            self.barren_until = Some(now + BARREN);
            return 0;
        }
        let part = idle.len().div_ceil(PART);
        idle.select_nth_unstable(part - 1);
        for (_, key) in &idle[..part] {
            let member = &mut self.members[*key];
            member.told = true;
            member.watch.leave();
        }
        self.leaving += part;
        part
    }

    fn enter(&mut self, watch: &Arc<Watch>, client: Option<IpAddr>) -> Result<usize, TurnedAway> {
        if self.is_full() {
            return Err(TurnedAway::Limit);
        }
        if let Some(client) = client {
            let count = self.clients.entry(client).or_default();
            if self.most.per_client.is_some_and(|most| *count >= most) {
                return Err(TurnedAway::ClientLimit);
            }
            *count += 1;
        }
        Ok(self.members.insert(Member {
            watch: Arc::clone(watch),
            told: false,
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.crowd.state();
        if state.members.remove(self.key).told {
            state.leaving -= 1;
        }
        if let Some(client) = self.client
            && let Entry::Occupied(mut count) = state.clients.entry(client)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::pace::Rate;
    use super::super::watch::Bounds;
    use super::*;
    use crate::sweeper::Sweeper;

    fn crowd(connections: usize, per_client: Option<usize>) -> Crowd {
        let most = Most {
            connections,
            per_client,
        };
        Crowd::new(most, Metrics::new(&[]))
    }

    fn watch() -> Arc<Watch> {
        let long = Duration::from_secs(60);
        let bounds = Bounds {
            head: long,
            idle: long,
            rate: Rate {
                stall: long,
                least: 0,
            },
        };
        Watch::new(Sweeper::default().alarm(), bounds)
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn who_is_idle_longest_makes_room_and_who_is_busy_stays() {
        let crowd = crowd(3, None);
        let watches = [watch(), watch(), watch()];
        let mut places = Vec::new();
        for watch in &watches {
            places.push(crowd.enter(watch, None).expect("there is room"));
        }
        watches[0].begun();
        places.push(crowd.enter(&watch(), None).expect("one has to leave"));
        let rang = |at: usize| watches[at].alarm.rang().now_or_never().is_some();
        assert_eq!((rang(0), rang(1), rang(2)), (false, true, false));
        drop(places.remove(1));
        assert_eq!(crowd.0.state().leaving, 0);
    }

    #[test]
    fn who_had_a_request_on_its_way_when_it_was_told_counts_again() {
        let crowd = crowd(2, None);
        let watches = [watch(), watch()];
        let places = watches.each_ref().map(|watch| crowd.enter(watch, None));
        let third = crowd.enter(&watch(), None).expect("one has to leave");
        assert_eq!(crowd.0.state().leaving, 1);
        watches[0].begun();
        watches[0].idles();
        // Another is told, in place of the one that stays.
        let refused = crowd.enter(&watch(), None).expect_err("two and one");
        assert_eq!((refused, crowd.0.state().leaving), (TurnedAway::Limit, 1));
        drop((places, third));
        assert_eq!(crowd.0.state().leaving, 0);
    }

    #[test]
    fn where_nobody_is_idle_who_comes_is_let_go() {
        let crowd = crowd(1, None);
        let watch = watch();
        let place = crowd.enter(&watch, None).expect("there is room");
        watch.begun();
        let refused = crowd.enter(&watch, None).expect_err("it is busy");
        assert_eq!(refused, TurnedAway::Limit);
        drop(place);
        crowd.enter(&watch, None).expect("there is room");
    }

    #[test]
    fn a_client_has_its_share_and_a_network_is_one_client() {
        let crowd = crowd(100, Some(2));
        let mut places = Vec::new();
        for ip in [
            "10.0.0.1",
            "::ffff:10.0.0.1",
            "10.0.0.2",
            "2001:db8::1",
            "2001:db8::2",
        ] {
            places.push(crowd.enter(&watch(), address(ip)).expect("there is room"));
        }
        for ip in ["10.0.0.1", "2001:db8::3"] {
            let refused = crowd.enter(&watch(), address(ip));
            assert_eq!(refused.expect_err("two are there"), TurnedAway::ClientLimit);
        }
        crowd.enter(&watch(), None).expect("it counts for nobody");
        places.remove(0);
        crowd
            .enter(&watch(), address("10.0.0.1"))
            .expect("one has left");
        drop(places);
        assert!(crowd.0.state().clients.is_empty());
    }

    #[test]
    fn what_is_said_to_those_who_are_let_go_is_an_answer() {
        let text = std::str::from_utf8(BUSY).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }
}
