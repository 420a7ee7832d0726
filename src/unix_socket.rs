//! Unix-domain listeners: a path that is taken over from the dead, not from the living.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnix;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixSocket as Unbound, UnixStream};

/// Clients that may wait to be accepted. The kernel's usual bound for it (`net.core.somaxconn`) is as high;
/// the 128 of most libraries are a burst of a few milliseconds.
pub const BACKLOG: u32 = 4096;

/// A bound listener; its file is removed when it is dropped, if it has made it.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    ours: Option<FileId>,
}

/// What tells a file from another one of the same name: device and inode.
type FileId = (u64, u64);

impl UnixSocket {
    /// Listens at `path`; `mode` says who may connect.
    ///
    /// # Errors
    /// When somebody listens there, or it cannot be told, or the file cannot be made.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        // A file that nobody listens on was left behind by a process that was killed.
        if is_dead(path)?
            && std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        {
            std::fs::remove_file(path)?;
        }
        let socket = Unbound::new_stream()?;
        socket.bind(path)?;
        // Nobody can connect before `listen`, so nobody does with another mode.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        Ok(Self {
            listener: socket.listen(BACKLOG)?,
            path: path.to_owned(),
            ours: file_id(path),
        })
    }

    /// Goes on with a socket that is bound already. Its file is removed in the end if it is `ours`.
    ///
    /// # Errors
    /// When it is no listening socket.
    pub fn adopt(listener: StdUnix, ours: bool) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let path = address.as_pathname().unwrap_or(Path::new("")).to_owned();
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            ours: file_id(&path).filter(|_| ours),
            path,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cancel safe.
    ///
    /// # Errors
    /// As `accept(2)`: above all, out of descriptors.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// The socket, still listening; its file stays.
    ///
    /// # Errors
    /// When the descriptors have run out.
    pub fn keep(mut self) -> io::Result<OwnedFd> {
        self.ours = None;
        std::os::fd::AsFd::as_fd(&self.listener).try_clone_to_owned()
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Somebody may have tidied up before us, and another one may listen there now.
        if self.ours.is_some() && self.ours == file_id(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether something is there, and nobody listens. Does not wait: who listens may be stuck, and have as many in
/// its queue as go there.
fn is_dead(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let Err(error) = socket.connect(&SockAddr::unix(path)?) else {
        return Err(taken());
    };
    match Errno::from_io_error(&error) {
        Some(Errno::CONNREFUSED) => Ok(true),
        Some(Errno::NOENT) => Ok(false),
        Some(Errno::AGAIN | Errno::INPROGRESS) => Err(taken()),
        // It may live, and be out of our reach.
        _ => Err(error),
    }
}

fn taken() -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")
}

fn file_id(path: &Path) -> Option<FileId> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_is_taken_from_the_dead_only_and_left_clean() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("link.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a listener"));
        assert!(path.exists(), "the dead leave their file");
        let socket = UnixSocket::bind(&path, 0o600).expect("taken over");
        let taken = UnixSocket::bind(&path, 0o600).expect_err("somebody lives there");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_path_stays_with_who_listens_and_does_not_accept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("link.sock");
        let stuck = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        let address = SockAddr::unix(&path).expect("an address");
        stuck.bind(&address).expect("bound");
        stuck.listen(0).expect("listening");
        // As many as go into its queue.
        let _waiting = std::os::unix::net::UnixStream::connect(&path).expect("the first");
        let taken = UnixSocket::bind(&path, 0o600).expect_err("somebody lives there");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_path_where_it_cannot_be_told_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("link.sock");
        // Another kind of socket refuses streams, and lives.
        let _other = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
        assert!(UnixSocket::bind(&path, 0o600).is_err());
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_file_that_another_has_put_there_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("http.sock");
        let socket = UnixSocket::bind(&path, 0o600).expect("bound");
        std::fs::rename(&path, folder.path().join("aside")).expect("renamed");
        let successor = UnixSocket::bind(&path, 0o600).expect("bound");
        drop(socket);
        assert!(path.exists());
        drop(successor);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_is_kept_goes_on_under_its_new_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("http.sock");
        let socket = UnixSocket::bind(&path, 0o600).expect("bound");
        let waiting = UnixStream::connect(&path).await.expect("connected");
        let kept = socket.keep().expect("a descriptor");
        assert!(path.exists());
        let owner = UnixSocket::adopt(kept.into(), true).expect("adopted");
        owner.accept().await.expect("who waited is accepted");
        drop((waiting, owner));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn who_may_connect_is_said_by_the_mode() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("http.sock");
        let _socket = UnixSocket::bind(&path, 0o660).expect("bound");
        let mode = std::fs::metadata(&path).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o660);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").expect("written");
        assert!(UnixSocket::bind(&path, 0o600).is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"data");
    }
}
