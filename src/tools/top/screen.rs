//! How a view looks on a screen of any size.
//!
//! What does not fit is left out from below; on a screen of a few lines the first lines are still right.
//! Colours only underline what the words say, so nothing is lost without them (`NO_COLOR`).

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Sparkline, Table};

use super::plain::Last;
use super::status::{Slot, Slow, Status};
use super::view::{List, View};

/// Rows of a plot, with its frame.
const PLOT: u16 = 5;

/// Rows of a frame.
const FRAME: u16 = 2;

/// Below this the plots would take the place of the slots.
const ROOM_FOR_PLOTS: u16 = 18;

/// Below this there is one column instead of two.
const ROOM_FOR_SIDES: u16 = 90;

/// What a waterfall is drawn with: a letter says more than a colour.
const STAGES: [(&str, char); 6] = [
    ("body", 'b'),
    ("queue", 'q'),
    ("run", 'r'),
    ("park", 'p'),
    ("resume", 's'),
    ("answer", 'a'),
];

/// Letters of a waterfall.
const WATERFALL: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    colours: bool,
}

impl Look {
    /// As <https://no-color.org> has it: set, and not empty.
    pub fn from_env() -> Self {
        let set = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: !set }
    }

    #[cfg(test)]
    pub fn new(colours: bool) -> Self {
        Self { colours }
    }

    fn colour(self, colour: Color) -> Style {
        match self.colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    fn bad(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn faint(self) -> Style {
        self.colour(Color::DarkGray)
    }
}

pub fn draw(frame: &mut Frame<'_>, view: &mut View, look: Look, now: Instant) {
    let area = frame.area();
    let status = view.reading.as_ref().map(|reading| &reading.status);
    let plotted = status.is_some_and(|status| !status.history.requests_per_second.is_empty());
    let plots = match plotted && area.height >= ROOM_FOR_PLOTS {
        true => PLOT,
        false => 0,
    };
    let slow = match &view.reading {
        Some(reading) if !reading.status.slow_requests.is_empty() => {
            let wanted = reading.status.slow_requests.len() as u16 + FRAME;
            let most = area.height.saturating_sub(plots + 3) / 3;
            // A frame around nothing says nothing.
            if most > FRAME { wanted.min(most) } else { 0 }
        }
        _ => 0,
    };
    let [head, levels, plots, middle, slowest, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(plots),
        Constraint::Min(0),
        Constraint::Length(slow),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(title(view, look, now)), head);
    frame.render_widget(keys(view, look), foot);
    let Some(reading) = view.reading.take() else {
        let waiting = format!("asking {} …", view.admin);
        frame.render_widget(Paragraph::new(waiting).style(look.faint()), levels);
        return;
    };
    let status = &reading.status;
    frame.render_widget(Paragraph::new(level_lines(view, status, look)), levels);
    plot(frame, plots, status, look);
    let sides = area.width >= ROOM_FOR_SIDES;
    let [main, side] = match sides {
        true => Layout::horizontal([Constraint::Fill(5), Constraint::Fill(3)]).areas(middle),
        false => [middle, Rect::default()],
    };
    draw_slots(frame, main, view, status, look);
    if sides {
        draw_side(frame, side, status, look);
    }
    if slow > 0 {
        draw_slow(frame, slowest, view, status, look);
    }
    view.reading = Some(reading);
}

fn title(view: &View, look: Look, now: Instant) -> Line<'static> {
    let mut line = vec![Span::styled(
        "layby ",
        Style::new().add_modifier(Modifier::BOLD),
    )];
    if let Some(reading) = &view.reading {
        let status = &reading.status;
        line.push(Span::raw(format!(
            "{} at {}, up {}  ",
            status.version.as_str(),
            view.admin,
            since(status.uptime_seconds)
        )));
        line.push(match (&status.not_ready_because, status.ready) {
            (_, true) => Span::styled("ready", look.colour(Color::Green)),
            (Some(why), false) => Span::styled(why.as_str().to_owned(), look.bad()),
            (None, false) => Span::styled("not ready", look.bad()),
        });
    }
    if let Some((why, since)) = &view.lost {
        let gone = now.saturating_duration_since(*since).as_secs_f64();
        let text = format!("  no connection for {}: {why}", self::since(gone));
        line.push(Span::styled(text, look.bad()));
    } else if let Some(age) = view.silent(now) {
        let text = format!("  no answer for {}", since(age.as_secs_f64()));
        line.push(Span::styled(text, look.bad()));
    }
    if view.paused {
        let text = "  held, p goes on";
        line.push(Span::styled(
            text,
            Style::new().add_modifier(Modifier::REVERSED),
        ));
    }
    Line::from(line)
}

fn keys(view: &View, look: Look) -> Paragraph<'static> {
    let list = match view.list {
        List::Slots => "slots",
        List::Slow => "slow requests",
    };
    let sort = view.sort.as_str();
    Paragraph::new(format!(
        "q quit   s sort by ({sort})   arrows scroll ({list})   tab other list   p hold   r refresh"
    ))
    .style(look.faint())
}

fn level_lines(view: &View, status: &Status, look: Look) -> Vec<Line<'static>> {
    let (slots, queue, parked) = (&status.slots, &status.queue, &status.parked);
    let full = |used: u64, of: u64| match (used, of) {
        (_, 0) => Style::new(),
        _ if used >= of => look.bad(),
        _ if 2 * used >= of => look.colour(Color::Yellow),
        _ => look.colour(Color::Green),
    };
    let bar = |used: u64, of: u64| {
        const WIDTH: u64 = 10;
        let filled = if of == 0 {
            0
        } else {
            (used * WIDTH).div_ceil(of).min(WIDTH)
        };
        let (filled, left) = (filled as usize, (WIDTH - filled) as usize);
        Span::styled(
            format!("{}{}", "█".repeat(filled), "░".repeat(left)),
            full(used, of),
        )
    };
    let (busy, count) = (u64::from(slots.busy + slots.lost), u64::from(slots.count));
    let mut first = vec![
        Span::raw("slots "),
        bar(busy, count),
        Span::raw(format!(" {} of {count} busy", slots.busy)),
    ];
    if slots.lost > 0 {
        let text = format!(", {} lost", slots.lost);
        first.push(Span::styled(text, look.bad()));
    }
    first.extend([
        Span::raw("   queue "),
        bar(queue.length, queue.limit),
        Span::raw(format!(" {} of {}", queue.length, queue.limit)),
        Span::raw("   parked "),
        bar(parked.requests, parked.limit),
        Span::raw(format!(" {} of {}", parked.requests, parked.limit)),
    ]);
    let rates = &view.rates;
    let mut second = vec![Span::raw(format!("requests {:.1}/s", rates.requests))];
    if let Some(last) = Last::of(&status.history) {
        let latency = |name, value: Option<f64>| {
            Span::raw(format!(
                "   {name} {}",
                value.map_or("-".to_owned(), seconds)
            ))
        };
        let errors = format!("   failing {:.1}/s", last.errors);
        second.push(Span::styled(errors, worse(last.errors, look)));
        second.extend([
            latency("p50", last.p50),
            latency("p95", last.p95),
            latency("p99", last.p99),
        ]);
    }
    let shed = format!("   shed {:.1}/s", rates.shed);
    second.push(Span::styled(shed, worse(rates.shed, look)));
    second.push(Span::raw(format!("   fetches {:.1}/s", rates.fetches)));
    let failed = format!(", failing {:.1}/s", rates.failed);
    second.push(Span::styled(failed, worse(rates.failed, look)));
    vec![Line::from(first), Line::from(second)]
}

fn worse(rate: f64, look: Look) -> Style {
    if rate > 0.0 { look.bad() } else { Style::new() }
}

/// Throughput and latency of the last minutes.
fn plot(frame: &mut Frame<'_>, area: Rect, status: &Status, look: Look) {
    if area.height < PLOT {
        return;
    }
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    let history = &status.history;
    let requests = history.requests_per_second.iter().map(|rate| Some(*rate));
    let latency = history.p95_seconds.iter().copied();
    draw_plot(
        frame,
        left,
        "requests/s",
        requests,
        look.colour(Color::Cyan),
        |rate| format!("{rate:.0}"),
    );
    draw_plot(
        frame,
        right,
        "p95",
        latency,
        look.colour(Color::Magenta),
        seconds,
    );
}

fn draw_plot(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &str,
    samples: impl DoubleEndedIterator<Item = Option<f64>>,
    style: Style,
    shown: impl Fn(f64) -> String,
) {
    // A sparkline has whole numbers.
    const FINE: f64 = 1e6;
    let width = usize::from(area.width.saturating_sub(2));
    let mut last: Vec<Option<f64>> = samples.rev().take(width).collect();
    last.reverse();
    let most = last.iter().flatten().copied().fold(0.0, f64::max);
    let block = Block::new()
        .borders(Borders::ALL)
        .title(match last.is_empty() {
            true => name.to_owned(),
            false => format!("{name}, at most {}", shown(most)),
        });
    let data = last
        .iter()
        .map(|sample| sample.map(|value| (value * FINE) as u64));
    // The newest stands at the right edge.
    let inner = block.inner(area);
    let bars = Rect {
        x: inner.x + inner.width.saturating_sub(last.len() as u16),
        width: inner.width.min(last.len() as u16),
        ..inner
    };
    frame.render_widget(block, area);
    let sparkline = Sparkline::default()
        .data(data.collect::<Vec<_>>())
        .style(style);
    frame.render_widget(sparkline, bars);
}

fn draw_slots(frame: &mut Frame<'_>, area: Rect, view: &mut View, status: &Status, look: Look) {
    let slots = view.sort.slots(status);
    let seen = usize::from(area.height.saturating_sub(3));
    view.slots_down = view.slots_down.min(slots.len().saturating_sub(seen));
    let rows = slots.iter().skip(view.slots_down).take(seen.max(1));
    let rows = rows.map(|slot| slot_row(slot, look));
    let widths = [
        Constraint::Length(5),
        Constraint::Length(4),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(14),
        Constraint::Fill(1),
    ];
    let header = Row::new(["slot", "proc", "state", "for", "phase", "request"]);
    let title = framed(
        "slots",
        view.slots_down,
        seen,
        slots.len(),
        view.list == List::Slots,
    );
    let table = Table::new(rows, widths)
        .header(header.style(look.faint()))
        .block(title);
    frame.render_widget(table, area);
}

fn slot_row(slot: &Slot, look: Look) -> Row<'static> {
    let process = slot
        .process
        .map_or("-".to_owned(), |process| process.to_string());
    let state = slot.state.as_str();
    let style = match state {
        "lost" => look.bad(),
        "idle" => look.faint(),
        _ => Style::new(),
    };
    let (time, phase, request) = match &slot.job {
        Some(job) => (
            seconds(job.seconds),
            job.phase.as_str().replace('_', " "),
            format!("{} {}", job.method.as_str(), job.path.as_str()),
        ),
        None => Default::default(),
    };
    Row::new([
        slot.slot.to_string(),
        process,
        state.to_owned(),
        time,
        phase,
        request,
    ])
    .style(style)
}

/// What is waited for, and where slots are held by it.
fn draw_side(frame: &mut Frame<'_>, area: Rect, status: &Status, look: Look) {
    let mut lines: Vec<Line<'static>> = Vec::new();
    let heading = |text: &str| Line::styled(text.to_owned(), look.faint());
    if !status.parked.waits_for.is_empty() {
        lines.push(heading("parked  longest  for"));
        for wait in &status.parked.waits_for {
            let what = wait.origin.as_ref().unwrap_or(&wait.what).as_str();
            let longest = seconds(wait.longest_seconds);
            lines.push(Line::raw(format!(
                "{:>6}  {longest:<7}  {what}",
                wait.requests
            )));
        }
    }
    if !status.upstreams.is_empty() {
        lines.push(heading("busy    queued   upstream"));
        for upstream in &status.upstreams {
            let name = upstream.upstream.as_str();
            let style = if upstream.up {
                Style::new()
            } else {
                look.bad()
            };
            let down = if upstream.up { "" } else { ", down" };
            let text = format!("{:>6}  {:<7}  {name}{down}", upstream.busy, upstream.queued);
            lines.push(Line::styled(text, style));
        }
    }
    if !status.processes.is_empty() {
        lines.push(heading("proc    pid      state"));
        for process in &status.processes {
            let (state, mode) = (process.state.as_str(), process.mode.as_str());
            let threads = process.threads;
            lines.push(Line::raw(format!(
                "{:>6}  {:<7}  {state}, {mode}, {threads} threads",
                process.process, process.pid
            )));
        }
    }
    if !status.waits_in_place.is_empty() {
        lines.push(heading("held    slots held in place, because of"));
        for wait in &status.waits_in_place {
            let (reason, source) = (wait.reason.as_str(), wait.source.as_str());
            lines.push(Line::raw(format!(
                "{:>6}  {reason} at {source}",
                wait.count
            )));
        }
    }
    let block = Block::new().borders(Borders::ALL).title("waiting");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_slow(frame: &mut Frame<'_>, area: Rect, view: &mut View, status: &Status, look: Look) {
    let slow = &status.slow_requests;
    let seen = usize::from(area.height.saturating_sub(2));
    view.slow_down = view.slow_down.min(slow.len().saturating_sub(seen));
    let rows = slow.iter().skip(view.slow_down).take(seen);
    let rows = rows.map(|slow| {
        let style = if slow.status >= 500 {
            look.bad()
        } else {
            Style::new()
        };
        let why = slow
            .why
            .as_ref()
            .map_or(String::new(), |why| format!(", {}", why.as_str()));
        Row::new([
            seconds(slow.seconds),
            format!("{} ago", since(slow.ended_seconds_ago)),
            slow.status.to_string(),
            waterfall(slow),
            format!("{} {}{why}", slow.method.as_str(), slow.path.as_str()),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(4),
        Constraint::Length(WATERFALL as u16),
        Constraint::Fill(1),
    ];
    let name = "slowest: b body, q queue, r run, p park, s resume queue, a answer";
    let title = framed(
        name,
        view.slow_down,
        seen,
        slow.len(),
        view.list == List::Slow,
    );
    frame.render_widget(Table::new(rows, widths).block(title), area);
}

fn framed(name: &str, down: usize, seen: usize, all: usize, active: bool) -> Block<'static> {
    let title = match all > seen && seen > 0 {
        true => {
            let last = (down + seen).min(all);
            format!("{name} ({} to {last} of {all})", down + 1)
        }
        false => name.to_owned(),
    };
    let style = match active {
        true => Style::new().add_modifier(Modifier::BOLD),
        false => Style::new(),
    };
    Block::new()
        .borders(Borders::ALL)
        .title(Span::styled(title, style))
}

/// Where a request's time went, to scale: `qqrrrrppppppppppsr`. Whatever took time at all has a letter.
fn waterfall(slow: &Slow) -> String {
    let whole: f64 = slow.phases.iter().map(|phase| phase.seconds).sum();
    if whole <= 0.0 {
        return String::new();
    }
    let mut drawn = String::new();
    let (mut until, mut letters) = (0.0, 0);
    for phase in &slow.phases {
        until += phase.seconds;
        let end = (until / whole * WATERFALL as f64).round() as usize;
        let known = STAGES
            .iter()
            .find(|(name, _)| *name == phase.phase.as_str());
        let letter = known.map_or('?', |(_, letter)| *letter);
        let wide = end
            .saturating_sub(letters)
            .max(usize::from(phase.seconds >= 0.001));
        let wide = wide.min(WATERFALL - letters);
        drawn.extend(std::iter::repeat_n(letter, wide));
        letters += wide;
    }
    drawn
}

/// Where a request's time went, in words.
pub fn phases(slow: &Slow) -> String {
    let told = slow.phases.iter().filter(|phase| phase.seconds >= 0.0005);
    let told: Vec<String> = told
        .map(|phase| format!("{} {}", phase.phase.as_str(), seconds(phase.seconds)))
        .collect();
    told.join(", ")
}

/// A time that is compared with others.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.0995 => format!("{:.1}ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0}ms", s * 1e3),
        s if s < 99.95 => format!("{s:.1}s"),
        s => since(s),
    }
}

/// A time that goes on.
pub fn since(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{minutes}m{:02}s", whole % 60),
        3600..86_400 => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests;
