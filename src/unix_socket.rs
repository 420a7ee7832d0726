//! Unix-domain listeners: a path that is taken over from the dead, not from the living.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A bound listener; its file is removed when it is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixSocket {
    /// Listens at `path`; `mode` says who may connect.
    ///
    /// # Errors
    /// When somebody listens there, or the file cannot be made.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        // A file that nobody listens on was left behind by a process that was killed.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens there",
            ));
        }
        let left_behind = std::fs::symlink_metadata(path)
            .is_ok_and(|file| std::os::unix::fs::FileTypeExt::is_socket(&file.file_type()));
        if left_behind {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
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
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Somebody may have tidied up before us.
        let _ = std::fs::remove_file(&self.path);
    }
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
    async fn a_file_that_is_no_socket_is_not_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").expect("written");
        assert!(UnixSocket::bind(&path, 0o600).is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"data");
    }
}
