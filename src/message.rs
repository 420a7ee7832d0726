//! Requests and answers as they pass between the rooms: parsed, vetted, free of the wire.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};

use crate::spool::{AnswerReader, Body, FilePart};

/// A client's request with its whole body in hand.
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
    pub body: Body,
}

/// Who sent the request and to whom, as far as trusted proxies tell.
#[derive(Debug, Clone)]
pub struct Client {
    /// None on a Unix-socket listener.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub scheme: Scheme,
    pub server_name: String,
    pub server_port: u16,
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
    /// The worker has named one that cannot be had, for the reason given.
    Unreadable(&'static str),
}
