//! The tables of the page. Each has a caption and headings, and is all that there is to know without looking at
//! a colour or a shape.

use super::figures::{Count, Seconds};
use super::markup::Markup;
use super::plot;
use crate::admin::pages::Overview;
use crate::admin::status::{
    Parked, Process, SlotState, SlowRequest, Upstream, WaitsFor, WaitsInPlace,
};

/// What a request is called that has no route of its own.
const NO_ROUTE: &str = "\u{2013}";

/// A table that scrolls in its own box, should the screen be narrow.
fn table(
    html: &mut Markup,
    id: &'static str,
    title: &'static str,
    caption: &'static str,
    headings: &[(&'static str, &'static str)],
    rows: impl FnOnce(&mut Markup),
) {
    html.raw("<section aria-labelledby=\"")
        .raw(id)
        .raw("\"><h2 id=\"")
        .raw(id)
        .raw("\">");
    html.raw(title)
        .raw("</h2><div class=\"scrolls\" role=\"region\" tabindex=\"0\" aria-labelledby=\"");
    html.raw(id)
        .raw("\"><table class=\"of-")
        .raw(id)
        .raw("\"><caption>")
        .raw(caption)
        .raw("</caption><thead><tr>");
    for (class, heading) in headings {
        html.raw("<th scope=\"col\" class=\"")
            .raw(class)
            .raw("\">")
            .raw(heading)
            .raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    rows(html);
    html.raw("</tbody></table></div></section>");
}

fn none(html: &mut Markup, id: &'static str, title: &'static str, text: &'static str) {
    html.raw("<section aria-labelledby=\"")
        .raw(id)
        .raw("\"><h2 id=\"")
        .raw(id)
        .raw("\">");
    html.raw(title)
        .raw("</h2><p class=\"none\">")
        .raw(text)
        .raw("</p></section>");
}

pub fn slots(html: &mut Markup, overview: &Overview) {
    let headings = [
        ("number", "Slot"),
        ("", "State"),
        ("", "Request"),
        ("number", "For"),
        ("", "Phase"),
        ("wide", "Route"),
        ("wide number", "Process"),
        ("", "Stack"),
    ];
    let caption =
        "What each slot runs now. A slot is one worker thread with its database connection.";
    table(html, "slots", "Slots", caption, &headings, |html| {
        for slot in &overview.status.slots.list {
            html.raw("<tr><th scope=\"row\" class=\"number\">")
                .text(slot.slot)
                .raw("</th>");
            html.raw(match slot.state {
                SlotState::Idle => {
                    "<td class=\"idle\"><span aria-hidden=\"true\">\u{25cb}</span> idle</td>"
                }
                SlotState::Busy => {
                    "<td class=\"busy\"><span aria-hidden=\"true\">\u{25cf}</span> busy</td>"
                }
                SlotState::Lost => {
                    "<td class=\"lost\"><span aria-hidden=\"true\">\u{2715}</span> lost</td>"
                }
            });
            match &slot.job {
                Some(job) => {
                    request(html, &job.method, job.path.as_str());
                    html.cell("number", Seconds(job.seconds));
                    html.cell("", in_words(job.phase));
                    html.cell("wide", job.route.as_deref().unwrap_or(NO_ROUTE));
                }
                None => {
                    html.raw(
                        "<td></td><td class=\"number\"></td><td></td><td class=\"wide\"></td>",
                    );
                }
            }
            let process = slot.process.map(|process| process.to_string());
            html.cell("wide number", process.unwrap_or_default());
            // There for every slot, so that it is not gone in the moment when somebody presses it.
            html.raw("<td><a class=\"stack\" href=\"/slots/")
                .text(slot.slot);
            html.raw("/stack\">Stack<span class=\"hidden\"> of slot ")
                .text(slot.slot);
            html.raw("</span></a></td></tr>");
        }
    });
}

/// A phase of a slot's job.
fn in_words(phase: &str) -> &str {
    match phase {
        "run" => "runs",
        "wait_in_place" => "waits in place",
        "answer" => "sends its answer",
        "call" => "runs a call",
        "unwind" => "is being ended",
        other => other,
    }
}

fn request(html: &mut Markup, method: &str, path: &str) {
    html.raw("<td class=\"request\"><span class=\"method\">")
        .text(method);
    html.raw("</span> <span class=\"path\">")
        .text(path)
        .raw("</span></td>");
}

pub fn waits_for(html: &mut Markup, parked: &Parked) {
    let title = "Parked requests";
    if parked.waits_for.is_empty() {
        return none(html, "parked", title, "No request is parked.");
    }
    let headings = [
        ("", "Wait for"),
        ("number", "Requests"),
        ("number", "Longest wait"),
    ];
    let caption = "What parked requests wait for, without a slot. One that waits for several services counts for each.";
    table(html, "parked", title, caption, &headings, |html| {
        for WaitsFor {
            what,
            origin,
            requests,
            longest_seconds,
        } in &parked.waits_for
        {
            html.raw("<tr><th scope=\"row\" class=\"path\">");
            match (what, origin) {
                (_, Some(origin)) if !origin.is_empty() => html.text(origin),
                (&"time", _) => html.raw("time to pass"),
                (&"body", _) => html.raw("their client\u{2019}s body"),
                (&"process", _) => html.raw("their own process"),
                _ => html.raw("a URL without a host"),
            };
            html.raw("</th>").cell("number", Count(*requests));
            html.cell("number", Seconds(*longest_seconds)).raw("</tr>");
        }
    });
}

pub fn slow_requests(html: &mut Markup, slow: &[SlowRequest]) {
    let title = "Slow requests";
    if slow.is_empty() {
        return none(
            html,
            "slow",
            title,
            "No request has ended in the last five minutes.",
        );
    }
    // To where the last of the answers began.
    let begins = |request: &SlowRequest| {
        let answer = request.phases.iter().find(|phase| phase.phase == "answer");
        answer.map_or(request.whole_seconds, |answer| answer.begins)
    };
    let axis = slow.iter().map(begins).fold(0.001, f64::max);
    html.raw("<section aria-labelledby=\"slow\"><h2 id=\"slow\">Slow requests</h2><p class=\"legend\" aria-hidden=\"true\">");
    for phase in ["body", "queue", "run", "park", "resume", "answer"] {
        html.raw("<span class=\"key\"><svg viewBox=\"0 0 10 10\"><rect width=\"10\" height=\"10\" class=\"phase-");
        html.raw(phase).raw("\"/></svg>").raw(phase).raw("</span>");
    }
    html.raw("</p><div class=\"scrolls\" role=\"region\" tabindex=\"0\" aria-labelledby=\"slow\"><table class=\"of-slow\"><caption>");
    html.raw("The slowest requests of the last five minutes, by the time until their answer began, without the time that their client took to send the body. Bars end at ");
    html.text(Seconds(axis)).raw(".</caption><thead><tr>");
    html.raw("<th scope=\"col\">Request</th><th scope=\"col\" class=\"number\">Time</th>\
              <th scope=\"col\" class=\"number\">Status</th><th scope=\"col\">Where its time went</th>\
              <th scope=\"col\" class=\"wide number\">Ended</th></tr></thead><tbody>");
    for each in slow {
        html.raw("<tr>");
        html.raw("<th scope=\"row\" class=\"request\"><span class=\"method\">")
            .text(&each.method);
        html.raw("</span> <span class=\"path\">")
            .text(each.path.as_str())
            .raw("</span>");
        html.raw("<small class=\"id\">").text(&each.request_id);
        if let Some(route) = &each.route {
            html.raw(", route ").text(route);
        }
        html.raw("</small></th>");
        html.cell("number", Seconds(each.seconds));
        html.raw(if each.status >= 500 {
            "<td class=\"number bad\">"
        } else {
            "<td class=\"number\">"
        });
        html.text(each.status);
        if let Some(why) = each.why {
            html.raw("<small>").text(why).raw("</small>");
        }
        html.raw("</td><td class=\"went\">");
        plot::waterfall(html, &each.phases, axis);
        html.raw("<small>");
        spent(html, each);
        html.raw("</small></td>");
        html.cell(
            "wide number",
            format_args!("{} ago", Seconds(each.ended_seconds_ago)),
        );
        html.raw("</tr>");
    }
    html.raw("</tbody></table></div></section>");
}

/// The phases in words, those together that are of one kind.
fn spent(html: &mut Markup, request: &SlowRequest) {
    let mut first = true;
    for kind in ["body", "queue", "run", "park", "resume", "answer"] {
        let phases = request.phases.iter().filter(|phase| phase.phase == kind);
        let seconds: f64 = phases.map(|phase| phase.seconds).sum();
        if seconds < 0.000_05 {
            continue;
        }
        html.raw(if first { "" } else { " \u{b7} " })
            .raw(kind)
            .raw(" ");
        html.text(Seconds(seconds));
        if kind == "park" && request.parks > 1 {
            html.raw(" in ").text(request.parks).raw(" parks");
        }
        first = false;
    }
}

pub fn processes(html: &mut Markup, processes: &[Process]) {
    if processes.is_empty() {
        return;
    }
    let headings = [
        ("number", "Process"),
        ("", "State"),
        ("", "Mode"),
        ("number", "Threads"),
        ("number", "PID"),
    ];
    let caption = "Worker processes that are connected.";
    table(
        html,
        "processes",
        "Worker processes",
        caption,
        &headings,
        |html| {
            for process in processes {
                html.raw("<tr><th scope=\"row\" class=\"number\">")
                    .text(process.process)
                    .raw("</th>");
                html.cell(
                    if process.state == "ready" { "" } else { "lost" },
                    process.state,
                );
                html.cell("", &process.mode).cell("number", process.threads);
                html.cell("number", process.pid).raw("</tr>");
            }
        },
    );
}

pub fn upstreams(html: &mut Markup, upstreams: &[Upstream]) {
    if upstreams.is_empty() {
        return;
    }
    let headings = [
        ("", "Upstream"),
        ("", "State"),
        ("number", "Busy"),
        ("number", "Connections"),
        ("number", "Queue"),
    ];
    let caption = "HTTP servers that requests are passed to.";
    table(html, "upstreams", "Upstreams", caption, &headings, |html| {
        for upstream in upstreams {
            html.raw("<tr><th scope=\"row\" class=\"path\">")
                .text(&upstream.upstream)
                .raw("</th>");
            html.raw(match upstream.up {
                true => "<td>\u{2713} up</td>",
                false => "<td class=\"lost\">\u{2715} down</td>",
            });
            html.cell("number", upstream.busy)
                .cell("number", upstream.connections);
            html.cell("number", upstream.queued).raw("</tr>");
        }
    });
}

pub fn waits_in_place(html: &mut Markup, waits: &[WaitsInPlace]) {
    if waits.is_empty() {
        return;
    }
    let headings = [("", "Line"), ("", "Because of"), ("number", "Times")];
    let caption = "Lines of the application that waited for a service and kept their slot, and why they could not park.";
    table(
        html,
        "in-place",
        "Waits in place",
        caption,
        &headings,
        |html| {
            for WaitsInPlace {
                reason,
                source,
                count,
            } in waits
            {
                html.raw("<tr><th scope=\"row\" class=\"path\">")
                    .text(source)
                    .raw("</th>");
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                html.cell("", reason)
                    .cell("number", Count(count))
                    .raw("</tr>");
            }
        },
    );
}
