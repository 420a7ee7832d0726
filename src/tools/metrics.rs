//! A gateway's metrics, read from outside: Prometheus' text format.

use std::io;
use std::net::SocketAddr;

use super::ask::{ask, not_ours};

/// What the listener had to say at one moment.
#[derive(Debug, Clone, Default)]
pub struct Readings(Vec<(String, f64)>);

impl Readings {
    /// Asks the admin listener at this address.
    ///
    /// # Errors
    /// When nobody answers there, or somebody else.
    pub fn take(admin: SocketAddr) -> io::Result<Self> {
        let text = ask(admin, "/metrics")?;
        if !text.contains("layby_build_info") {
            return Err(not_ours());
        }
        Ok(Self::parse(&text))
    }

    /// Whatever is no series is left out.
    pub fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| !line.starts_with('#'));
        let values = series.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(values.collect())
    }

    /// The sum of all series of this name.
    pub fn of(&self, name: &str) -> f64 {
        self.sum(|series| series.split('{').next() == Some(name))
    }

    /// The series of this name with this label.
    pub fn with(&self, name: &str, label: &str, value: &str) -> f64 {
        let labelled = format!("{label}=\"{value}\"");
        self.sum(|series| {
            series.split_once('{').is_some_and(|(found, labels)| {
                found == name
                    && labels
                        .trim_end_matches('}')
                        .split(',')
                        .any(|it| it == labelled)
            })
        })
    }

    fn sum(&self, is: impl Fn(&str) -> bool) -> f64 {
        let found = self.0.iter().filter(|(series, _)| is(series));
        found.map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_name_and_label() {
        let readings = Readings::parse(
            "# HELP layby_slots Slots\n# TYPE layby_slots gauge\n\
             layby_slots{state=\"busy\"} 3\nlayby_slots{state=\"idle\"} 5\n\
             layby_slots_of_another{state=\"busy\"} 70\nlayby_queue_length 2\nnonsense\n",
        );
        assert_eq!(readings.of("layby_slots"), 8.0);
        assert_eq!(readings.with("layby_slots", "state", "busy"), 3.0);
        assert_eq!(readings.with("layby_slots", "state", "bus"), 0.0);
        assert_eq!(readings.of("layby_queue_length"), 2.0);
        assert_eq!(readings.of("layby"), 0.0);
    }
}
