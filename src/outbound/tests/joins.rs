//! Joins, over real fetches: who is waited for, who is stopped, who runs out.

use super::origin::{Gate, Step, answer, ok};
use super::*;
use crate::plan::{FailureKind, Phase};

/// Answers `/open…` at once and `/fail…` with 500; everything else waits for the gate.
async fn gated(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::start(move |request| match request.target() {
        path if path.starts_with("/open") => ok("open"),
        path if path.starts_with("/fail") => answer("500 No", &[], "fail"),
        path if path.starts_with("/stall") => vec![Step::Stall],
        _ => {
            let mut steps = vec![Step::Wait(gate.clone())];
            steps.extend(ok("gated"));
            steps
        }
    })
    .await
}

fn body(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Response(response) => str::from_utf8(&response.body).expect("text"),
        Outcome::Failed(_) => "failed",
        Outcome::Slept(_) => "slept",
        Outcome::Gathered(_) => "gathered",
        Outcome::Done(_) => "done",
        Outcome::NotNeeded => "not needed",
    }
}

fn bodies(outcomes: &[Outcome]) -> Vec<&str> {
    outcomes.iter().map(body).collect()
}

fn fetch(origin: &Origin, path: &str) -> Thing {
    Thing::Fetch(get(origin.url(path)))
}

#[tokio::test]
async fn all_fetches_of_a_plan_run_side_by_side_at_every_depth() {
    let gate = Gate::closed();
    let origin = gated(&gate).await;
    let harness = Harness::new();
    let inner = (0..16).map(|_| fetch(&origin, "/")).collect();
    let mut things: Vec<_> = (0..16).map(|_| fetch(&origin, "/")).collect();
    things.push(Thing::Gather(gather(Join::All, inner)));

    let (results, ()) = tokio::join!(harness.run(Join::All, things), async {
        for _ in 0..32 {
            origin.request().await;
        }
        gate.open();
    });

    assert_eq!(bodies(&results[..16]), ["gated"; 16]);
    let Outcome::Gathered(inner) = &results[16] else {
        panic!("the shape of the plan: {results:?}");
    };
    assert_eq!(bodies(inner), ["gated"; 16]);
}

#[tokio::test]
async fn the_first_to_end_meets_any_and_safe_fetches_are_stopped() {
    let origin = gated(&Gate::closed()).await;
    let harness = Harness::new();
    let things = vec![
        fetch(&origin, "/stall"),
        fetch(&origin, "/fail"),
        fetch(&origin, "/stall"),
    ];
    let results = harness.run(Join::Any, things).await;
    assert_eq!(bodies(&results), ["not needed", "fail", "not needed"]);
    let mut ended = harness.ended(3).await;
    ended.sort_by_key(|outcome| *outcome as u8);
    let expected = [
        FetchOutcome::HttpError,
        FetchOutcome::Aborted,
        FetchOutcome::Aborted,
    ];
    assert_eq!(ended, expected);
    // Those that got as far as the origin are gone from there, too.
    let begun = std::iter::once(origin.request().await).chain(origin.unread().await);
    for _ in begun.filter(|request| request.target() == "/stall") {
        origin.gone().await;
    }
}

#[tokio::test]
async fn an_unsafe_fetch_that_is_not_needed_runs_out() {
    let gate = Gate::closed();
    let origin = gated(&gate).await;
    let harness = Harness::new();
    let things = vec![
        Thing::Fetch(post(origin.url("/pay"), "1 EUR")),
        Thing::Gather(gather(Join::Any, vec![fetch(&origin, "/open")])),
    ];
    let (results, ()) = tokio::join!(harness.run(Join::Any, things), async {
        while origin.request().await.target() != "/pay" {}
    });
    assert_eq!(bodies(&results), ["not needed", "gathered"]);

    gate.open();
    harness.leftovers(1).await;
    assert_eq!(harness.ended(2).await, [FetchOutcome::Ok; 2]);
}

#[tokio::test]
async fn first_ok_passes_over_failures() {
    let gate = Gate::closed();
    let origin = gated(&gate).await;
    let harness = Harness::new();
    let (_port, nobody) = nobody();
    let things = vec![
        fetch(&origin, "/fail"),
        Thing::Fetch(get(nobody)),
        Thing::Done(false),
        fetch(&origin, "/"),
        fetch(&origin, "/stall"),
    ];
    let (results, ()) = tokio::join!(harness.run(Join::FirstOk, things), async {
        harness.ended(2).await;
        gate.open();
    });
    assert_eq!(
        bodies(&results),
        ["fail", "failed", "done", "gated", "not needed"]
    );
}

#[tokio::test]
async fn a_count_is_met_by_so_many() {
    let origin = gated(&Gate::closed()).await;
    let harness = Harness::new();
    let things = vec![
        fetch(&origin, "/stall"),
        fetch(&origin, "/open"),
        Thing::Done(true),
        fetch(&origin, "/fail"),
    ];
    let results = harness.run(Join::Count(3), things).await;
    assert_eq!(bodies(&results), ["not needed", "open", "done", "fail"]);
}

#[tokio::test]
async fn sleeps_take_their_time() {
    let harness = Harness::new();
    let time = Duration::from_millis(50);
    let started = Instant::now();
    let results = harness.run(Join::All, vec![Thing::Sleep(time)]).await;
    assert!(matches!(results[..], [Outcome::Slept(slept)] if slept == time));
    assert!(started.elapsed() >= time);
    assert!(harness.counts.seen.borrow().is_empty());
}

#[tokio::test]
async fn a_gather_that_takes_too_long_fails_what_has_not_ended() {
    let origin = gated(&Gate::closed()).await;
    let harness = Harness::new();
    let time = Duration::from_millis(300);
    let slow = Gather {
        timeout: Some(time),
        ..gather(
            Join::All,
            vec![
                fetch(&origin, "/open"),
                fetch(&origin, "/stall?token=s3cret"),
                Thing::Sleep(LONG / 2),
                Thing::Fetch(post(origin.url("/pay"), "").within(2 * time)),
            ],
        )
    };
    let things = vec![Thing::Gather(slow), fetch(&origin, "/open")];

    let mut results = harness.run(Join::All, things).await;

    assert_eq!(bodies(&results), ["gathered", "open"]);
    let Outcome::Gathered(inner) = results.remove(0) else {
        panic!("the shape of the plan");
    };
    assert_eq!(bodies(&inner), ["open", "failed", "failed", "failed"]);
    let urls = [&*origin.url("/stall?token=***"), "", &*origin.url("/pay")];
    for (outcome, url) in inner.into_iter().skip(1).zip(urls) {
        let failure = failure(outcome);
        assert_eq!(
            (failure.kind, failure.phase),
            (FailureKind::Timeout, Phase::Join)
        );
        assert_eq!(failure.url, url);
        assert!(failure.elapsed >= time);
    }
    // The unsafe one runs out, until its own time is over.
    harness.leftovers(1).await;
    let timeouts = |counts: &Vec<FetchOutcome>| {
        counts
            .iter()
            .filter(|outcome| **outcome == FetchOutcome::Timeout)
            .count()
    };
    assert_eq!(timeouts(&harness.ended(4).await), 2);
}

#[tokio::test]
async fn nothing_outlives_the_deadline() {
    let origin = gated(&Gate::closed()).await;
    let harness = Harness::new();
    let time = Duration::from_millis(400);
    let long = Gather {
        timeout: Some(LONG),
        ..gather(Join::All, vec![Thing::Sleep(LONG), Thing::Done(true)])
    };
    let things = vec![
        fetch(&origin, "/stall"),
        Thing::Fetch(post(origin.url("/stall"), "")),
        fetch(&origin, "/open"),
        Thing::Gather(long),
    ];
    let started = Instant::now();

    let results = harness.run_for(time, Join::All, things).await;

    let took = started.elapsed();
    assert!(
        took >= time && took < time + Duration::from_millis(250),
        "{took:?}"
    );
    assert_eq!(bodies(&results), ["failed", "failed", "open", "gathered"]);
    for outcome in results.into_iter().take(2) {
        let failure = failure(outcome);
        assert_eq!(
            (failure.kind, failure.phase),
            (FailureKind::Timeout, Phase::Head)
        );
    }
    origin.gone().await;
    origin.gone().await;
}

#[tokio::test]
async fn what_was_met_before_begins_nothing() {
    let origin = gated(&Gate::closed()).await;
    let harness = Harness::new();
    let things = vec![
        Thing::Done(true),
        Thing::Fetch(post(origin.url("/pay"), "")),
    ];
    let results = harness.run(Join::Any, things).await;
    assert_eq!(bodies(&results), ["done", "not needed"]);
    assert_eq!(origin.accepts(), 0);
}
