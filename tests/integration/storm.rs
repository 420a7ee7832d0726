//! Everything at once: requests that wait in every way, in random order, with clients that leave and a
//! worker that dies. Whatever happens, everybody gets an answer of their own, and nothing is left behind.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::frames::{Frame, flag, kind};
use crate::support::gateway::{self, Gateway};
use crate::support::http::Body;
use crate::support::plan::Plan;
use crate::support::worker::{self, Answer, Builder, Cancelled, Ended, Job};

const REQUESTS: u64 = 200;

/// Numbers that are the same every time.
struct Dice(u64);

impl Dice {
    /// Below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        // The constants are Knuth's.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn moment(&mut self) -> Duration {
        Duration::from_millis(self.roll(8))
    }
}

fn stormy() -> Builder {
    worker::new(2)
        .on("/storm", async |mut job| {
            let seed = job.environ("QUERY_STRING").to_owned();
            let mut dice = Dice(seed.parse().expect("a number"));
            let mut begun = false;
            for _ in 0..dice.roll(7) {
                if let Err(cancelled) = wait(&mut job, &mut dice).await {
                    return if begun {
                        job.broken().await
                    } else {
                        Err(cancelled)
                    };
                }
                if dice.roll(3) == 0 && !begun {
                    job.begin(Answer::new(200).body("it was ")).await;
                    begun = true;
                }
            }
            if begun {
                job.end(seed).await
            } else {
                job.answer(200, format!("it was {seed}")).await
            }
        })
        .runs(call)
}

/// One wait, of any kind.
async fn wait(job: &mut Job, dice: &mut Dice) -> Result<(), Cancelled> {
    let pinned = [0, flag::PINNED][dice.roll(2) as usize];
    let plan = Plan::sleep(dice.moment().as_secs_f64());
    match dice.roll(6) {
        0 | 1 => job.park_with(&plan, pinned).await.map(drop),
        2 => job.hold(&plan.held("mode", "storm.py:1")).await.map(drop),
        3 => {
            let (request, epoch) = job.tag();
            let why = json!({ "hold": { "reason": "cursor", "source": "storm.py:2" } });
            job.send_raw(&Frame {
                flags: flag::LOCAL,
                request,
                epoch,
                head: why.to_string().into_bytes(),
                ..Frame::new(kind::HOLD)
            })
            .await;
            Ok(())
        }
        _ => {
            let (voice, calls, moment) = (job.voice(), dice.roll(4), dice.moment());
            tokio::spawn(async move {
                for number in 0..calls {
                    voice.call(number as u16).await;
                }
                tokio::time::sleep(moment).await;
                // Now and then before all of them have run, or before the park is known.
                voice.want().await;
            });
            job.park_local_with(pinned).await
        }
    }
}

async fn call(mut job: Job, number: u16) -> Ended {
    if number % 2 == 1 {
        let plan = Plan::sleep(0.002).held("unsupported", "storm.py:3");
        job.hold(&plan).await?;
    }
    job.ready().await
}

/// True if it was answered, false if its client left or its worker died.
async fn ask(gateway: &Gateway, seed: u64) -> bool {
    let mut dice = Dice(!seed);
    let target = format!("/storm?{seed}");
    let method = ["GET", "POST"][dice.roll(2) as usize];
    let request = gateway.request(method, &target).body("").spawn();
    if dice.roll(4) == 0 {
        tokio::time::sleep(dice.moment()).await;
        request.leave_if_unanswered().await;
        return false;
    }
    let answer = request.await;
    match (answer.status(), &answer.body) {
        (200, Body::Whole(_)) => {
            assert_eq!(answer.text(), format!("it was {seed}"));
            true
        }
        (200, Body::Cut(part)) => {
            assert_eq!(part, b"it was ");
            false
        }
        (status, _) => {
            assert_eq!(status, 502, "{}", answer.text());
            false
        }
    }
}

/// Asks for so many at a time; how many were answered.
async fn storm(gateway: &Arc<Gateway>, seeds: std::ops::Range<u64>) -> usize {
    let mut asked = JoinSet::new();
    let mut answered = 0;
    for seed in seeds {
        let gateway = Arc::clone(gateway);
        asked.spawn(async move { ask(&gateway, seed).await });
        if asked.len() > 30 {
            answered += usize::from(asked.join_next().await.expect("one").expect("no panic"));
        }
    }
    while let Some(outcome) = asked.join_next().await {
        answered += usize::from(outcome.expect("no panic"));
    }
    answered
}

#[tokio::test]
async fn whatever_requests_wait_for_nothing_is_lost_or_mixed_up() {
    let gateway = Arc::new(gateway::new(4).run().await);
    let _one = stormy().run(&gateway).await;
    let _other = stormy().run(&gateway).await;
    let answered = storm(&gateway, 0..REQUESTS).await;
    assert!(answered > REQUESTS as usize / 2, "{answered} answers");
    gateway.rests().await;
    assert_eq!(gateway.log_lines("worker refused"), [""; 0]);
    assert_eq!(gateway.log_lines("worker lost"), [""; 0]);
    for series in ["layby_waiting_in_place", "layby_spool_bytes"] {
        gateway.until_metric(series, |now| now == 0.0).await;
    }
}

#[tokio::test]
async fn a_worker_that_dies_in_the_storm_takes_only_its_own_with_it() {
    let gateway = Arc::new(gateway::new(4).run().await);
    let one = stormy().run(&gateway).await;
    let _other = stormy().run(&gateway).await;
    let asking = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { storm(&gateway, 0..REQUESTS).await }
    });
    one.until("a part of the requests", |seen| seen.requests.len() > 40)
        .await;
    one.kill().await;
    let _next = stormy().connect(&gateway).await;
    let answered = asking.await.expect("no panic");
    assert!(answered > REQUESTS as usize / 2, "{answered} answers");
    gateway.rests().await;
    assert_eq!(gateway.log_lines("worker lost").len(), 1);
    gateway
        .until_metric("layby_waiting_in_place", |now| now == 0.0)
        .await;
}

#[tokio::test]
async fn workers_that_are_replaced_in_the_storm_lose_nobody() {
    let gateway = Arc::new(gateway::new(4).run().await);
    let one = stormy().run(&gateway).await;
    let other = stormy().run(&gateway).await;
    let asking = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { storm(&gateway, 0..REQUESTS).await }
    });
    let mut next = Vec::new();
    for (leaves, begun) in [(one, 40), (other, 60)] {
        leaves
            .until("a part of the requests", |seen| seen.requests.len() > begun)
            .await;
        next.push(stormy().connect(&gateway).await);
        leaves.say(&Frame::new(kind::BYE)).await;
        leaves.released().await;
        assert!(leaves.open_slots().is_empty());
    }
    let answered = asking.await.expect("no panic");
    // All but the clients that left.
    assert!(answered > REQUESTS as usize / 2, "{answered} answers");
    gateway.rests().await;
    let failed = "layby_requests_total{class=\"5xx\",method=\"GET\",status=\"502\"}";
    assert_eq!(gateway.metric(failed).await, 0.0);
    assert_eq!(gateway.log_lines("worker lost"), [""; 0]);
}
