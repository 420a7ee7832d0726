//! Certificates made for a test, and clients that speak TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::gateway::{Builder, Gateway};
use super::within;

/// Who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

/// A certificate with its key.
pub struct Issued {
    pub certificate: rcgen::Certificate,
    pub key: KeyPair,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// For servers and clients of this name.
    pub fn issue(&self, name: &str) -> Issued {
        self.sign(&params(name, &[name]))
    }

    /// One that has ended.
    pub fn expired(&self, name: &str) -> Issued {
        let mut params = params(name, &[name]);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer);
        Issued {
            certificate: certificate.expect("a certificate"),
            key,
        }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A client that trusts this authority, and nobody else.
    pub fn client(&self) -> Client {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.certificate.der().clone())
            .expect("a good certificate");
        Client {
            roots: Arc::new(roots),
            protocols: Vec::new(),
            own: None,
            config: None,
        }
    }
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("good names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Shop, Ltd");
    params
}

impl Issued {
    /// Writes both files, and tells where.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (
            folder.join(format!("{name}.pem")),
            folder.join(format!("{name}.key")),
        );
        fs::write(&cert, self.certificate.pem()).expect("the folder is ours");
        fs::write(&key, self.key.serialize_pem()).expect("the folder is ours");
        (cert, key)
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }
}

/// A gateway that listens with TLS, too, as `localhost`.
pub fn listens(builder: Builder, authority: &Authority) -> Builder {
    let (cert, key) = authority
        .issue("localhost")
        .write(builder.folder(), "server");
    builder
        .set("tls.listen", "127.0.0.1:0")
        .set("tls.cert", cert)
        .set("tls.key", key)
}

/// A client, with connections that share its sessions.
#[derive(Clone)]
pub struct Client {
    roots: Arc<RootCertStore>,
    protocols: Vec<Vec<u8>>,
    own: Option<(CertificateDer<'static>, Vec<u8>)>,
    config: Option<Arc<ClientConfig>>,
}

impl Client {
    /// Offers these protocols.
    pub fn offers(mut self, protocols: &[&str]) -> Self {
        let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
        self.protocols = protocols.collect();
        self
    }

    /// Has a certificate of its own.
    pub fn is(mut self, issued: &Issued) -> Self {
        self.own = Some((issued.der(), issued.key.serialize_der()));
        self
    }

    fn config(&mut self) -> Arc<ClientConfig> {
        if let Some(config) = &self.config {
            return Arc::clone(config);
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring supports them")
            .with_root_certificates(Arc::clone(&self.roots));
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::try_from(key.clone()).expect("a key");
                builder
                    .with_client_auth_cert(vec![certificate.clone()], key)
                    .expect("they fit")
            }
        };
        config.alpn_protocols = self.protocols.clone();
        Arc::clone(self.config.insert(Arc::new(config)))
    }

    /// A connection to `localhost`.
    pub async fn connect(&mut self, gateway: &Gateway) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_as("localhost", gateway.tls()).await
    }

    pub async fn connect_as(
        &mut self,
        name: &str,
        address: SocketAddr,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        self.connect_over(name, stream).await
    }

    pub async fn connect_over(
        &mut self,
        name: &str,
        stream: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(self.config());
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        within("a TLS handshake", connector.connect(name, stream)).await
    }
}
