use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::tools::metrics::Readings;
use crate::tools::top::plain;
use crate::tools::top::status::Reading;
use crate::tools::top::view::{Key, Sort};

const STATUS: &str = r#"{
    "version": "0.1.0", "uptime_seconds": 7512.5, "ready": true, "draining": false,
    "slots": {"count": 3, "idle": 1, "busy": 1, "lost": 1, "list": [
        {"slot": 1, "process": 1, "state": "busy", "job": {"request": 7, "request_id": "a1", "method": "GET",
         "path": "/shop", "route": null, "phase": "wait_in_place", "seconds": 0.25}},
        {"slot": 2, "process": 1, "state": "idle", "job": null},
        {"slot": 3, "process": null, "state": "lost", "job": {"request": 8, "request_id": "a2", "method": "POST",
         "path": "/pay", "route": null, "phase": "run", "seconds": 71.5}}]},
    "queue": {"length": 12, "limit": 1000},
    "parked": {"requests": 310, "limit": 10000, "waits_for": [
        {"what": "origin", "origin": "api.stripe.com", "requests": 300, "longest_seconds": 2.04},
        {"what": "time", "origin": null, "requests": 10, "longest_seconds": 0.5}]},
    "upstreams": [], "processes": [{"process": 1, "pid": 4711, "mode": "coroutine", "threads": 3, "state": "ready"}],
    "waits_in_place": [{"reason": "transaction", "source": "shop/views.py:88", "count": 5}],
    "slow_requests": [{"request_id": "b1", "method": "GET", "path": "/slow", "route": null, "status": 504,
        "why": "deadline", "ended_seconds_ago": 12.0, "seconds": 60.0, "whole_seconds": 60.0, "parks": 1,
        "slot": 1, "pid": 4711, "phases": [
            {"phase": "queue", "begins": 0.0, "seconds": 15.0}, {"phase": "run", "begins": 15.0, "seconds": 15.0},
            {"phase": "park", "begins": 30.0, "seconds": 30.0}]}],
    "history": {"sample_seconds": 2.0, "requests_per_second": [10.0, 80.0, 40.0], "errors_per_second": [0.0, 0.0, 0.5],
        "p50_seconds": [0.01, null, 0.012], "p95_seconds": [0.1, null, 0.55], "p99_seconds": [0.2, null, 1.5],
        "busy": [], "queued": [], "parked": []}
}"#;

fn reading(at: Instant, requests: u32) -> Reading {
    let metrics = format!(
        "layby_requests_total{{method=\"GET\"}} {requests}\nlayby_fetches_total{{outcome=\"ok\"}} {requests}\n\
         layby_fetches_total{{outcome=\"timeout\"}} {}\n",
        requests / 10
    );
    Reading {
        at,
        status: serde_json::from_str(STATUS).expect("it is a status"),
        metrics: Readings::parse(&metrics),
    }
}

fn view() -> View {
    let mut view = View::new("127.0.0.1:9180".parse().expect("an address"));
    let now = Instant::now();
    view.reads(reading(now, 100));
    view.reads(reading(now + Duration::from_secs(2), 200));
    view
}

/// The lines of a screen of this size.
fn drawn(view: &mut View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it cannot fail");
    let now = Instant::now();
    let look = Look::new(true);
    terminal
        .draw(|frame| draw(frame, view, look, now))
        .expect("it cannot fail");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect();
    (0..height).map(line).collect()
}

fn shows(lines: &[String], expected: &[&str]) {
    let all = lines.join("\n");
    for expected in expected {
        assert!(all.contains(expected), "{expected} in\n{all}");
    }
}

#[test]
fn everything_that_there_is_to_see_is_on_a_large_screen() {
    let lines = drawn(&mut view(), 140, 40);
    shows(
        &lines,
        &[
            "layby 0.1.0 at 127.0.0.1:9180, up 2h05m  ready",
            "1 of 3 busy, 1 lost",
            "queue █░░░░░░░░░ 12 of 1000",
            "310 of 10000",
            "requests 50.0/s   failing 0.5/s   p50 12.0ms   p95 550ms   p99 1.5s",
            "fetches 55.0/s, failing 5.0/s",
            "requests/s, at most 80",
            "p95, at most 550ms",
            "1     1    busy    250ms    wait in place  GET /shop",
            "3     -    lost    71.5s    run            POST /pay",
            "   300  2.0s     api.stripe.com",
            "    10  500ms    time",
            "     1  4711     ready, coroutine, 3 threads",
            "     5  transaction at shop/views.py:88",
            "60.0s    12s ago   504  qqqqqqrrrrrrpppppppppppp GET /slow, deadline",
            "q quit   s sort by (number)",
        ],
    );
}

#[test]
fn a_screen_of_any_size_can_be_drawn_on() {
    for width in 0..120 {
        for height in [0, 1, 2, 3, 4, 7, 12, 18, 25, 50] {
            drawn(&mut view(), width, height);
        }
    }
    shows(
        &drawn(&mut view(), 80, 8),
        &["up 2h05m", "1 of 3 busy", "GET /shop"],
    );
}

#[test]
fn colours_say_nothing_that_words_do_not() {
    let mut view = view();
    let mut terminal = Terminal::new(TestBackend::new(140, 40)).expect("it cannot fail");
    let now = Instant::now();
    terminal
        .draw(|frame| draw(frame, &mut view, Look::new(false), now))
        .expect("it cannot fail");
    let cells = terminal.backend().buffer().content.iter();
    assert!(
        cells
            .into_iter()
            .all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset)
    );
    let with: String = drawn(&mut view, 140, 40).concat();
    let without: String = terminal
        .backend()
        .buffer()
        .content
        .iter()
        .map(|cell| cell.symbol())
        .collect();
    assert_eq!(with, without);
}

#[test]
fn a_gateway_that_is_gone_is_said_to_be_and_its_last_picture_stays() {
    let mut view = view();
    view.loses("Connection refused".to_owned());
    shows(
        &drawn(&mut view, 140, 40),
        &["no connection for 0s: Connection refused", "GET /shop"],
    );
    view.reads(reading(Instant::now(), 300));
    let back = drawn(&mut view, 140, 40).concat();
    assert!(!back.contains("no connection"));

    let mut unseen = View::new("127.0.0.1:9180".parse().expect("an address"));
    shows(&drawn(&mut unseen, 80, 24), &["asking 127.0.0.1:9180"]);
    unseen.loses("Connection refused".to_owned());
    shows(&drawn(&mut unseen, 80, 24), &["Connection refused"]);
}

#[test]
fn slots_can_be_sorted_and_scrolled_through() {
    let mut view = view();
    let first = |view: &mut View| {
        let lines = drawn(view, 80, 24);
        let header = lines.iter().position(|line| line.contains("slot  proc"));
        lines[header.expect("it is there") + 1].clone()
    };
    assert!(first(&mut view).contains("/shop"));
    view.press(Key::Sort);
    assert_eq!(view.sort, Sort::Time);
    assert!(first(&mut view).contains("/pay"));
    view.press(Key::Sort);
    assert!(first(&mut view).contains("/pay"));
    view.press(Key::Sort);

    let reading = view.reading.as_mut().expect("there is one");
    let slot = reading.status.slots.list[0].clone();
    reading.status.slots.list = (1..=200)
        .map(|number| Slot {
            slot: number,
            ..slot.clone()
        })
        .collect();
    view.press(Key::Down(3));
    assert!(first(&mut view).contains("│4 "));
    view.press(Key::Down(usize::MAX));
    let lines = drawn(&mut view, 80, 24);
    shows(&lines, &["│200 ", "to 200 of 200"]);
    view.press(Key::Up(usize::MAX));
    assert!(first(&mut view).contains("│1 "));
    // The other list is scrolled by itself.
    view.press(Key::Other);
    view.press(Key::Down(5));
    assert!(first(&mut view).contains("│1 "));
}

#[test]
fn a_picture_that_is_held_stays() {
    let mut view = view();
    view.press(Key::Pause);
    let mut other = reading(Instant::now(), 500);
    other.status.queue.length = 77;
    view.reads(other);
    let lines = drawn(&mut view, 140, 40);
    shows(&lines, &["12 of 1000", "held, p goes on"]);
}

#[test]
fn times_are_as_long_as_they_must_be() {
    let shown = [
        0.0, 0.00042, 0.0994, 0.1, 0.9994, 0.9996, 59.96, 99.94, 100.0,
    ]
    .map(seconds);
    let expected = [
        "0.0ms", "0.4ms", "99.4ms", "100ms", "999ms", "1.0s", "60.0s", "99.9s", "1m40s",
    ];
    assert_eq!(shown, expected);
    let shown = [0.0, 59.9, 61.0, 3600.0, 86_399.0, 90_000.0].map(since);
    assert_eq!(shown, ["0s", "59s", "1m01s", "1h00m", "23h59m", "1d01h"]);
}

#[test]
fn the_plain_page_says_the_same_in_lines() {
    let page = plain::page(
        "127.0.0.1:9180".parse().expect("an address"),
        &reading(Instant::now(), 1).status,
    );
    let lines: Vec<String> = page.lines().map(str::to_owned).collect();
    shows(
        &lines,
        &[
            "layby 0.1.0 at 127.0.0.1:9180, up 2h05m: ready",
            "slots: 1 of 3 busy, 1 lost   queue: 12 of 1000   parked: 310 of 10000",
            "requests: 40.0 a second, 0.5 failing   p50 12.0ms   p95 550ms   p99 1.5s",
            "1     1        busy      250ms    GET /shop  wait_in_place",
            "2     1        idle",
            "300     2.0s     api.stripe.com",
            "5         transaction  shop/views.py:88",
            "60.0s    504     GET /slow  queue 15.0s, run 15.0s, park 30.0s",
        ],
    );
    assert!(page.is_ascii());
}
