//! Answers that name a file instead of having a body.
//!
//! The application decides who may have the file, says so with `X-Sendfile` or `X-Accel-Redirect`, and is
//! done: its slot is free, and the gateway sends the file. The application's own headers stay, but for
//! those that tell of the body. A header that nothing is configured for is none of ours: it passes on
//! unchanged, to a server in front that may know it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::percent_decode;

use super::open::{self, Inside, Opened};
use super::{Conditions, Files, Found, NoFile, below, counted, names, not_opened, reading};
use crate::message::{Answer, AnswerBody};
use crate::spool::Spool;

const X_SENDFILE: HeaderName = HeaderName::from_static("x-sendfile");
const X_ACCEL_REDIRECT: HeaderName = HeaderName::from_static("x-accel-redirect");

/// Why an answer is not that of the file that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotHandedOff {
    NoFile(NoFile),
    /// What the application said makes no sense, or is not allowed.
    Wrong(&'static str),
}

/// Where a file is that the application named.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    root: PathBuf,
    inside: PathBuf,
}

impl Files {
    /// Whether answers may name files, and the client's conditions are to be kept for them.
    pub fn hands_off(&self) -> bool {
        !self.sendfile_root.is_empty() || self.redirects()
    }

    /// There is a mount that only the application can name.
    fn redirects(&self) -> bool {
        self.mounts.iter().any(|mount| mount.internal)
    }

    /// Gives an answer that names a file this file as its body; any other as it is.
    ///
    /// # Errors
    /// When the file named cannot be had, or may not be named.
    pub async fn hand_off(
        &self,
        mut answer: Answer,
        wish: Option<Box<Conditions>>,
        spool: &Spool,
    ) -> Result<Answer, NotHandedOff> {
        let Some(places) = self.named(&mut answer.headers)? else {
            return Ok(answer);
        };
        let Answer {
            status,
            reason,
            mut headers,
            ..
        } = answer;
        headers.remove(CONTENT_LENGTH);
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Answer {
                status,
                reason,
                headers,
                body: AnswerBody::Whole(Bytes::new()),
            });
        }
        // The page of an error, say, is whole whatever the client asked for.
        let wish = wish.filter(|_| status == StatusCode::OK);
        let reading = reading(move || {
            let found = found(&places)?;
            if !headers.contains_key(CONTENT_TYPE) {
                headers.insert(CONTENT_TYPE, names::content_type(&places[0].inside));
            }
            found.answer(status, headers, wish.as_deref())
        });
        let mut answer = reading.await.map_err(NotHandedOff::NoFile)?;
        if answer.status == status {
            answer.reason = reason;
        }
        Ok(counted(answer, spool))
    }

    /// Where the file may be that the answer names; takes what we obey out of its headers.
    fn named(&self, headers: &mut HeaderMap) -> Result<Option<Vec<Place>>, NotHandedOff> {
        let sendfile = match self.sendfile_root.is_empty() {
            true => None,
            false => taken(headers, &X_SENDFILE)?,
        };
        let redirect = match self.redirects() {
            true => taken(headers, &X_ACCEL_REDIRECT)?,
            false => None,
        };
        match (sendfile, redirect) {
            (None, None) => Ok(None),
            (Some(path), None) => self.at(path.as_bytes()).map(Some),
            (None, Some(path)) => self.mounted(path.as_bytes()).map(Some),
            (Some(_), Some(_)) => Err(NotHandedOff::Wrong(
                "its answer names a file with both X-Sendfile and X-Accel-Redirect",
            )),
        }
    }

    /// `X-Sendfile`: a path of the machine. Some write it plainly, and some escaped, since a header holds no
    /// other letters than those of ASCII.
    fn at(&self, path: &[u8]) -> Result<Vec<Place>, NotHandedOff> {
        let escaped: Vec<u8> = percent_decode(path).collect();
        let other = (escaped != path).then_some(&*escaped);
        let places: Vec<Place> = [Some(path), other]
            .into_iter()
            .flatten()
            .filter_map(|path| self.beneath(Path::new(OsStr::from_bytes(path))))
            .collect();
        match places.is_empty() {
            true => Err(NotHandedOff::Wrong(
                "its X-Sendfile names a file that is not below a sendfile_root",
            )),
            false => Ok(places),
        }
    }

    fn beneath(&self, path: &Path) -> Option<Place> {
        self.sendfile_root.iter().find_map(|root| {
            let inside = path.strip_prefix(root).ok()?.as_os_str();
            // What is hidden from clients is not hidden from the application.
            let inside = Inside::new(inside.as_bytes(), true)?.path;
            let root = root.clone();
            Some(Place { root, inside })
        })
    }

    /// `X-Accel-Redirect`: a path of ours, escaped.
    fn mounted(&self, path: &[u8]) -> Result<Vec<Place>, NotHandedOff> {
        // nginx would have a query, and nothing that we do with a file depends on one.
        let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
        let path: Vec<u8> = percent_decode(path).collect();
        let Some(mount) = self.mount(&path) else {
            let why = "its X-Accel-Redirect names no path of a [[static]]";
            return Err(NotHandedOff::Wrong(why));
        };
        match below(&path, mount).and_then(|rest| Inside::new(rest, true)) {
            Some(Inside { path: inside, .. }) => {
                let root = mount.root.clone();
                Ok(vec![Place { root, inside }])
            }
            None => Err(NotHandedOff::Wrong(
                "its X-Accel-Redirect is no path of a file",
            )),
        }
    }
}

/// The first of the files that is there. Blocks.
fn found(places: &[Place]) -> Result<Found, NoFile> {
    for Place { root, inside } in places {
        match open::below(root, inside).map_err(|error| not_opened(error, root, inside)) {
            Ok(Opened::File(file, metadata)) => return Ok(Found::new(file, &metadata, "")),
            Ok(Opened::Folder) | Err(NoFile::Missing) => {}
            Err(no_file) => return Err(no_file),
        }
    }
    tracing::warn!(?places, "the application named a file that is not there");
    Err(NoFile::Missing)
}

/// The value of a header that is there once.
fn taken(headers: &mut HeaderMap, name: &HeaderName) -> Result<Option<HeaderValue>, NotHandedOff> {
    if headers.get_all(name).iter().nth(1).is_some() {
        let why = "its answer names more than one file";
        return Err(NotHandedOff::Wrong(why));
    }
    Ok(headers.remove(name))
}
