//! What `[database] url` says: where the database is, and how TLS is to be used.
//!
//! The URL is the application's, so it is read as libpq would. tokio-postgres reads most
//! of it; the parameters of TLS are taken out first, because it knows only some of them.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::BudgetError;
use super::error::chain;
use super::tls::{Roots, Trust};

/// Where libpq looks for a server's socket if no host is given: on Debian and Red Hat, and
/// as PostgreSQL itself is built.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// A database to connect to.
pub struct Target {
    pub config: Config,
    pub trust: Trust,
    pub server: Server,
}

/// Which database and as whom, for messages: `shop at db.example:5432 as web`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server(String);

/// The parameters that tokio-postgres does not see.
#[derive(Default)]
struct TlsParameters {
    mode: Option<String>,
    root: Option<String>,
}

impl Target {
    pub fn parse(url: &str) -> Result<Self, BudgetError> {
        if !["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            let what = "layby can size slots from PostgreSQL only: it must begin with postgres://";
            return Err(BudgetError::Url(what.to_owned()));
        }
        let (url, tls) = TlsParameters::taken_out(url);
        let parsed: Result<Config, _> = url.parse();
        let mut config = parsed.map_err(|error| BudgetError::Url(chain(&error)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            for folder in SOCKET_FOLDERS {
                config.host_path(folder);
            }
        }
        let (ssl_mode, trust) = tls.decide()?;
        let is_socket = |host: &Host| matches!(host, Host::Unix(_));
        // As in libpq, sslmode says nothing about sockets, even "require".
        let only_sockets =
            config.get_hostaddrs().is_empty() && config.get_hosts().iter().all(is_socket);
        config.ssl_mode(if only_sockets {
            SslMode::Disable
        } else {
            ssl_mode
        });
        let server = Server::of(&config);
        Ok(Self {
            config,
            trust,
            server,
        })
    }
}

impl TlsParameters {
    fn taken_out(url: &str) -> (String, Self) {
        let mut taken = Self::default();
        let Some((base, query)) = url.split_once('?') else {
            return (url.to_owned(), taken);
        };
        let mut rest: Vec<&str> = Vec::new();
        for pair in query.split('&') {
            let decoded = |value| percent_decode_str(value).decode_utf8_lossy().into_owned();
            match pair.split_once('=') {
                Some(("sslmode", value)) => taken.mode = Some(decoded(value)),
                Some(("sslrootcert", value)) => taken.root = Some(decoded(value)),
                _ => rest.push(pair),
            }
        }
        (format!("{base}?{}", rest.join("&")), taken)
    }

    fn decide(self) -> Result<(SslMode, Trust), BudgetError> {
        let roots = match self.root.as_deref() {
            None | Some("system") => Roots::System,
            Some(file) => Roots::File(PathBuf::from(file)),
        };
        match self.mode.as_deref() {
            Some("disable") => Ok((SslMode::Disable, Trust::Anyone)),
            // libpq's "allow" differs from "prefer" only in what it tries first.
            None | Some("allow" | "prefer") => Ok((SslMode::Prefer, Trust::Anyone)),
            // As in libpq, a root certificate makes "require" check against it.
            Some("require") if self.root.is_none() => Ok((SslMode::Require, Trust::Anyone)),
            Some("require" | "verify-ca") => Ok((SslMode::Require, Trust::SignedBy(roots))),
            Some("verify-full") => Ok((SslMode::Require, Trust::Named(roots))),
            Some(_) => Err(BudgetError::Url(
                "sslmode must be disable, allow, prefer, require, verify-ca or verify-full"
                    .to_owned(),
            )),
        }
    }
}

impl Server {
    fn of(config: &Config) -> Self {
        let user = config.get_user();
        let database = config.get_dbname().or(user);
        let ports = config.get_ports();
        let place = |(i, host): (usize, &Host)| {
            let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(folder) => format!("{}:{port}", folder.display()),
            }
        };
        let mut places: Vec<String> = config.get_hosts().iter().enumerate().map(place).collect();
        if places.is_empty() {
            places = config
                .get_hostaddrs()
                .iter()
                .map(ToString::to_string)
                .collect();
        }
        Self(format!(
            "{} at {} as {}",
            database.unwrap_or("default database"),
            places.join(", "),
            user.unwrap_or("the current user")
        ))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Target {
        Target::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"))
    }

    fn refusal(url: &str) -> String {
        match Target::parse(url) {
            Ok(_) => panic!("{url} must be refused"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_server_is_described_without_its_password() {
        for (url, server) in [
            (
                "postgres://web:s3cret@db.example/shop",
                "shop at db.example:5432 as web",
            ),
            (
                "postgresql://web:s3cret@[::1]:7/shop?sslmode=require&connect_timeout=2",
                "shop at ::1:7 as web",
            ),
            ("postgres://web@a:1,b:2/shop", "shop at a:1, b:2 as web"),
            (
                "postgres:///shop?host=/run/postgresql&port=7",
                "shop at /run/postgresql:7 as the current user",
            ),
            (
                "postgres://web@%2Frun%2Fpg/shop",
                "shop at /run/pg:5432 as web",
            ),
            (
                "postgres://web@/",
                "web at /var/run/postgresql:5432, /tmp:5432 as web",
            ),
        ] {
            assert_eq!(parse(url).server.to_string(), server, "{url}");
        }
    }

    #[test]
    fn tls_is_used_as_sslmode_says() {
        let file = || Roots::File(PathBuf::from("/etc/ca.pem"));
        for (query, mode, trust) in [
            ("", SslMode::Prefer, Trust::Anyone),
            ("?sslmode=disable", SslMode::Disable, Trust::Anyone),
            ("?sslmode=allow", SslMode::Prefer, Trust::Anyone),
            ("?sslmode=require", SslMode::Require, Trust::Anyone),
            (
                "?sslrootcert=%2Fetc%2Fca.pem&sslmode=require",
                SslMode::Require,
                Trust::SignedBy(file()),
            ),
            (
                "?sslmode=verify-ca&sslrootcert=/etc/ca.pem",
                SslMode::Require,
                Trust::SignedBy(file()),
            ),
            (
                "?sslmode=verify-full&sslrootcert=system",
                SslMode::Require,
                Trust::Named(Roots::System),
            ),
        ] {
            let target = parse(&format!("postgres://web@db/shop{query}"));
            assert_eq!(target.config.get_ssl_mode(), mode, "{query}");
            assert_eq!(target.trust, trust, "{query}");
        }
    }

    #[test]
    fn sslmode_says_nothing_about_sockets() {
        let target = parse("postgres:///shop?host=/run/postgresql&sslmode=require");
        assert_eq!(target.config.get_ssl_mode(), SslMode::Disable);
    }

    #[test]
    fn what_is_wrong_in_a_url_is_said_without_its_secrets() {
        for (url, what) in [
            ("mysql://web:s3cret@db/shop", "must begin with postgres://"),
            ("host=db password=s3cret", "must begin with postgres://"),
            ("postgres://web:s3cret@db:port/shop", "port"),
            (
                "postgres://web:s3cret@db/shop?sslmode=s3cret",
                "verify-full",
            ),
            ("postgres://web:s3cret@db/shop?sslcert=x", "sslcert"),
        ] {
            let refusal = refusal(url);
            assert!(refusal.starts_with("[database] url: "), "{refusal}");
            assert!(refusal.contains(what), "{refusal}");
            assert!(!refusal.contains("s3cret"), "{refusal}");
        }
    }
}
