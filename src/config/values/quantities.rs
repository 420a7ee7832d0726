//! Numbers, sizes and durations.

use std::time::Duration;

use super::{Kind, Problem, Value};
use crate::config::Count;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS_OF_SIZE: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// In milliseconds.
const UNITS_OF_TIME: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Value for u16 {
    fn is(kind: Kind) -> bool {
        kind == Kind::Number
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        number(text)
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn measure(&self) -> Option<u64> {
        Some(u64::from(*self))
    }
}

impl Value for usize {
    fn is(kind: Kind) -> bool {
        kind == Kind::Number
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        number(text)
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn measure(&self) -> Option<u64> {
        Some(*self as u64)
    }
}

impl Value for Count {
    fn is(kind: Kind) -> bool {
        kind == Kind::Count
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "auto" {
            return Ok(Count::Auto);
        }
        if text.eq_ignore_ascii_case("auto") {
            return Err(Problem::new("is misspelt").write("auto"));
        }
        number(text).map(Count::Fixed)
    }

    fn show(&self) -> String {
        match self {
            Count::Fixed(count) => count.to_string(),
            Count::Auto => "auto".to_owned(),
        }
    }

    fn measure(&self) -> Option<u64> {
        match self {
            Count::Fixed(count) => Some(u64::from(*count)),
            Count::Auto => None,
        }
    }
}

fn number<T: TryFrom<u64>>(text: &str) -> Result<T, Problem> {
    let (digits, rest) = leading_digits(text);
    if digits.is_empty() || !rest.is_empty() {
        let unsigned = Problem::new("is not a whole number");
        return Err(match text.replace('_', "") {
            plain if plain != text && plain.parse::<u64>().is_ok() => unsigned.write(plain),
            _ => unsigned,
        });
    }
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| Problem::new("is too large"))
}

impl Value for Size {
    fn is(kind: Kind) -> bool {
        kind == Kind::Size
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let (digits, unit) = leading_digits(text);
        let factor = match unit {
            "" => Some(1),
            _ => factor(&UNITS_OF_SIZE, unit),
        };
        let Some(factor) = factor.filter(|_| !digits.is_empty()) else {
            return Err(meant_size(text));
        };
        let number: Option<u64> = digits.parse().ok();
        number
            .and_then(|number| number.checked_mul(factor))
            .map(Size)
            .ok_or_else(|| Problem::new("is too large"))
    }

    fn show(&self) -> String {
        match UNITS_OF_SIZE
            .iter()
            .find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes))
        {
            Some((unit, bytes)) => format!("{}{unit}", self.0 / bytes),
            None => self.0.to_string(),
        }
    }

    fn measure(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// Sizes by other habits: `100MB`, `100 mib`, `100m`.
fn meant_size(text: &str) -> Problem {
    let (digits, unit) = leading_digits(text);
    let unit = unit.trim().to_ascii_lowercase();
    let meant = UNITS_OF_SIZE
        .iter()
        .map(|(known, _)| *known)
        .find(|known| {
            let first = known[..1].to_ascii_lowercase();
            [&first, &format!("{first}b"), &known.to_ascii_lowercase()].contains(&&unit)
        })
        .or((unit == "b").then_some(""));
    match meant {
        Some(meant) if !digits.is_empty() => {
            Problem::new("is not a size").write(format!("{digits}{meant}"))
        }
        _ => Problem::new("is not a size: a whole number with KiB, MiB, GiB, TiB, or of bytes"),
    }
}

impl Value for Duration {
    fn is(kind: Kind) -> bool {
        kind == Kind::Duration
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let (digits, unit) = leading_digits(text);
        let Some(factor) = factor(&UNITS_OF_TIME, unit).filter(|_| !digits.is_empty()) else {
            return Err(meant_duration(text));
        };
        let number: Option<u64> = digits.parse().ok();
        number
            .and_then(|number| number.checked_mul(factor))
            .map(Duration::from_millis)
            .ok_or_else(|| Problem::new("is too long"))
    }

    fn show(&self) -> String {
        // A duration in a valid configuration came from milliseconds in 64 bits.
        let all = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        // 60s rather than 1m: a single unit says less than what people write.
        let fits = |(_, millis): &&(&str, u64)| {
            all.is_multiple_of(*millis) && (all >= 2 * millis || *millis <= 1000)
        };
        match UNITS_OF_TIME.iter().find(fits) {
            Some((unit, millis)) if all != 0 => format!("{}{unit}", all / millis),
            _ => "0s".to_owned(),
        }
    }

    fn measure(&self) -> Option<u64> {
        u64::try_from(self.as_millis()).ok()
    }
}

/// Durations by other habits: `5`, `1.5s`, `5 sec`, `2min`.
fn meant_duration(text: &str) -> Problem {
    let unitless = text.parse::<f64>().is_ok();
    let problem = Problem::new(if unitless {
        "has no unit"
    } else {
        "is not a duration: a whole number with ms, s, m or h"
    });
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (amount, unit) = text.split_at(split);
    let millis_per_unit: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "ms" | "msec" | "millis" | "milliseconds" => 1.0,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1000.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000.0,
        "h" | "hour" | "hours" => 3_600_000.0,
        _ => return problem,
    };
    match amount.parse::<f64>() {
        // Longer than any range: no suggestion, rather than a rounded one.
        Ok(amount) if amount * millis_per_unit < 1e12 => {
            let millis = (amount * millis_per_unit).round() as u64;
            problem.write(Duration::from_millis(millis).show())
        }
        _ => problem,
    }
}

fn leading_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    let found = units.iter().find(|(name, _)| *name == unit)?;
    Some(found.1)
}
