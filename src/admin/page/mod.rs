//! The page for people: what the slots do, what waits, what was slow.
//!
//! The document is made here, whole, and can be read without any script. The script only asks for it again
//! every second and takes over what has changed, so nothing is shown that is not made here. Everything comes
//! from this program; the policy that goes with the page forbids the browser anything else.

mod figures;
mod markup;
mod plot;
mod tables;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, StatusCode, header};

use self::figures::{Count, PerSecond, Seconds};
use self::plot::{Line, Plot};
use super::pages::{Overview, Sources};
use super::status::History;

pub use self::markup::Markup;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const ICON: &str = include_str!("icon.svg");

/// No other origin, no script and no style in the document itself, and no frame around it.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The page and what belongs to it.
pub fn routes() -> Router<Sources> {
    let asset = |media: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, media)], text) })
    };
    Router::new()
        .route("/", get(page))
        .route("/assets/page.css", asset("text/css; charset=utf-8", STYLE))
        .route(
            "/assets/page.js",
            asset("text/javascript; charset=utf-8", SCRIPT),
        )
        .route("/assets/icon.svg", asset("image/svg+xml", ICON))
}

async fn page(State(sources): State<Sources>) -> Response {
    let mut html = Markup::default();
    board(&mut html, &sources.overview());
    document(StatusCode::OK, "layby", html)
}

/// A whole document around what is in `main`.
pub fn document(status: StatusCode, title: &str, main: Markup) -> Response {
    let mut html = Markup::default();
    html.raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>");
    html.text(title).raw(
        "</title><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <link rel=\"icon\" href=\"/assets/icon.svg\">\
         <link rel=\"stylesheet\" href=\"/assets/page.css\">\
         <script type=\"module\" src=\"/assets/page.js\"></script></head><body>",
    );
    let mut text = html.into_string();
    text.push_str(&main.into_string());
    text.push_str("</body></html>\n");
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        ),
    ];
    (status, headers, text).into_response()
}

fn board(html: &mut Markup, overview: &Overview) {
    html.raw(
        "<header><h1><img src=\"/assets/icon.svg\" alt=\"\" width=\"24\" height=\"24\">layby</h1>",
    );
    // The script puts its button and its notices here.
    html.raw("<p class=\"live\" id=\"live\" role=\"status\"><noscript>This is the state of one moment; reload the page for another.</noscript></p>");
    html.raw("</header><main id=\"board\">");
    state(html, overview);
    tiles(html, overview);
    plots(html, &overview.history);
    tables::slots(html, overview);
    tables::waits_for(html, &overview.status.parked);
    tables::slow_requests(html, &overview.slow_requests);
    tables::processes(html, &overview.status.processes);
    tables::upstreams(html, &overview.status.upstreams);
    tables::waits_in_place(html, &overview.status.waits_in_place);
    html.raw("</main><footer><nav aria-label=\"Other pages\">");
    for path in ["/metrics", "/api/status", "/livez", "/readyz"] {
        html.raw("<a href=\"")
            .text(path)
            .raw("\">")
            .text(path)
            .raw("</a> ");
    }
    html.raw("</nav></footer>");
    html.raw(
        "<dialog id=\"stack\" aria-labelledby=\"stack-title\"><div id=\"stack-told\" aria-live=\"polite\"></div>\
         <p class=\"buttons\"><button type=\"button\" id=\"stack-again\">Ask again</button>\
         <button type=\"button\" id=\"stack-close\">Close</button></p></dialog>",
    );
}

fn state(html: &mut Markup, overview: &Overview) {
    html.raw("<p class=\"state\">");
    match &overview.not_ready_because {
        None => html.raw("<strong class=\"good\">\u{2713} ready</strong>"),
        Some(why) => html
            .raw("<strong class=\"bad\">\u{2715} not ready: ")
            .text(why)
            .raw("</strong>"),
    };
    html.raw(" <span>layby ")
        .text(overview.version)
        .raw("</span> <span>up ");
    html.text(Seconds(overview.uptime_seconds))
        .raw("</span></p>");
}

fn tiles(html: &mut Markup, overview: &Overview) {
    let status = &overview.status;
    let history = &overview.history;
    let slots = &status.slots;
    let last = |values: &[f64]| values.last().copied().unwrap_or_default();
    let last_time = |values: &[Option<f64>]| {
        let time = values.last().copied().flatten();
        time.map_or_else(|| "\u{2013}".to_owned(), |time| Seconds(time).to_string())
    };
    let errors = last(&history.errors_per_second);
    html.raw("<dl class=\"tiles\">");
    let mut tile = |name: &'static str, value: &dyn std::fmt::Display, more: String, bad: bool| {
        html.raw(if bad {
            "<div class=\"bad\"><dt>"
        } else {
            "<div><dt>"
        });
        html.text(name).raw("</dt><dd>").text(value);
        html.raw(" <small>").text(more).raw("</small></dd></div>");
    };
    let lost = match slots.lost {
        0 => String::new(),
        lost => format!(", {lost} lost"),
    };
    let of = |limit: usize| format!("of {}", Count(limit));
    tile(
        "Slots busy",
        &slots.busy,
        format!("of {}{lost}", slots.count),
        slots.lost > 0,
    );
    tile(
        "Queue",
        &Count(status.queue.length),
        of(status.queue.limit),
        false,
    );
    tile(
        "Parked",
        &Count(status.parked.requests),
        of(status.parked.limit),
        false,
    );
    let requests = PerSecond(last(&history.requests_per_second));
    tile("Requests", &requests, String::new(), false);
    tile(
        "Server errors",
        &PerSecond(errors),
        "5xx".to_owned(),
        errors > 0.0,
    );
    let p95 = format!("p95 {}", last_time(&history.p95_seconds));
    tile("Median time", &last_time(&history.p50_seconds), p95, false);
    html.raw("</dl>");
}

fn plots(html: &mut Markup, history: &History) {
    let some = |values: &[f64]| -> Vec<Option<f64>> { values.iter().copied().map(Some).collect() };
    let counts =
        |values: &[usize]| -> Vec<Option<f64>> { values.iter().map(|n| Some(*n as f64)).collect() };
    let (requests, errors) = (
        some(&history.requests_per_second),
        some(&history.errors_per_second),
    );
    let (parked, queued) = (counts(&history.parked), counts(&history.queued));
    let seconds = |value: f64| Seconds(value).to_string();
    let rate = |value: f64| PerSecond(value).to_string();
    let count = |value: f64| Count(value as usize).to_string();
    let line = |class, name, values| Line {
        class,
        name,
        values,
    };
    html.raw("<section aria-labelledby=\"plots\"><h2 id=\"plots\">The last five minutes</h2><div class=\"plots\">");
    Plot {
        title: "Requests per second",
        summary: summary("Requests per second", &requests, &rate),
        lines: &[
            line("first", "all", &requests),
            line("alarm", "5xx", &errors),
        ],
        figure: &rate,
    }
    .draw(html);
    let time = "Time until the answer begins";
    Plot {
        title: time,
        summary: format!(
            "{}. {}",
            summary(
                "Median time until the answer begins",
                &history.p50_seconds,
                &seconds
            ),
            summary("95th percentile", &history.p95_seconds, &seconds)
        ),
        lines: &[
            line("first", "p50", &history.p50_seconds),
            line("second", "p95", &history.p95_seconds),
            line("third", "p99", &history.p99_seconds),
        ],
        figure: &seconds,
    }
    .draw(html);
    Plot {
        title: "Requests that wait",
        summary: format!(
            "{}. {}",
            summary("Parked requests", &parked, &count),
            summary("Requests in the queue", &queued, &count)
        ),
        lines: &[
            line("first", "parked", &parked),
            line("second", "queue", &queued),
        ],
        figure: &count,
    }
    .draw(html);
    html.raw("</div></section>");
}

/// A plot in words.
fn summary(what: &str, values: &[Option<f64>], figure: &dyn Fn(f64) -> String) -> String {
    let known = || values.iter().flatten().copied();
    let Some(last) = known().next_back() else {
        return format!("{what}: nothing yet");
    };
    let (least, most) = known().fold((last, last), |(least, most), value| {
        (value.min(least), value.max(most))
    });
    format!(
        "{what} over the last five minutes: now {}, between {} and {}",
        figure(last),
        figure(least),
        figure(most)
    )
}
