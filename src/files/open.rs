//! Opening what stands below a folder, and nothing else.
//!
//! The kernel resolves the path and refuses every step out of the folder, also by symbolic links, so that
//! nothing can change between a check and its use. What is not a regular file is not read: a pipe
//! would have its reader wait, a device might do anything. Blocks: not for the runtime's thread.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;

/// Somebody moves folders about while the path is resolved: tried so often.
const TRIES: usize = 8;

/// Opening must neither wait nor make a terminal ours.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub enum Opened {
    File(File, Metadata),
    Folder,
}

/// Why there is nothing to read.
#[derive(Debug)]
pub enum NotOpened {
    /// No such file, or none that is served.
    Missing,
    /// It is there, but the gateway's user may not read it.
    Forbidden,
    /// The machine is at fault.
    Failed(io::Error),
}

/// A path below a folder, in the one spelling that is served.
#[derive(Debug, PartialEq, Eq)]
pub struct Inside {
    /// Relative; empty for the folder itself.
    pub path: PathBuf,
    /// Ends with a slash, as folders are named.
    pub slash: bool,
}

impl Inside {
    /// None for what is never served: steps like `..`, empty names, and names with a dot in front unless
    /// `hidden`, where version control and secrets lie. `/.well-known` is made for the public (RFC 8615).
    ///
    /// `path` is decoded, and begins with a slash unless it is empty.
    pub fn new(path: &[u8], hidden: bool) -> Option<Self> {
        let names = path.strip_prefix(b"/").unwrap_or(path);
        let (names, slash) = match names.strip_suffix(b"/") {
            Some(names) => (names, true),
            None => (names, names.is_empty() && !path.is_empty()),
        };
        let served = |name: &[u8]| match name {
            b"" | b"." | b".." => false,
            b".well-known" => true,
            name => (hidden || name[0] != b'.') && !name.contains(&0),
        };
        if !names.is_empty() && !names.split(|byte| *byte == b'/').all(served) {
            return None;
        }
        if names.is_empty() && path.len() > 1 {
            return None;
        }
        Some(Self {
            path: PathBuf::from(OsStr::from_bytes(names)),
            slash,
        })
    }
}

/// Opens `inside` below `root`. The root itself may be reached by symbolic links: a deployment may
/// change them at any time.
///
/// # Errors
/// When there is no such file below it, or it cannot be read.
pub fn below(root: &Path, inside: &Path) -> Result<Opened, NotOpened> {
    let opened = open(root, FOLDER, Mode::empty()).and_then(|root| resolved(root, inside));
    let file = match opened {
        Ok(file) => File::from(file),
        Err(error) => return Err(not_opened(error)),
    };
    let metadata = file.metadata().map_err(NotOpened::Failed)?;
    match metadata.file_type() {
        kind if kind.is_file() => Ok(Opened::File(file, metadata)),
        kind if kind.is_dir() => Ok(Opened::Folder),
        _ => Err(NotOpened::Missing),
    }
}

fn resolved(root: OwnedFd, inside: &Path) -> Result<OwnedFd, Errno> {
    let inside = match inside.as_os_str().is_empty() {
        true => Path::new("."),
        false => inside,
    };
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        tries += 1;
        match openat2(&root, inside, READ, Mode::empty(), rules) {
            Err(Errno::AGAIN) if tries < TRIES => {}
            // An old kernel, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return walked(root, inside),
            opened => return opened,
        }
    }
}

/// Step by step, without any symbolic link.
fn walked(mut folder: OwnedFd, inside: &Path) -> Result<OwnedFd, Errno> {
    let mut names = inside.components().peekable();
    while let Some(name) = names.next() {
        let last = names.peek().is_none();
        let flags = if last { READ } else { FOLDER };
        match name {
            Component::Normal(_) => {}
            Component::CurDir if last => {}
            _ => return Err(Errno::XDEV),
        }
        folder = openat(
            &folder,
            name.as_os_str(),
            flags | OFlags::NOFOLLOW,
            Mode::empty(),
        )?;
    }
    Ok(folder)
}

fn not_opened(error: Errno) -> NotOpened {
    match error {
        // A step out of the folder looks like a file that is not there: nobody learns what is outside.
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::XDEV
        | Errno::LOOP
        | Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::ILSEQ
        // A socket, or a device without its driver.
        | Errno::NXIO
        | Errno::NODEV => NotOpened::Missing,
        Errno::ACCESS => NotOpened::Forbidden,
        error => NotOpened::Failed(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    /// A root with files, folders, links of every kind, and secrets around it.
    fn tree() -> TempDir {
        let top = tempfile::tempdir().expect("a folder");
        let root = top.path().join("root");
        for folder in ["root/a/b", "root/.git", "root/.well-known", "rootless"] {
            fs::create_dir_all(top.path().join(folder)).expect("a folder");
        }
        for (file, content) in [
            ("secret", "secret"),
            ("rootless/f", "secret"),
            ("root/f", "f"),
            ("root/a/f", "a/f"),
            ("root/a/b/f", "a/b/f"),
            ("root/.git/f", ".git/f"),
            ("root/.well-known/f", ".well-known/f"),
        ] {
            fs::write(top.path().join(file), content).expect("room");
        }
        for (link, to) in [
            ("in", "a/f"),
            ("a/up", "../f"),
            ("folder", "a/b"),
            ("out", "../secret"),
            ("a/outside", "../../rootless"),
            ("round", "round"),
            ("proc", "/proc/self/root"),
        ] {
            symlink(to, root.join(link)).expect("a link");
        }
        symlink(top.path().join("secret"), root.join("absolute")).expect("a link");
        symlink(root.join("f"), root.join("home")).expect("a link");
        symlink(&root, top.path().join("current")).expect("a link");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .expect("a pipe");
        std::os::unix::net::UnixListener::bind(root.join("socket")).expect("a socket");
        top
    }

    fn read(root: &Path, path: &str) -> Option<String> {
        let inside = Inside::new(path.as_bytes(), false)?;
        match below(root, &inside.path) {
            Ok(Opened::File(mut file, metadata)) => {
                let mut text = String::new();
                file.read_to_string(&mut text).expect("readable");
                assert_eq!(metadata.len(), text.len() as u64);
                Some(text)
            }
            Ok(Opened::Folder) => Some("a folder".to_owned()),
            Err(NotOpened::Missing) => None,
            Err(other) => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn what_is_below_is_read_and_nothing_else() {
        let top = tree();
        for root in ["root", "current"] {
            let root = top.path().join(root);
            for (path, content) in [
                ("/f", Some("f")),
                ("/a/b/f", Some("a/b/f")),
                ("/a", Some("a folder")),
                ("/a/", Some("a folder")),
                ("", Some("a folder")),
                ("/", Some("a folder")),
                ("/in", Some("a/f")),
                ("/a/up", Some("f")),
                ("/folder/f", Some("a/b/f")),
                ("/.well-known/f", Some(".well-known/f")),
                ("/out", None),
                ("/a/outside/f", None),
                ("/absolute", None),
                // Into the root, but over the outside.
                ("/home", None),
                ("/round", None),
                ("/proc/etc/passwd", None),
                ("/pipe", None),
                ("/socket", None),
                ("/.git/f", None),
                ("/.git", None),
                ("/../secret", None),
                ("/a/../f", None),
                ("/./f", None),
                ("//f", None),
                ("//", None),
                ("/a//f", None),
                ("/f/f", None),
                ("/none", None),
                ("/f\0", None),
                ("/\\..\\secret", None),
            ] {
                assert_eq!(read(&root, path).as_deref(), content, "{path:?}");
            }
        }
        let long = format!("/{}", "x".repeat(10_000));
        assert_eq!(read(&top.path().join("root"), &long), None);
        assert_eq!(read(&top.path().join("none"), "/f"), None);
    }

    #[test]
    fn without_the_call_no_link_is_followed() {
        let top = tree();
        let root = || open(top.path().join("root"), FOLDER, Mode::empty()).expect("a folder");
        let walk = |path: &str| {
            walked(root(), Path::new(path)).map(|file| {
                let mut text = String::new();
                let mut file = File::from(file);
                match file.metadata().expect("it is open").is_dir() {
                    true => "a folder".clone_into(&mut text),
                    false => _ = file.read_to_string(&mut text).expect("readable"),
                }
                text
            })
        };
        for (path, content) in [("f", "f"), ("a/b/f", "a/b/f"), (".", "a folder")] {
            assert_eq!(walk(path).as_deref(), Ok(content), "{path}");
        }
        for path in [
            "in",
            "a/up",
            "folder/f",
            "out",
            "a/outside/f",
            "../secret",
            "/f",
        ] {
            let error = walk(path).expect_err(path);
            assert!(matches!(not_opened(error), NotOpened::Missing), "{path}");
        }
    }

    /// What the path leads to by the plain rules: no odd names, and after all links still below.
    fn naive(root: &Path, path: &str) -> Option<String> {
        let names: Vec<&str> = path[1..].split('/').collect();
        let (last, before) = names.split_last()?;
        let odd = |name: &&str| name.starts_with('.') && *name != ".well-known";
        if names.iter().any(odd) || before.contains(&"") {
            return None;
        }
        let full = root.join(&path[1..]);
        let mut walked = root.to_owned();
        for name in names.iter().filter(|name| !name.is_empty()) {
            // Every stop on the way is below the root.
            walked.push(name);
            let stop = walked.canonicalize().ok()?;
            let absolute = fs::read_link(&walked).is_ok_and(|to| to.is_absolute());
            if absolute || !stop.starts_with(root.canonicalize().ok()?) {
                return None;
            }
        }
        let metadata = fs::metadata(full.to_str()?.trim_end_matches('/')).ok()?;
        match (metadata.is_dir(), metadata.is_file(), *last) {
            (true, ..) => Some("a folder".to_owned()),
            (_, true, _) => fs::read_to_string(full.to_str()?.trim_end_matches('/')).ok(),
            _ => None,
        }
    }

    #[test]
    fn it_agrees_with_a_naive_reference() {
        let top = tree();
        let root = top.path().join("root");
        let name = proptest::sample::select(vec![
            "a",
            "b",
            "f",
            "in",
            "up",
            "folder",
            "out",
            "outside",
            "absolute",
            "home",
            "round",
            "proc",
            "pipe",
            "..",
            ".",
            "",
            ".git",
            ".well-known",
            "root",
            "rootless",
            "secret",
            "...",
            "~",
            "etc",
        ]);
        let names = proptest::collection::vec(name, 1..6);
        proptest!(ProptestConfig::with_cases(2000), |(names in names)| {
            let path = format!("/{}", names.join("/"));
            prop_assert_eq!(read(&root, &path), naive(&root, &path), "{}", path);
        });
    }
}
