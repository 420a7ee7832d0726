//! One question to a gateway's admin listener.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The admin listener answers while every slot is busy; who is silent for so long is not one.
const PATIENCE: Duration = Duration::from_secs(5);

/// The page at this path.
///
/// # Errors
/// When nobody answers there, or somebody else.
pub fn ask(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {admin}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, page) = answer.split_once("\r\n\r\n").ok_or_else(not_ours)?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(page.to_owned()),
        _ => Err(not_ours()),
    }
}

pub fn not_ours() -> io::Error {
    io::Error::other("something answers there, but not layby's admin listener")
}
