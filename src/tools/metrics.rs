//! Asking a gateway's admin listener from outside: one request, and Prometheus' text format.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The admin listener answers while every slot is busy; who is silent for so long is not one.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the listener had to say at one moment.
#[derive(Debug, Clone, Default)]
pub struct Readings(Vec<(String, f64)>);

impl Readings {
    /// Asks the admin listener at this address.
    ///
    /// # Errors
    /// When nobody answers there, or somebody else.
    pub fn take(admin: SocketAddr) -> io::Result<Self> {
        let (status, text) = ask(admin, "/metrics")?;
        if status != 200 || !text.contains("layby_build_info") {
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

/// Status and body of what the listener at this address has at a path.
///
/// # Errors
/// When nobody answers there, or somebody who does not speak HTTP.
pub fn ask(admin: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {admin}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) = answer.split_once("\r\n\r\n").ok_or_else(not_ours)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.ok_or_else(not_ours)?, text.to_owned()))
}

fn not_ours() -> io::Error {
    io::Error::other("something answers there, but not layby's admin listener")
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
