//! Answers that name a file instead of having a body.
//!
//! The application decides who may have the file, says so with `X-Sendfile` or `X-Accel-Redirect`, and is
//! done: its slot is free, and the gateway sends the file. The application's own headers stay, but for
//! those that tell of the body. A header that nothing is configured for is none of ours: it passes on
//! unchanged, to a server in front that may know it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, StatusCode};
use percent_encoding::percent_decode;

use super::open::{self, Inside, Opened};
use super::{Conditions, Files, Found, NoFile, below, names, not_opened, reading};
use crate::message::Answer;

const X_SENDFILE: HeaderName = HeaderName::from_static("x-sendfile");
const X_ACCEL_REDIRECT: HeaderName = HeaderName::from_static("x-accel-redirect");

/// A file that the application named.
#[derive(Debug, PartialEq, Eq)]
struct Named {
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
        conditions: Option<Conditions>,
    ) -> Result<Answer, NoFile> {
        let Some(named) = self.named(&mut answer.headers)? else {
            return Ok(answer);
        };
        let bodiless = matches!(
            answer.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        if bodiless {
            return Ok(answer);
        }
        let Answer {
            status,
            reason,
            mut headers,
            ..
        } = answer;
        headers.remove(CONTENT_LENGTH);
        // The page of an error, say, is whole whatever the client asked for.
        let conditions = conditions.filter(|_| status == StatusCode::OK);
        let answer = reading(move || {
            let Named { root, inside } = named;
            let opened = open::below(&root, &inside);
            let found = match opened.map_err(|error| not_opened(error, &root, &inside)) {
                Ok(Opened::File(file, metadata)) => Found::new(file, &metadata, ""),
                Ok(Opened::Folder) | Err(NoFile::Missing) => {
                    let path = root.join(&inside);
                    tracing::warn!(?path, "the application named a file that is not there");
                    return Err(NoFile::Missing);
                }
                Err(no_file) => return Err(no_file),
            };
            if !headers.contains_key(CONTENT_TYPE) {
                headers.insert(CONTENT_TYPE, names::content_type(&inside));
            }
            found.answer(status, headers, conditions.as_ref())
        });
        let mut answer = answer.await?;
        if answer.status == status {
            answer.reason = reason;
        }
        Ok(answer)
    }

    /// Takes what we obey out of the headers.
    fn named(&self, headers: &mut HeaderMap) -> Result<Option<Named>, NoFile> {
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
            (Some(path), None) => self.at(&path).map(Some),
            (None, Some(path)) => self.mounted(&path).map(Some),
            (Some(_), Some(_)) => Err(NoFile::Wrong(
                "its answer names a file with both X-Sendfile and X-Accel-Redirect",
            )),
        }
    }

    /// `X-Sendfile`: a path of the machine.
    fn at(&self, path: &[u8]) -> Result<Named, NoFile> {
        let path = Path::new(OsStr::from_bytes(path));
        let mut beneath = self.sendfile_root.iter().filter_map(|root| {
            let inside = path.strip_prefix(root).ok()?.as_os_str();
            // What is hidden from clients is not hidden from the application.
            let inside = Inside::new(inside.as_bytes(), true)?;
            let root = root.clone();
            Some(Named {
                root,
                inside: inside.path,
            })
        });
        beneath.next().ok_or(NoFile::Wrong(
            "its X-Sendfile names a file that is not below a sendfile_root",
        ))
    }

    /// `X-Accel-Redirect`: a path of ours.
    fn mounted(&self, path: &[u8]) -> Result<Named, NoFile> {
        // nginx would have a query, and nothing that we do with a file depends on one.
        let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
        let path: Vec<u8> = percent_decode(path).collect();
        let mount = self.mount(&path).map(Arc::clone).ok_or(NoFile::Wrong(
            "its X-Accel-Redirect names no path of a [[static]]",
        ))?;
        let inside = below(&path, &mount).and_then(|rest| Inside::new(rest, true));
        let inside = inside.ok_or(NoFile::Wrong("its X-Accel-Redirect is no path of a file"))?;
        Ok(Named {
            root: mount.root.clone(),
            inside: inside.path,
        })
    }
}

/// The value of a header that is there once.
fn taken(headers: &mut HeaderMap, name: &HeaderName) -> Result<Option<Vec<u8>>, NoFile> {
    if headers.get_all(name).iter().nth(1).is_some() {
        return Err(NoFile::Wrong("its answer names more than one file"));
    }
    let value = headers.remove(name);
    Ok(value.map(|value| value.as_bytes().to_vec()))
}
