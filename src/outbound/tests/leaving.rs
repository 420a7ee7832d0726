//! Callers that leave, the end of the gateway, and a thread that is gone.

use super::origin::{Gate, Step, ok};
use super::*;
use crate::plan::FailureKind;

/// GETs stall; POSTs are answered when the gate opens.
async fn origin(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::start(move |request| match request.method() {
        "GET" => vec![Step::Stall],
        _ => {
            let mut steps = vec![Step::Wait(gate.clone())];
            steps.extend(ok("paid"));
            steps
        }
    })
    .await
}

fn both(origin: &Origin) -> Plan {
    let things = vec![
        Thing::Fetch(get(origin.url("/look"))),
        Thing::Fetch(post(origin.url("/pay"), "1 EUR")),
        Thing::Sleep(LONG),
    ];
    plan(Join::All, things)
}

#[tokio::test]
async fn a_caller_that_leaves_stops_safe_fetches_and_lets_unsafe_ones_run_out() {
    let gate = Gate::closed();
    let origin = origin(&gate).await;
    let harness = Harness::new();
    {
        let results = harness.outbound.run(both(&origin), Instant::now() + LONG);
        tokio::select! {
            _ = results => panic!("the gate is closed"),
            () = async { origin.request().await; origin.request().await; } => {}
        }
    }
    origin.gone().await;
    assert_eq!(harness.ended(1).await, [FetchOutcome::Aborted]);

    gate.open();
    harness.leftovers(1).await;
    assert_eq!(
        harness.ended(2).await,
        [FetchOutcome::Aborted, FetchOutcome::Ok]
    );
}

#[tokio::test]
async fn a_caller_may_leave_at_any_moment() {
    // However far the plan has come, what was begun ends, and nothing is counted twice.
    let gate = Gate::closed();
    gate.open();
    let origin = origin(&gate).await;
    let harness = Harness::new();
    for polls in 0..40 {
        let mut results = Box::pin(harness.outbound.run(both(&origin), Instant::now() + LONG));
        for _ in 0..polls {
            if futures_util::poll!(&mut results).is_ready() {
                panic!("one fetch stalls");
            }
            tokio::task::yield_now().await;
        }
        drop(results);
    }
    let left = timeout(LONG, harness.outbound.drain(LONG)).await;
    assert_eq!(left, Ok(0));
    let counts = harness.counts.seen.borrow().clone();
    let ended = |of| outcomes(&counts).into_iter().filter(|o| *o == of).count();
    assert_eq!(
        ended(FetchOutcome::Aborted),
        ended(FetchOutcome::Ok),
        "{counts:?}"
    );
    assert!(outcomes(&counts).len() <= 80);
}

#[tokio::test]
async fn a_drain_waits_for_what_runs_out() {
    let gate = Gate::closed();
    let origin = origin(&gate).await;
    let harness = Harness::new();
    let things = vec![
        Thing::Fetch(post(origin.url("/pay"), "")),
        Thing::Sleep(Duration::ZERO),
    ];
    harness.run(Join::Any, things).await;
    origin.request().await;

    let other = harness.outbound.clone();
    let mut drained = Box::pin(other.drain(LONG));
    assert!(futures_util::poll!(&mut drained).is_pending());
    // Begun before the gate opens: nothing new runs while it drains.
    loop {
        let late = harness.fetch(get(origin.url("/late"))).await;
        if failure(late).kind == FailureKind::Failed {
            break;
        }
    }
    assert!(futures_util::poll!(&mut drained).is_pending());

    gate.open();
    assert_eq!(timeout(LONG, drained).await, Ok(0));
    assert_eq!(harness.ended(1).await, [FetchOutcome::Ok]);
    harness.leftovers(1).await;
    assert!(origin.unread().await.is_empty());
}

#[tokio::test]
async fn a_drain_ends_with_its_grace_and_says_what_was_cut() {
    let gate = Gate::closed();
    let origin = origin(&gate).await;
    let harness = Harness::new();
    for _ in 0..2 {
        let things = vec![
            Thing::Fetch(post(origin.url("/pay"), "")),
            Thing::Sleep(Duration::ZERO),
        ];
        harness.run(Join::Any, things).await;
        origin.request().await;
    }
    let grace = Duration::from_millis(200);
    let started = Instant::now();
    assert_eq!(harness.outbound.clone().drain(grace).await, 2);
    assert!(started.elapsed() >= grace);
    assert!(started.elapsed() < grace + Duration::from_millis(250));
    // A second drain has nothing to do.
    assert_eq!(harness.outbound.drain(grace).await, 0);
}

#[tokio::test]
async fn plans_fail_in_their_shape_when_the_thread_is_gone() {
    let harness = Harness::new();
    harness.outbound.clone().drain(LONG).await;
    let inner = gather(Join::All, vec![Thing::Sleep(LONG), Thing::Done(true)]);
    let things = vec![
        Thing::Fetch(get("http://me:pw@127.0.0.1/")),
        Thing::Gather(inner),
    ];

    let mut results = harness.run(Join::All, things).await;

    let Outcome::Gathered(inner) = results.pop().expect("two things") else {
        panic!("the shape of the plan");
    };
    assert!(matches!(
        inner[..],
        [Outcome::Failed(_), Outcome::Done(true)]
    ));
    let failure = failure(results.pop().expect("two things"));
    assert_eq!(failure.kind, FailureKind::Failed);
    assert_eq!(failure.url, "http://***@127.0.0.1/");
}
