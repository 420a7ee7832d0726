//! Requests and answers as they pass between the rooms: parsed, vetted, free of the wire.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use crate::record::Record;
use crate::spool::{AnswerReader, Body, FilePart, RelayReader};
use crate::tunnel::Tunnel;

/// Headers of an answer, of a fetch, or that a relay's are replaced by: from workers, who are not trusted to be
/// sparing. Nobody takes as many, and a map of headers panics when it is to hold some twenty times more.
pub const MAX_HEADERS: usize = 1000;

/// A client's request, with its whole body in hand unless that is to be taken later.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    pub version: Version,
    /// As received, origin-form.
    pub target: Arc<str>,
    /// Percent-decoded; never holds NUL.
    pub path: Vec<u8>,
    /// As received, without the `?`; empty when there is none.
    pub query: String,
    /// Without hop-by-hop, framing and spoofable headers.
    pub headers: HeaderMap,
    pub client: Client,
    pub record: Arc<Record>,
    pub body: RequestBody,
    /// The protocol that the client would like to change to, if that is for the server to decide.
    pub upgrade: Option<HeaderValue>,
}

#[derive(Debug)]
pub enum RequestBody {
    Here(Body),
    /// Still with the client, who has announced so many bytes, if any.
    Later(Option<u64>),
}

/// A body that its client still has. Nothing of it is asked for before it is taken; dropped, it stays there.
pub struct LaterBody(BoxFuture<'static, Result<Body, NoBody>>);

/// Why a body cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoBody {
    /// It did not come in time.
    Late,
    /// It is larger than allowed.
    TooLarge,
    /// It is malformed, or was cut.
    Broken,
    /// The gateway cannot keep it.
    NoRoom,
}

impl LaterBody {
    pub fn new(taking: impl Future<Output = Result<Body, NoBody>> + Send + 'static) -> Self {
        Self(Box::pin(taking))
    }

    /// # Errors
    /// When it cannot be had.
    pub async fn take(self) -> Result<Body, NoBody> {
        self.0.await
    }
}

impl std::fmt::Debug for LaterBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaterBody")
    }
}

impl std::fmt::Display for NoBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Late => "the request body took too long to arrive",
            Self::TooLarge => "the request body is too large",
            Self::Broken => "the request body is malformed",
            Self::NoRoom => "no room for the request body",
        })
    }
}

/// Who sent the request and to whom, as far as trusted proxies tell.
#[derive(Debug, Clone)]
pub struct Client {
    /// None on a Unix-socket listener.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    /// The other end of the connection: the client, or a proxy before us. None on a Unix-socket listener.
    pub peer: Option<IpAddr>,
    pub scheme: Scheme,
    /// What it has asked for, port and all, where a trusted proxy says so; else that is in `Host`.
    pub host: Option<String>,
    pub server_name: String,
    pub server_port: u16,
    /// Of the connection itself, whatever a proxy tells.
    pub credential: Credential,
}

/// What a client has shown of itself on a TLS connection.
#[derive(Debug, Clone, Default)]
pub enum Credential {
    /// Nobody has asked.
    #[default]
    Unasked,
    /// It was asked for a certificate, and gave none.
    Missing,
    /// One that has been verified.
    Certificate(Arc<ClientCertificate>),
}

/// Free of control characters.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Distinguished names by RFC 4514.
    pub subject: String,
    pub issuer: String,
    /// In hexadecimal digits, as is the SHA-256 of the whole certificate.
    pub serial: String,
    pub fingerprint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// What a worker made of a request.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// Only when it is not the usual one for the status.
    pub reason: Option<Bytes>,
    pub headers: HeaderMap,
    pub body: AnswerBody,
}

#[derive(Debug)]
pub enum AnswerBody {
    Whole(Bytes),
    /// Still arriving from the worker.
    Spooled(AnswerReader),
    /// In a file that the worker opened.
    File(FilePart),
    /// Arriving from another server.
    Relayed(RelayReader),
    /// None: with this answer the connection changes its protocol.
    Tunnel(Tunnel),
    /// The worker has named one that cannot be had, for the reason given.
    Unreadable(&'static str),
}
