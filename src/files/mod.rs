//! Files: what the gateway reads by itself, while no slot is held.
//!
//! Two ways lead here. A request for a path of a [`Mount`] is answered without the application. And an
//! answer of the application's may name a file instead of having a body (`X-Sendfile`,
//! `X-Accel-Redirect`): then the application has decided who may have it, and the rest is done here. In
//! both, only what lies below a configured folder is read, and conditions and ranges of the client are
//! honoured. Looking for files blocks, and is done off the runtime.

mod conditions;
mod handoff;
mod names;
mod open;
mod range;

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use headers::{HeaderMapExt, LastModified};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, LOCATION, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

pub use self::conditions::Conditions;
use self::conditions::{Validators, Verdict};
pub use self::handoff::NotHandedOff;
use self::open::{Inside, NotOpened, Opened};
use crate::coding::Accepted;
use crate::config::{Coding, Immutable, Mount};
use crate::message::{Answer, AnswerBody};
use crate::spool::{FilePart, Spool, off_runtime};

/// A part of a file up to this size is read when the file is opened: one hop to a blocking thread, not two.
const AT_ONCE: u64 = 64 * 1024;

/// A year, which every cache takes for as long as it likes.
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// What needs no escape in the path of a URL.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Why there is no file for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFile {
    Missing,
    /// Files are read with GET and HEAD.
    Method,
    /// It is there, but the machine cannot read it now.
    Unreadable,
}

/// All that may be read.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Those with the longest path first.
    mounts: Vec<Arc<Mount>>,
    /// Where `X-Sendfile` may point.
    sendfile_root: Vec<PathBuf>,
}

impl Files {
    pub fn new(mounts: Vec<Mount>, sendfile_root: Vec<PathBuf>) -> Self {
        let roots = mounts.iter().map(|mount| &mount.root);
        for root in roots.chain(&sendfile_root).filter(|root| !root.is_dir()) {
            // No reason to stay away: it may come with the next deployment, as `collectstatic` makes it.
            tracing::warn!(root = %root.display(), "no such folder; its files are answered 404 until there is one");
        }
        // The application names its files from `/` on.
        let absolute = |root: PathBuf| std::path::absolute(&root).unwrap_or(root);
        let sendfile_root = sendfile_root.into_iter().map(absolute).collect();
        let mut mounts: Vec<_> = mounts.into_iter().map(Arc::new).collect();
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.path.len()));
        Self {
            mounts,
            sendfile_root,
        }
    }

    /// The mount that a decoded path belongs to.
    pub fn mount(&self, path: &[u8]) -> Option<&Arc<Mount>> {
        self.mounts
            .iter()
            .find(|mount| below(path, mount).is_some())
    }
}

/// What comes after the path of the mount, by whole names.
fn below<'p>(path: &'p [u8], mount: &Mount) -> Option<&'p [u8]> {
    let mount = mount.path.as_bytes();
    let mount = mount.strip_suffix(b"/").unwrap_or(mount);
    let rest = path.strip_prefix(mount)?;
    (rest.starts_with(b"/") || (rest.is_empty() && !mount.is_empty())).then_some(rest)
}

/// Answers a request for a path of a mount.
///
/// `accepted` is of what the mount has precompressed.
///
/// # Errors
/// When there is no such file, or the request is none for a file.
pub async fn serve(
    mount: &Arc<Mount>,
    path: &[u8],
    query: &str,
    conditions: Option<Conditions>,
    accepted: Accepted,
) -> Result<Answer, NoFile> {
    if mount.internal {
        return Err(NoFile::Missing);
    }
    let rest = below(path, mount).ok_or(NoFile::Missing)?;
    let inside = Inside::new(rest, false).ok_or(NoFile::Missing)?;
    let conditions = conditions.ok_or(NoFile::Method)?;
    let (mount, query) = (Arc::clone(mount), query.to_owned());
    reading(move || match look(&mount, inside, &accepted)? {
        Looked::At(found, headers) => found.answer(StatusCode::OK, headers, Some(&conditions)),
        Looked::Folder(path) => Ok(to_folder(&mount, &path, &query)),
    })
    .await
}

/// Runs what blocks where it may.
async fn reading(
    work: impl FnOnce() -> Result<Answer, NoFile> + Send + 'static,
) -> Result<Answer, NoFile> {
    match off_runtime(move || Ok(work())).await {
        Ok(answer) => answer,
        Err(error) => Err(unreadable(&error)),
    }
}

fn unreadable(error: &io::Error) -> NoFile {
    tracing::error!(%error, "cannot read a file");
    NoFile::Unreadable
}

fn not_opened(error: NotOpened, root: &Path, path: &Path) -> NoFile {
    match error {
        NotOpened::Missing => NoFile::Missing,
        NotOpened::Forbidden => {
            tracing::warn!(root = %root.display(), ?path, "the gateway's user may not read this file");
            NoFile::Missing
        }
        NotOpened::Failed(error) => unreadable(&error),
    }
}

/// What there is at a path of a mount.
enum Looked {
    At(Found, HeaderMap),
    /// One with an index, that was named like a file.
    Folder(PathBuf),
}

fn look(mount: &Mount, inside: Inside, accepted: &Accepted) -> Result<Looked, NoFile> {
    let Inside { mut path, slash } = inside;
    let open = |path: &Path| {
        open::below(&mount.root, path).map_err(|error| not_opened(error, &mount.root, path))
    };
    let (file, metadata) = match open(&path)? {
        Opened::File(..) if slash => return Err(NoFile::Missing),
        Opened::File(file, metadata) => (file, metadata),
        Opened::Folder => {
            let index = mount.index.as_deref().ok_or(NoFile::Missing)?;
            let folder = path.clone();
            path.push(index);
            match open(&path)? {
                Opened::File(..) if !slash => return Ok(Looked::Folder(folder)),
                Opened::File(file, metadata) => (file, metadata),
                Opened::Folder => return Err(NoFile::Missing),
            }
        }
    };
    let mut headers = headers(mount, &path);
    let found = match compressed(mount, &path, &metadata, accepted) {
        Some((coding, found)) => {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
            found
        }
        None => Found::new(file, &metadata, ""),
    };
    Ok(Looked::At(found, headers))
}

/// The best of the file's compressed siblings. One that is older was made of another content.
fn compressed(
    mount: &Mount,
    path: &Path,
    plain: &Metadata,
    accepted: &Accepted,
) -> Option<(Coding, Found)> {
    accepted.codings.iter().find_map(|coding| {
        let mut sibling = path.as_os_str().to_owned();
        sibling.push(".");
        sibling.push(coding.ending());
        let Ok(Opened::File(file, metadata)) = open::below(&mount.root, Path::new(&sibling)) else {
            return None;
        };
        let fresh = metadata.modified().ok()? >= plain.modified().ok()?;
        fresh.then(|| (*coding, Found::new(file, &metadata, coding.as_str())))
    })
}

/// What is said of each file of a mount.
fn headers(mount: &Mount, path: &Path) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, names::content_type(path));
    let immutable = match mount.immutable {
        Immutable::None => false,
        Immutable::Hashed => names::is_hashed(path),
        Immutable::All => true,
    };
    let cache_control = match immutable {
        true => Some(FOR_EVER),
        false => mount.cache_control.clone(),
    };
    if let Some(cache_control) = cache_control {
        headers.insert(CACHE_CONTROL, cache_control);
    }
    if !mount.precompressed.is_empty() {
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    for (name, value) in &mount.headers {
        headers.append(name, value.clone());
    }
    headers
}

/// Relative links in an index need the slash at the end of its folder's name.
fn to_folder(mount: &Mount, path: &Path, query: &str) -> Answer {
    let mount = mount.path.trim_end_matches('/').as_bytes();
    let path = path.as_os_str().as_encoded_bytes();
    let mut target = percent_encode(mount, PATH).to_string();
    for name in path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
    {
        target.push('/');
        target.extend(percent_encode(name, PATH));
    }
    target.push('/');
    if !query.is_empty() {
        target.push('?');
        target.push_str(query);
    }
    let target = HeaderValue::from_str(&target).expect("escaped, and a query that was one before");
    Answer {
        status: StatusCode::MOVED_PERMANENTLY,
        reason: None,
        headers: HeaderMap::from_iter([(LOCATION, target)]),
        body: AnswerBody::Whole(Bytes::new()),
    }
}

/// A file that is open.
struct Found {
    file: File,
    len: u64,
    validators: Validators,
}

impl Found {
    fn new(file: File, metadata: &Metadata, variant: &str) -> Self {
        let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
        Self {
            file,
            len: metadata.len(),
            validators: Validators::new(modified, metadata.len(), variant),
        }
    }

    /// The answer with this file as its body, as far as the conditions have it.
    fn answer(
        self,
        mut status: StatusCode,
        mut headers: HeaderMap,
        conditions: Option<&Conditions>,
    ) -> Result<Answer, NoFile> {
        let verdict = match conditions {
            Some(conditions) => conditions.judge(&self.validators, self.len),
            None => Verdict::Whole,
        };
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.typed_insert(self.validators.etag.clone());
        headers.typed_insert(LastModified::from(self.validators.modified));
        let len = self.len;
        let (bodiless, part) = match verdict {
            Verdict::Whole => (None, 0..len),
            Verdict::Part(part) => {
                let range = format!("bytes {}-{}/{len}", part.start, part.end - 1);
                headers.insert(CONTENT_RANGE, value(&range));
                status = StatusCode::PARTIAL_CONTENT;
                (None, part)
            }
            Verdict::NotModified => (Some(StatusCode::NOT_MODIFIED), 0..0),
            Verdict::Failed => (Some(StatusCode::PRECONDITION_FAILED), 0..0),
            Verdict::NotThere => {
                headers.insert(CONTENT_RANGE, value(&format!("bytes */{len}")));
                (Some(StatusCode::RANGE_NOT_SATISFIABLE), 0..0)
            }
        };
        let body = match bodiless {
            Some(other) => {
                status = other;
                headers.remove(CONTENT_TYPE);
                headers.remove(CONTENT_ENCODING);
                AnswerBody::Whole(Bytes::new())
            }
            None => self.body(part).map_err(|error| unreadable(&error))?,
        };
        Ok(Answer {
            status,
            reason: None,
            headers,
            body,
        })
    }

    fn body(self, part: Range<u64>) -> io::Result<AnswerBody> {
        let len = part.end - part.start;
        if len > AT_ONCE {
            let part = FilePart::regular(self.file, part.start, len);
            return Ok(AnswerBody::File(part));
        }
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, part.start)?;
        Ok(AnswerBody::Whole(bytes.into()))
    }
}

/// The same answer. What has been read of its file counts as memory of bodies until it has been sent.
pub fn counted(mut answer: Answer, spool: &Spool) -> Answer {
    if let AnswerBody::Whole(bytes) = answer.body {
        answer.body = AnswerBody::Whole(spool.held(bytes));
    }
    answer
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("made of digits and plain words")
}
