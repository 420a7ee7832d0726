//! Requests for files: which ones they are, and what becomes of those that there is no file for.
//!
//! A route with a longer path than the mount's takes its requests away from it. A body that comes with
//! a request for a file is not read.

use std::sync::Arc;

use http::request::Parts;

use super::answers::Trouble;
use super::head::Target;
use super::{Client, Settings};
use crate::coding::Accepted;
use crate::config::Mount;
use crate::files::{self, Conditions, NoFile};
use crate::message::Answer;

/// The mount that a request belongs to, if it is for a file.
pub fn of<'s>(
    parts: &Parts,
    target: &Target,
    client: &Client,
    settings: &'s Settings,
) -> Option<&'s Arc<Mount>> {
    let mount = settings.files.mount(&target.path)?;
    let host = &client.server_name;
    let route = settings.routes.of(&target.path, host, &parts.method);
    let routed = route.is_some_and(|route| route.rules.path.len() > mount.path.len());
    (!routed).then_some(mount)
}

/// The answer with the file; None if there is none, and the application is to be asked.
pub async fn answer(
    mount: &Arc<Mount>,
    parts: &Parts,
    target: &Target,
) -> Result<Option<Answer>, Trouble> {
    let conditions = Conditions::of(&parts.method, &parts.headers);
    let accepted = Accepted::of(&parts.headers, &mount.precompressed);
    let answer = files::serve(mount, &target.path, &target.query, conditions, accepted);
    match answer.await {
        Ok(answer) => Ok(Some(answer)),
        Err(NoFile::Missing | NoFile::Method) if mount.fallthrough => Ok(None),
        Err(no_file) => Err(no_file.into()),
    }
}
