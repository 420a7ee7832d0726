//! `layby advise`: how many slots this traffic needs, and why.
//!
//! Readings of the metrics over a time say how much work came and how long each step held its slot. How
//! many slots keep the waits short follows from Erlang's C formula, for a queue in front of equal
//! servers (M/M/c). Real traffic comes in bursts, so what is advised for a quiet hour does not hold for a
//! busy one: look at the busiest.

use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::metrics::Readings;
use super::out::{complain, say};

/// So many of a hundred steps shall get a slot within [`SHORT`].
const PROMPT: f64 = 0.95;
const SHORT: Duration = Duration::from_millis(100);

/// Fewer steps say nothing.
const ENOUGH: f64 = 100.0;

/// Between two looks at what is no counter.
const LOOK: Duration = Duration::from_millis(250);

/// As many as a configuration may ask for.
const MOST: u32 = 1024;

/// Watches the gateway for so long, and prints the advice. The exit status is that of the process.
pub fn run(admin: SocketAddr, time: Duration) -> ExitCode {
    match watch(admin, time) {
        Ok(traffic) => say(&Advice::of(&traffic).to_string()),
        Err(error) => {
            complain(format_args!(
                "cannot read the metrics at {admin}: {error}; --admin says where the gateway has them"
            ));
            ExitCode::FAILURE
        }
    }
}

/// What a gateway did in some time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Traffic {
    seconds: f64,
    slots: f64,
    lost: f64,
    requests: f64,
    shed: f64,
    steps: f64,
    /// Slot seconds that these took, and those that have not ended.
    busy: f64,
    /// Slots held by requests that wait in place, in the mean.
    held: f64,
    /// Jobs that got a slot, and how long they waited for it in all.
    placed: f64,
    waited: f64,
}

#[allow(
    clippy::disallowed_methods,
    reason = "this process runs no requests, and has nothing else to do"
)]
fn watch(admin: SocketAddr, time: Duration) -> std::io::Result<Traffic> {
    let begun = Instant::now();
    let first = Readings::take(admin)?;
    let (mut held, mut looks) = (0.0, 0.0);
    let last = loop {
        std::thread::sleep(LOOK.min(time));
        let now = Readings::take(admin)?;
        held += now.of("layby_waiting_in_place");
        looks += 1.0;
        if begun.elapsed() >= time {
            break now;
        }
    };
    let more = |name: &str| last.of(name) - first.of(name);
    Ok(Traffic {
        seconds: begun.elapsed().as_secs_f64(),
        slots: last.of("layby_slots"),
        lost: last.with("layby_slots", "state", "lost"),
        requests: more("layby_requests_total"),
        shed: more("layby_requests_shed_total"),
        steps: more("layby_slot_busy_seconds_count"),
        busy: more("layby_slots_busy_seconds_total"),
        held: held / looks,
        placed: more("layby_queue_wait_seconds_count"),
        waited: more("layby_queue_wait_seconds_sum"),
    })
}

/// What follows from some traffic.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Advice {
    traffic: Traffic,
    /// Slots that work would fill, with that of the requests that were turned away. None if there was
    /// too little to say.
    load: Option<f64>,
    /// Slots that keep the waits short.
    need: u32,
}

impl Advice {
    fn of(traffic: &Traffic) -> Self {
        let enough = traffic.steps >= ENOUGH && traffic.placed > 0.0;
        let load = enough.then(|| {
            let turned_away = traffic.shed / traffic.placed;
            traffic.busy / traffic.seconds * (1.0 + turned_away)
        });
        let need = load.map_or(0, |load| slots_for(load, traffic.busy / traffic.steps));
        Self {
            traffic: *traffic,
            load,
            need,
        }
    }
}

/// The fewest slots of which enough get to a step in a short time, for so many slots' worth of work in
/// steps of so many seconds.
fn slots_for(load: f64, step: f64) -> u32 {
    let late = |slots: u32| {
        let spare = f64::from(slots) - load;
        erlang_c(slots, load) * (-spare * SHORT.as_secs_f64() / step).exp()
    };
    let enough = (1..MOST).find(|slots| f64::from(*slots) > load && late(*slots) <= 1.0 - PROMPT);
    enough.unwrap_or(MOST)
}

/// The chance that a step has to wait, for more slots than work (A. K. Erlang, 1917). By the recursion for
/// Erlang's B, which has no factorials that overflow.
fn erlang_c(slots: u32, load: f64) -> f64 {
    let blocked = (1..=slots).fold(1.0, |blocked, slots| {
        load * blocked / (f64::from(slots) + load * blocked)
    });
    blocked / (1.0 - load / f64::from(slots) * (1.0 - blocked))
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = &self.traffic;
        let per_second = |count: f64| count / it.seconds;
        writeln!(
            f,
            "In {:.0} s: {:.1} requests a second, {:.1} steps in slots.",
            it.seconds,
            per_second(it.requests),
            per_second(it.steps)
        )?;
        let in_use = it.busy / it.seconds;
        let Some(load) = self.load else {
            if in_use > 0.5 * it.slots {
                writeln!(
                    f,
                    "But {in_use:.1} of {:.0} slots were in use: steps do not end. See layby top, and the log.",
                    it.slots
                )?;
            }
            return writeln!(
                f,
                "That is too little to say anything. Look for longer (--time 10m), in a busy hour."
            );
        };
        writeln!(
            f,
            "A step held its slot for {:.1} ms in the mean, so {in_use:.1} of {:.0} slots were in use.",
            1e3 * it.busy / it.steps,
            it.slots
        )?;
        writeln!(
            f,
            "A request waited {:.1} ms for its slot in the mean; {:.0} were turned away.",
            1e3 * it.waited / it.placed,
            it.shed
        )?;
        if it.lost > 0.0 {
            writeln!(
                f,
                "{:.0} slots are lost: overdue, dead or not started. See the log.",
                it.lost
            )?;
        }
        writeln!(
            f,
            "\nThis traffic needs {} slots, so that {:.0} of 100 steps get theirs within {} ms.",
            self.need,
            PROMPT * 100.0,
            SHORT.as_millis()
        )?;
        if it.held > 0.25 * in_use {
            writeln!(
                f,
                "Fewer would do if requests parked: {:.1} slots were held by requests that only waited. \
                 layby_waits_in_place_total says why, waits_in_place in /api/status where.",
                it.held
            )?;
        }
        let (need, slots) = (f64::from(self.need), it.slots);
        if need > slots {
            writeln!(
                f,
                "{slots:.0} are too few. More help if the database allows as many connections and the \
                 machine has cores to spare; else another replica, or shorter steps."
            )
        } else if load > 0.8 * slots {
            writeln!(f, "{slots:.0} are just enough: any more traffic will wait.")
        } else if need < 0.6 * slots {
            writeln!(
                f,
                "{slots:.0} are plenty. The database could have {:.0} connections back, if no other hour \
                 is busier.",
                slots - need
            )
        } else {
            writeln!(f, "{slots:.0} are right.")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ten seconds with as many steps of 20 ms as fill so many slots.
    fn traffic(slots: f64, load: f64) -> Traffic {
        Traffic {
            seconds: 10.0,
            slots,
            lost: 0.0,
            requests: 250.0 * load,
            shed: 0.0,
            steps: 500.0 * load,
            busy: 10.0 * load,
            held: 0.0,
            placed: 250.0 * load,
            waited: 1.0,
        }
    }

    #[test]
    fn erlangs_formula_is_that_of_the_books() {
        // One server: the chance to wait is its load.
        assert!((erlang_c(1, 0.7) - 0.7).abs() < 1e-12);
        // Tables: 10 servers, 8 erlang; 2 servers, 1 erlang.
        assert!((erlang_c(10, 8.0) - 0.409_18).abs() < 1e-4);
        assert!((erlang_c(2, 1.0) - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn what_fits_is_right_and_what_does_not_is_said() {
        for (slots, load, words) in [
            (8.0, 2.0, "8 are plenty"),
            (8.0, 5.0, "8 are right"),
            (8.0, 6.9, "8 are just enough"),
            (4.0, 3.99, "4 are too few"),
        ] {
            let said = Advice::of(&traffic(slots, load)).to_string();
            assert!(said.contains(words), "{slots} {load}: {said}");
        }
    }

    #[test]
    fn requests_that_were_turned_away_need_slots_too() {
        let mut shedding = traffic(8.0, 7.9);
        shedding.shed = shedding.placed;
        let advice = Advice::of(&shedding);
        assert!(advice.need >= 16, "{advice}");
    }

    #[test]
    fn waits_in_place_are_pointed_at() {
        let mut holding = traffic(8.0, 6.0);
        assert!(!Advice::of(&holding).to_string().contains("only waited"));
        holding.held = 4.0;
        assert!(
            Advice::of(&holding)
                .to_string()
                .contains("4.0 slots were held")
        );
    }

    #[test]
    fn a_handful_of_requests_says_nothing() {
        let mut quiet = traffic(8.0, 2.0);
        quiet.steps = 20.0;
        assert!(Advice::of(&quiet).to_string().contains("too little"));
        let none = Traffic {
            steps: 0.0,
            placed: 0.0,
            ..quiet
        };
        assert!(Advice::of(&none).to_string().contains("too little"));
    }

    #[test]
    fn slots_that_are_stuck_are_in_use() {
        let stuck = Traffic {
            steps: 0.0,
            placed: 0.0,
            ..traffic(8.0, 8.0)
        };
        let said = Advice::of(&stuck).to_string();
        assert!(said.contains("8.0 of 8 slots were in use"), "{said}");
    }

    proptest! {
        #[test]
        fn more_work_never_needs_fewer_slots(load in 0.01f64..200.0, more in 0.0f64..50.0, step in 0.001f64..5.0) {
            let need = slots_for(load, step);
            prop_assert!(f64::from(need) > load);
            prop_assert!(slots_for(load + more, step) >= need);
        }
    }
}
