//! TLS: what handshakes are made with, and making them.
//!
//! Certificates, keys and rules are one [`ServerConfig`], replaced as a whole: on a reload, and when its
//! files have changed. Handshakes that come later take the new one, connections go on with theirs. What cannot
//! be used is reported and changes nothing. Each handshake runs in its connection's own task, within a time,
//! so that none can keep others from being accepted.

mod certificates;
mod client;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{ServerConfig, version};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::certificates::Certificates;
use super::listen::Stream;
use crate::config::{self, ClientAuth, TlsVersion};
use crate::message::Credential;
use crate::metrics::{HandshakeOutcome, Metrics};

/// From the connection's first byte to the end of the handshake. A phone on a bad line needs two or three
/// seconds.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How often the files are looked at. Renewals are not urgent: there are days to spare.
pub const LOOK: Duration = Duration::from_secs(5);

/// Sessions kept for clients that resume them without a ticket.
const SESSIONS: usize = 1024;

/// A certificate that ends sooner should have been renewed.
const RENEWAL_DUE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Protocols by ALPN, the preferred first.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why TLS cannot be offered as configured: which file, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

fn unusable(key: &str, path: &std::path::Path, what: impl std::fmt::Display) -> Unusable {
    Unusable(format!("{key} {}: {what}", path.display()))
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub tls: config::Tls,
    pub http2: bool,
}

/// Makes handshakes with what is in force.
pub struct Tls {
    current: Mutex<Ready>,
    metrics: Metrics,
}

/// All that handshakes take, read and found good.
pub struct Ready {
    config: Arc<ServerConfig>,
    /// When the first certificate ends.
    ends: SystemTime,
    wanted: Wanted,
    stamps: Stamps,
}

impl Tls {
    /// # Errors
    /// When a file cannot be used.
    pub fn new(wanted: Wanted, metrics: Metrics) -> Result<Arc<Self>, Unusable> {
        let ready = Ready::read(wanted)?;
        ready.told(&metrics);
        Ok(Arc::new(Self {
            current: Mutex::new(ready),
            metrics,
        }))
    }

    /// Later handshakes are made with this.
    pub fn set(&self, ready: Ready) {
        ready.told(&self.metrics);
        *self.current() = ready;
    }

    /// Reads the files again when they have changed, and looks whether they have so often; runs for ever.
    pub async fn follow_files(self: Arc<Self>, every: Duration) {
        let mut seen = self.current().stamps.clone();
        loop {
            tokio::time::sleep(every).await;
            let (wanted, loaded) = {
                let current = self.current();
                (current.wanted.clone(), current.stamps.clone())
            };
            let look = move || (Stamps::of(&wanted), wanted);
            let Ok((stamps, wanted)) = tokio::task::spawn_blocking(look).await else {
                return;
            };
            // Certificate and key are two files: what still changes is not read. What could not be used is not
            // tried, and reported, again until it changes.
            let settled = std::mem::replace(&mut seen, stamps.clone()) == stamps;
            if !settled || stamps == loaded {
                continue;
            }
            let read = Ready::read(wanted.clone());
            self.renew(&wanted, stamps, read);
        }
    }

    /// Takes what the files hold now, unless a reload has asked for something else since they were looked at.
    fn renew(&self, wanted: &Wanted, stamps: Stamps, read: Result<Ready, Unusable>) {
        let mut current = self.current();
        if current.wanted != *wanted {
            return;
        }
        match read {
            Ok(ready) => {
                ready.told(&self.metrics);
                *current = ready;
            }
            Err(error) => {
                tracing::error!(%error, "certificates changed, the old ones stay");
                current.stamps = stamps;
            }
        }
    }

    /// Makes the handshake, and counts how it ended. Not cancel safe: the connection is lost.
    pub async fn accept<S: Stream>(
        &self,
        stream: S,
    ) -> std::io::Result<(TlsStream<S>, Credential)> {
        let (acceptor, asked) = {
            let current = self.current();
            let asked = current.wanted.tls.client_ca.is_some();
            (TlsAcceptor::from(Arc::clone(&current.config)), asked)
        };
        let mut ended = Ended {
            metrics: &self.metrics,
            outcome: HandshakeOutcome::Timeout,
        };
        let accepted = acceptor.accept(stream).await;
        ended.outcome = match accepted {
            Ok(_) => HandshakeOutcome::Ok,
            Err(_) => HandshakeOutcome::Failed,
        };
        accepted.map(|stream| {
            let credential = credential(&stream, asked);
            (stream, credential)
        })
    }

    /// A client that spoke plain HTTP.
    pub fn refused_plain(&self) {
        self.metrics.handshake(HandshakeOutcome::Plain);
    }

    fn current(&self) -> MutexGuard<'_, Ready> {
        self.current
            .lock()
            .expect("no code that holds this lock panics")
    }
}

/// Counts a handshake, also one that is dropped half-way because its time was over.
struct Ended<'a> {
    metrics: &'a Metrics,
    outcome: HandshakeOutcome,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.metrics.handshake(self.outcome);
    }
}

/// Whether the client has chosen HTTP/2.
pub fn chose_http2<S>(stream: &TlsStream<S>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP2)
}

/// What the client has shown of itself.
fn credential<S>(stream: &TlsStream<S>, asked: bool) -> Credential {
    match stream.get_ref().1.peer_certificates() {
        // The chain has been verified.
        Some([own, ..]) => client::certificate(own),
        _ if asked => Credential::Missing,
        _ => Credential::Unasked,
    }
}

impl Ready {
    /// Reads all files.
    ///
    /// # Errors
    /// When one cannot be used.
    pub fn read(wanted: Wanted) -> Result<Self, Unusable> {
        // Before the files, so that one that changes meanwhile is read again.
        let stamps = Stamps::of(&wanted);
        let provider = Arc::new(ring::default_provider());
        if wanted.tls.certificates.is_empty() {
            let text = "tls.cert: is empty, and the listeners of tls.listen stay until a restart";
            return Err(Unusable(text.to_owned()));
        }
        let certificates = Certificates::read(&wanted.tls.certificates, &provider)?;
        let versions: &[_] = match wanted.tls.min_version {
            TlsVersion::V12 => &[&version::TLS13, &version::TLS12],
            TlsVersion::V13 => &[&version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("ring supports both versions");
        let builder = match &wanted.tls.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(client::authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match wanted.tls.client_auth {
                    ClientAuth::Required => verifier,
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier
                    .build()
                    .map_err(|error| unusable("tls.client_ca", path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let ends = certificates.first_end();
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols = match wanted.http2 {
            true => vec![HTTP2.to_vec(), HTTP1.to_vec()],
            false => vec![HTTP1.to_vec()],
        };
        // Keys that nobody else knows, new ones every six hours, and after each reload: a session that began
        // under other rules is not resumed.
        config.ticketer = ring::Ticketer::new()
            .map_err(|error| Unusable(format!("cannot make keys for session tickets: {error}")))?;
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        Ok(Self {
            config: Arc::new(config),
            ends,
            wanted,
            stamps,
        })
    }

    /// Says until when it is good.
    fn told(&self, metrics: &Metrics) {
        let since_epoch = self.ends.duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics.certificate_ends(since_epoch);
        let ends = httpdate::fmt_http_date(self.ends);
        let left = self.ends.duration_since(SystemTime::now());
        if left.unwrap_or_default() < RENEWAL_DUE {
            tracing::warn!(%ends, "certificates read; one of them ends soon");
        } else {
            tracing::info!(%ends, "certificates read");
        }
    }
}

/// What tells a file from what it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamps(Vec<Option<(SystemTime, u64, u64)>>);

impl Stamps {
    fn of(wanted: &Wanted) -> Self {
        use std::os::unix::fs::MetadataExt;
        let pairs = wanted.tls.certificates.iter();
        let files = pairs.flat_map(|pair| [&pair.cert, &pair.key]);
        let files = files.chain(&wanted.tls.client_ca);
        let stamp = |path: &PathBuf| {
            // Through links: certbot and Kubernetes replace these.
            let file = std::fs::metadata(path).ok()?;
            Some((file.modified().ok()?, file.len(), file.ino()))
        };
        Self(files.map(stamp).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Certificate;

    fn write(folder: &Path, name: &str) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]);
        let made = made.expect("a name is all it takes");
        let files = [
            ("cert", made.cert.pem()),
            ("key", made.signing_key.serialize_pem()),
        ];
        for (file, text) in files {
            std::fs::write(folder.join(file), text).expect("the folder is ours");
        }
    }

    fn wanted(folder: &Path) -> Wanted {
        Wanted {
            tls: config::Tls {
                listen: Vec::new(),
                certificates: vec![Certificate {
                    cert: folder.join("cert"),
                    key: folder.join("key"),
                }],
                min_version: TlsVersion::V12,
                client_ca: None,
                client_auth: ClientAuth::Required,
            },
            http2: true,
        }
    }

    /// Waits until the files as they are now have been tried.
    async fn tried(tls: &Tls) {
        let looking = async {
            loop {
                let (wanted, stamps) = {
                    let current = tls.current();
                    (current.wanted.clone(), current.stamps.clone())
                };
                if stamps == Stamps::of(&wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let looking = tokio::time::timeout(Duration::from_secs(15), looking);
        looking.await.expect("they are looked at");
    }

    #[test]
    fn a_reload_is_not_undone_by_files_that_were_looked_at_before_it() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), "a.example");
        let before = wanted(folder.path());
        let tls = Tls::new(before.clone(), Metrics::new(&[])).expect("good files");
        let mut asked = before.clone();
        asked.tls.min_version = TlsVersion::V13;
        tls.set(Ready::read(asked.clone()).expect("good files"));
        for read in [
            Ready::read(before.clone()),
            Err(Unusable("it has gone".to_owned())),
        ] {
            tls.renew(&before, Stamps(Vec::new()), read);
            let current = tls.current();
            assert_eq!(current.wanted, asked);
            assert_eq!(current.stamps, Stamps::of(&asked));
        }
    }

    #[tokio::test]
    async fn files_that_change_are_read_again_and_broken_ones_are_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), "a.example");
        let wanted = wanted(folder.path());
        let tls = Tls::new(wanted, Metrics::new(&[])).expect("good files");
        let following = tokio::spawn(Arc::clone(&tls).follow_files(Duration::from_millis(5)));
        let config = || Arc::clone(&tls.current().config);

        let first = config();
        // A key of another certificate, as between two writes.
        let key = std::fs::read(folder.path().join("key")).expect("it is there");
        write(folder.path(), "b.example");
        let new_key = std::fs::read(folder.path().join("key")).expect("it is there");
        std::fs::write(folder.path().join("key"), key).expect("the folder is ours");
        tried(&tls).await;
        assert!(Arc::ptr_eq(&first, &config()), "they do not fit");

        std::fs::write(folder.path().join("key"), new_key).expect("the folder is ours");
        tried(&tls).await;
        let second = config();
        assert!(!Arc::ptr_eq(&first, &second), "they fit");

        std::fs::remove_file(folder.path().join("cert")).expect("it is there");
        tried(&tls).await;
        assert!(Arc::ptr_eq(&second, &config()), "there is none");
        following.abort();
    }
}
