//! TLS to PostgreSQL by rustls, with the degrees of trust that libpq has.
//!
//! Channel binding is not offered, so `channel_binding=require` fails with a clear error.

use std::error::Error;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use super::BudgetError;

/// Whose certificate is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Any: encrypted, but to nobody in particular (`prefer`, `require`).
    Anyone,
    /// One signed by these roots, for whatever name (`verify-ca`).
    SignedBy(Roots),
    /// One signed by these roots for the host of the URL (`verify-full`).
    Named(Roots),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    System,
    /// PEM.
    File(PathBuf),
}

/// Makes TLS connections for tokio-postgres.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

pub struct Handshake {
    connector: TlsConnector,
    host: String,
}

pub struct Encrypted(tokio_rustls::client::TlsStream<Socket>);

/// Checks less than rustls does by itself, because libpq's sslmode asks for less.
#[derive(Debug)]
struct Lenient {
    /// None: any certificate will do.
    chain: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Tls {
    pub fn new(trust: &Trust) -> Result<Self, BudgetError> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::Anyone => Arc::new(Lenient {
                chain: None,
                algorithms,
            }),
            Trust::SignedBy(roots) => Arc::new(Lenient {
                chain: Some(roots.verifier(&provider)?),
                algorithms,
            }),
            Trust::Named(roots) => roots.verifier(&provider)?,
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring supports the default protocol versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

impl Roots {
    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<WebPkiServerVerifier>, BudgetError> {
        let store = Arc::new(self.load()?);
        WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider))
            .build()
            .map_err(|error| BudgetError::Url(format!("root certificates: {error}")))
    }

    fn load(&self) -> Result<RootCertStore, BudgetError> {
        let mut store = RootCertStore::empty();
        match self {
            Roots::System => {
                // Some of a system's files may be odd; what matters is whether any was good.
                let certificates = rustls_native_certs::load_native_certs().certs;
                store.add_parsable_certificates(certificates);
            }
            Roots::File(path) => {
                let unusable = |error: &dyn Error| {
                    let path = path.display();
                    BudgetError::Url(format!("sslrootcert {path} cannot be used: {error}"))
                };
                let certificates = CertificateDer::pem_file_iter(path).map_err(|e| unusable(&e))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|e| unusable(&e))?;
                    store.add(certificate).map_err(|e| unusable(&e))?;
                }
            }
        }
        if store.is_empty() {
            let none = format!("{self:?} holds no root certificate to check the server against");
            return Err(BudgetError::Url(none));
        }
        Ok(store)
    }
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Encrypted;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        Ok(Handshake {
            connector: TlsConnector::from(Arc::clone(&self.0)),
            host: host.to_owned(),
        })
    }
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move {
            let name = ServerName::try_from(self.host).map_err(io::Error::other)?;
            Ok(Encrypted(self.connector.connect(name, stream).await?))
        })
    }
}

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last, so all else was right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
