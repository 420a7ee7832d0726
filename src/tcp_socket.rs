//! TCP listeners: which families of addresses one takes, and how long its queue is.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::unix_socket::BACKLOG;

/// Where a listener is to be.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub address: SocketAddr,
    /// It leaves IPv4 to another one. Else `[::]` is for both families, unless the system says otherwise.
    pub v6_only: bool,
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            v6_only: false,
        }
    }
}

/// A listener that does not block.
///
/// # Errors
/// When the address is taken or cannot be had.
pub fn bind(place: Place) -> io::Result<TcpListener> {
    let domain = Domain::for_address(place.address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of a predecessor that still linger do not keep the address.
    socket.set_reuse_address(true)?;
    if place.v6_only {
        socket.set_only_v6(true)?;
    }
    socket.bind(&place.address.into())?;
    socket.listen(BACKLOG as i32)?;
    Ok(socket.into())
}
