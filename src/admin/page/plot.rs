//! Plots of the last minutes, and bars of where a request's time went, as inline SVG.
//!
//! Pure: samples in, shapes out. The shapes are stretched to the width of the page; whatever has to be read
//! stands beside them as text. Colours come from the style sheet, and nothing depends on them alone:
//! lines differ in their dashes, and the parts of a bar are told in words too.

use std::fmt::Display;

use super::figures::Seconds;
use super::markup::Markup;
use crate::admin::status::Phase;

/// The inside of a plot, in units of its own.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 100.0;

/// A whole row of samples. Fewer stand at its right end: there, it is now.
const SAMPLES: usize = 150;

/// One line of a plot.
pub struct Line<'s> {
    /// As the style sheet knows it.
    pub class: &'static str,
    pub name: &'static str,
    pub values: &'s [Option<f64>],
}

pub struct Plot<'s> {
    pub title: &'static str,
    pub lines: &'s [Line<'s>],
    /// The number at the top of the axis, with its unit.
    pub figure: &'s dyn Fn(f64) -> String,
    /// For those who do not see it.
    pub summary: String,
}

impl Plot<'_> {
    pub fn draw(&self, html: &mut Markup) {
        let values = self.lines.iter().flat_map(|line| line.values);
        let highest = values.flatten().copied().fold(0.0, f64::max);
        let top = round_above(highest);
        html.raw("<figure class=\"plot\"><figcaption>")
            .text(self.title);
        html.raw("<span class=\"legend\">");
        for line in self.lines {
            html.raw("<span class=\"key ").raw(line.class).raw("\">");
            html.raw("<svg viewBox=\"0 0 24 8\" aria-hidden=\"true\"><path d=\"M0 4H24\"/></svg>");
            html.text(line.name).raw("</span>");
        }
        html.raw("</span></figcaption><div class=\"axes\"><span class=\"top\">");
        html.text((self.figure)(top)).raw("</span>");
        html.raw(
            "<svg viewBox=\"0 0 600 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"",
        );
        html.text(&self.summary);
        html.raw("\"><path class=\"grid\" d=\"M0 .5H600M0 50H600M0 99.5H600\"/>");
        for line in self.lines {
            html.raw("<path class=\"line ")
                .raw(line.class)
                .raw("\" d=\"");
            path(html, line.values, top);
            html.raw("\"/>");
        }
        html.raw("</svg></div><div class=\"times\"><span>5 min ago</span><span>now</span></div></figure>");
    }
}

/// A line through the values, interrupted where there is none.
fn path(html: &mut Markup, values: &[Option<f64>], top: f64) {
    let first = SAMPLES.saturating_sub(values.len());
    let mut drawing = false;
    for (place, value) in values.iter().enumerate() {
        let Some(value) = value else {
            drawing = false;
            continue;
        };
        let x = (first + place) as f64 * WIDTH / (SAMPLES - 1) as f64;
        let y = HEIGHT - 1.0 - value / top * (HEIGHT - 2.0);
        html.raw(if drawing { "L" } else { "M" });
        html.text(format_args!("{x:.1} {y:.1}"));
        // A value alone is a point, which a line of no length is with round ends.
        if !drawing {
            html.text(format_args!("L{x:.1} {y:.1}"));
        }
        drawing = true;
    }
}

/// 1, 2 or 5 times a power of ten, not below the value.
fn round_above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.iter().find(|step| *step * power >= value * 0.999_999);
    step.unwrap_or(&10.0) * power
}

/// The phases of one request on an axis that is so many seconds long; what lies beyond is cut off.
pub fn waterfall(html: &mut Markup, phases: &[Phase], axis: f64) {
    html.raw("<svg class=\"waterfall\" viewBox=\"0 0 1000 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\">");
    for phase in phases {
        let begins = (phase.begins / axis).min(1.0) * 1000.0;
        let ends = ((phase.begins + phase.seconds) / axis).min(1.0) * 1000.0;
        if ends - begins <= 0.0 {
            continue;
        }
        html.raw("<rect class=\"phase-")
            .text(phase.phase)
            .raw("\" y=\"0\" height=\"10\"");
        attribute(html, " x=\"", format_args!("{begins:.1}"));
        // What is too short to be seen is seen all the same.
        attribute(
            html,
            " width=\"",
            format_args!("{:.1}", (ends - begins).max(2.0)),
        );
        html.raw("><title>").text(phase.phase).raw(", ");
        html.text(Seconds(phase.seconds)).raw("</title></rect>");
    }
    html.raw("</svg>");
}

fn attribute(html: &mut Markup, name: &'static str, value: impl Display) {
    html.raw(name).text(value).raw("\"");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_figures() {
        for (value, top) in [
            (0.0, 1.0),
            (0.03, 0.05),
            (1.0, 1.0),
            (1.01, 2.0),
            (342.0, 500.0),
            (600.0, 1000.0),
        ] {
            assert!((round_above(value) - top).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn a_line_has_gaps_where_nothing_ended_and_ends_at_now() {
        let mut html = Markup::default();
        path(&mut html, &[Some(0.0), Some(2.0), None, Some(1.0)], 2.0);
        assert_eq!(
            html.into_string(),
            "M587.9 99.0L587.9 99.0L591.9 1.0M600.0 50.0L600.0 50.0"
        );
    }

    #[test]
    fn a_waterfall_ends_with_its_axis() {
        let mut html = Markup::default();
        let phase = |phase, begins, seconds| Phase {
            phase,
            begins,
            seconds,
        };
        let phases = [
            phase("body", 0.0, 0.0),
            phase("run", 0.0, 0.5),
            phase("park", 0.5, 9.0),
            phase("answer", 9.5, 1.0),
        ];
        waterfall(&mut html, &phases, 1.0);
        let svg = html.into_string();
        assert!(
            svg.contains(r#"class="phase-run" y="0" height="10" x="0.0" width="500.0""#),
            "{svg}"
        );
        assert!(svg.contains(r#"class="phase-park" y="0" height="10" x="500.0" width="500.0""#));
        assert!(!svg.contains("answer") && !svg.contains("body"));
    }
}
