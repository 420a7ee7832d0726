//! Figures as people read them: with three digits or so, and their unit.

use std::fmt;

/// A time.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub f64);

/// So many per second.
#[derive(Debug, Clone, Copy)]
pub struct PerSecond(pub f64);

/// A count, in groups of three digits.
#[derive(Debug, Clone, Copy)]
pub struct Count(pub usize);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        match seconds {
            _ if seconds < 0.000_05 => write!(f, "0 ms"),
            _ if seconds < 0.009_95 => write!(f, "{:.1} ms", seconds * 1e3),
            _ if seconds < 0.9995 => write!(f, "{:.0} ms", seconds * 1e3),
            _ if seconds < 9.995 => write!(f, "{seconds:.2} s"),
            _ if seconds < 99.95 => write!(f, "{seconds:.1} s"),
            _ if seconds < 600.0 => write!(f, "{seconds:.0} s"),
            _ if seconds < 7_200.0 => write!(f, "{:.0} min", seconds / 60.0),
            _ if seconds < 172_800.0 => write!(f, "{:.1} h", seconds / 3_600.0),
            _ => write!(f, "{:.1} days", seconds / 86_400.0),
        }
    }
}

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.0;
        match rate {
            _ if rate <= 0.0 => write!(f, "0 /s"),
            _ if rate < 9.95 => write!(f, "{rate:.1} /s"),
            _ => write!(f, "{} /s", Count(rate.round() as usize)),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                // A thin space that does not break.
                f.write_str("\u{202f}")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_a_unit_and_no_more_digits_than_one_can_read() {
        for (seconds, shown) in [
            (0.0, "0 ms"),
            (0.00043, "0.4 ms"),
            (0.0123, "12 ms"),
            (0.4999, "500 ms"),
            (0.9999, "1.00 s"),
            (12.34, "12.3 s"),
            (123.4, "123 s"),
            (3_000.0, "50 min"),
            (10_800.0, "3.0 h"),
            (260_000.0, "3.0 days"),
        ] {
            assert_eq!(Seconds(seconds).to_string(), shown);
        }
        for (rate, shown) in [
            (0.0, "0 /s"),
            (0.5, "0.5 /s"),
            (9.96, "10 /s"),
            (1234.4, "1\u{202f}234 /s"),
        ] {
            assert_eq!(PerSecond(rate).to_string(), shown);
        }
        assert_eq!(Count(0).to_string(), "0");
        assert_eq!(Count(999).to_string(), "999");
        assert_eq!(Count(1_234_567).to_string(), "1\u{202f}234\u{202f}567");
    }
}
