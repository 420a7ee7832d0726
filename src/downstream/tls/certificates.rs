//! The gateway's own certificates: reading them, and choosing one for a client.
//!
//! What would fail with every client fails when it is read: a file that holds something else, a key of another
//! certificate, a certificate that has ended.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_cert::der::Decode;

use super::{Unusable, unusable};
use crate::config;

/// At least one, in the order of the configuration.
#[derive(Debug)]
pub struct Certificates(Vec<Certificate>);

#[derive(Debug)]
struct Certificate {
    key: Arc<CertifiedKey>,
    ends: SystemTime,
}

impl Certificates {
    pub fn read(
        pairs: &[config::Certificate],
        provider: &CryptoProvider,
    ) -> Result<Self, Unusable> {
        let read = |pair| Certificate::read(pair, provider);
        pairs.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// When the first of them ends.
    pub fn first_end(&self) -> SystemTime {
        let ends = self.0.iter().map(|certificate| certificate.ends);
        ends.min().expect("there is at least one")
    }
}

impl ResolvesServerCert for Certificates {
    /// The first for the client's name and with a key that the client can check; then any such key.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let [only] = &self.0[..] {
            return Some(Arc::clone(&only.key));
        }
        let schemes = hello.signature_schemes();
        let usable = || {
            let usable = |one: &&Certificate| one.key.key.choose_scheme(schemes).is_some();
            self.0.iter().filter(usable)
        };
        let name = hello.server_name();
        let name = name.and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| usable().find(|one| one.is_for(&name)));
        let chosen = named.or_else(|| usable().next())?;
        Some(Arc::clone(&chosen.key))
    }
}

impl Certificate {
    fn read(
        config::Certificate { cert, key }: &config::Certificate,
        provider: &CryptoProvider,
    ) -> Result<Self, Unusable> {
        let chain = read_chain("tls.cert", cert)?;
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unusable("tls.key", key, no_key(key, &error)))?;
        let (begins, ends) = validity(&chain[0])
            .ok_or_else(|| unusable("tls.cert", cert, "the first certificate is malformed"))?;
        let certified =
            CertifiedKey::from_der(chain, secret, provider).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => unusable(
                    "tls.key",
                    key,
                    format_args!(
                        "is not the key of the first certificate in {}",
                        cert.display()
                    ),
                ),
                rustls::Error::InvalidCertificate(error) => {
                    unusable("tls.cert", cert, format_args!("cannot be used: {error:?}"))
                }
                error => unusable("tls.key", key, format_args!("cannot be used: {error}")),
            })?;
        let now = SystemTime::now();
        if ends < now {
            let ended = format_args!("ended on {}", httpdate::fmt_http_date(ends));
            return Err(unusable("tls.cert", cert, ended));
        }
        if begins > now {
            let begins = format_args!("is not valid before {}", httpdate::fmt_http_date(begins));
            return Err(unusable("tls.cert", cert, begins));
        }
        Ok(Self {
            key: Arc::new(certified),
            ends,
        })
    }

    fn is_for(&self, name: &ServerName<'_>) -> bool {
        let parsed = self.key.end_entity_cert().map(ParsedCertificate::try_from);
        matches!(parsed, Ok(Ok(parsed)) if verify_server_name(&parsed, name).is_ok())
    }
}

/// All certificates of a PEM file; at least one.
pub fn read_chain(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let chain =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match chain {
        Ok(chain) if chain.is_empty() => Err(unusable(key, path, "holds no certificate")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(unusable(key, path, told(&error))),
    }
}

/// From when to when it is valid.
fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let validity = parsed.tbs_certificate().validity();
    Some((
        validity.not_before.to_system_time(),
        validity.not_after.to_system_time(),
    ))
}

fn no_key(path: &Path, error: &pem::Error) -> String {
    // The commonest reason, which the PEM reader passes over.
    let encrypted = std::fs::read_to_string(path).is_ok_and(|text| text.contains("ENCRYPTED"));
    match error {
        pem::Error::NoItemsFound if encrypted => {
            "is encrypted; write it without its passphrase".to_owned()
        }
        pem::Error::NoItemsFound => "holds no private key".to_owned(),
        error => told(error),
    }
}

fn told(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        error => format!("is not PEM: {error}"),
    }
}
