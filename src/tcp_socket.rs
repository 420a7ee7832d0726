//! TCP listeners: which families of addresses one takes, and how an address passes from one to the next.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

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

/// A listener that does not block. `ours` are listeners of this process that have the address, or a part of it:
/// the new one stands beside them, so that whoever connects finds one or the other, until they are closed.
///
/// # Errors
/// When somebody else has the address, or it cannot be had.
pub fn bind(place: Place, ours: &[SockRef<'_>]) -> io::Result<TcpListener> {
    // For this moment only: with it, another gateway of this user could take the port and half of the clients.
    let share = |shared| {
        ours.iter()
            .try_for_each(|listener| listener.set_reuse_port(shared))
    };
    share(true)?;
    let bound = listen(place, !ours.is_empty());
    share(false)?;
    bound
}

fn listen(place: Place, shared: bool) -> io::Result<TcpListener> {
    let domain = Domain::for_address(place.address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of a predecessor that still linger do not keep the address.
    socket.set_reuse_address(true)?;
    if place.v6_only {
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&place.address.into())?;
    socket.listen(BACKLOG as i32)?;
    if shared {
        socket.set_reuse_port(false)?;
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn an_address_passes_from_ours_to_ours_and_to_nobody_else() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let old = bind(any.into(), &[]).expect("a port");
        let narrow = old.local_addr().expect("it has one");
        let wide = SocketAddr::from(([0, 0, 0, 0], narrow.port()));
        let in_use = |address: SocketAddr| {
            let error = bind(address.into(), &[]).expect_err("it is taken");
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
        };
        in_use(wide);
        let waiting = TcpStream::connect(narrow).expect("it listens");
        let new = bind(wide.into(), &[SockRef::from(&old)]).expect("beside our own");
        in_use(wide);
        in_use(narrow);
        // Who came before waits where it came; who comes after the old one's end finds the new one.
        old.accept().expect("who waited");
        drop((old, waiting));
        let _client = TcpStream::connect(narrow).expect("somebody listens");
        in_use(narrow);
        drop(new);
    }
}
