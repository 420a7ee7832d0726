//! Clients' certificates: whose are accepted, and what the application is told of them.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use x509_cert::der::Decode;

use super::certificates::read_chain;
use super::{Unusable, unusable};
use crate::message::{ClientCertificate, Credential};

/// Who may sign clients' certificates.
pub fn authorities(path: &Path) -> Result<RootCertStore, Unusable> {
    let key = "tls.client_ca";
    let mut store = RootCertStore::empty();
    for certificate in read_chain(key, path)? {
        let added = store.add(certificate);
        added.map_err(|error| unusable(key, path, format_args!("cannot be used: {error}")))?;
    }
    Ok(store)
}

/// A certificate that has been verified.
pub fn certificate(certificate: &CertificateDer<'_>) -> Credential {
    // What the verifier could read and this cannot is odd: nobody is told who it is for.
    let Ok(parsed) = x509_cert::Certificate::from_der(certificate) else {
        tracing::warn!("a client's certificate cannot be read");
        return Credential::Missing;
    };
    let parsed = parsed.tbs_certificate();
    Credential::Certificate(Arc::new(ClientCertificate {
        subject: printable(parsed.subject()),
        issuer: printable(parsed.issuer()),
        serial: hex(parsed.serial_number().as_bytes()),
        fingerprint: hex(digest(&SHA256, certificate).as_ref()),
    }))
}

/// A distinguished name by RFC 4514. Control characters have no place in a header or a variable.
fn printable(name: &x509_cert::name::Name) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    name.to_string().chars().map(printable).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}
