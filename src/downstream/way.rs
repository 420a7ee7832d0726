//! What is known of the connection that requests come on, before any of them.

use super::forwarded::Peer;
use crate::message::{Credential, Scheme};

#[derive(Debug, Clone)]
pub struct Way {
    pub peer: Peer,
    /// Of the connection itself; a proxy may tell of another.
    pub scheme: Scheme,
    pub credential: Credential,
}

impl Way {
    /// Without TLS.
    pub fn plain(peer: Peer) -> Self {
        Self {
            peer,
            scheme: Scheme::Http,
            credential: Credential::Unasked,
        }
    }
}
