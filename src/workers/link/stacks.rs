//! Stacks of slots, told to people: who has asked a process, and what is believed of its answer.
//!
//! A stack names files, lines and functions, and never a value. What a worker says is bounded here, however
//! well it means it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::channel::Broken;
use super::wire::{Header, Kind};
use crate::slots::SlotId;

/// People who may wait for one process. One that answers does so in milliseconds.
const ASKERS: usize = 4;

/// Longest answer, most stacks of parked requests, most calls of one stack, longest name. A worker of ours stays
/// below.
const ANSWER: usize = 256 * 1024;
const PARKED: usize = 20;
const CALLS: usize = 250;
const NAME: usize = 500;

/// Who wants to know.
#[derive(Debug)]
pub enum Asker {
    /// The worker writes it into its log, with this reason.
    Log(String),
    Person(oneshot::Sender<Stacks>),
}

/// What a slot's thread does, and what of the requests that can go on there only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stacks {
    /// The innermost call last. None if the thread has ended.
    pub thread: Option<Vec<Call>>,
    #[serde(default)]
    pub parked: Vec<Parked>,
}

/// Parked requests that wait at the same place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    pub requests: u32,
    pub stack: Vec<Call>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub file: String,
    pub line: u32,
    pub function: String,
}

/// Why nobody can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoStacks {
    NoSlot,
    Idle,
    /// No worker process has the slot.
    Lost,
    /// The worker is none that tells.
    Untold,
    /// The slot is a connection to an HTTP server.
    Http,
    /// The process does not answer, and enough people wait for it already.
    Silent,
}

/// Who waits for one process.
#[derive(Debug, Default)]
pub struct Pending {
    last: u64,
    askers: BTreeMap<u64, oneshot::Sender<Stacks>>,
}

impl Pending {
    /// The frame that asks; none if too many wait already. The asker then hears so.
    pub fn asks(&mut self, slot: SlotId, asker: oneshot::Sender<Stacks>) -> Option<Header> {
        // Those who gave up stay listed until they are answered: the worker owes as many answers.
        if self.askers.len() >= ASKERS {
            return None;
        }
        self.last += 1;
        self.askers.insert(self.last, asker);
        Some(Header {
            request: self.last,
            ..Header::bare(Kind::Stack, slot.0)
        })
    }

    /// The process has answered.
    ///
    /// # Errors
    /// When nobody had asked that, or the answer is none.
    pub fn told(&mut self, header: Header, head: &[u8]) -> Result<(), Broken> {
        let asker = self.askers.remove(&header.request);
        let asker = asker.ok_or(Broken::Unexpected(header))?;
        if head.len() > ANSWER {
            return Err(Broken::content("stacks that are too long"));
        }
        let stacks: Stacks = serde_json::from_slice(head)
            .map_err(|error| Broken::content(format!("stacks that cannot be read: {error}")))?;
        // Who asked may have gone.
        let _ = asker.send(stacks.bounded());
        Ok(())
    }
}

impl Stacks {
    fn bounded(mut self) -> Self {
        self.parked.truncate(PARKED);
        let parked = self.parked.iter_mut().map(|parked| &mut parked.stack);
        for stack in self.thread.iter_mut().chain(parked) {
            // The innermost calls say most.
            stack.drain(..stack.len().saturating_sub(CALLS));
            for call in stack {
                shorten(&mut call.file);
                shorten(&mut call.function);
            }
        }
        self
    }
}

fn shorten(name: &mut String) {
    if let Some((end, _)) = name.char_indices().nth(NAME) {
        name.truncate(end);
    }
}

impl std::fmt::Display for NoStacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoSlot => "there is no such slot",
            Self::Idle => "the slot is idle: its thread waits for the next request",
            Self::Lost => "no worker process has this slot now",
            Self::Untold => {
                "the worker of this slot does not tell stacks: it is not layby's own for Python, or an older one"
            }
            Self::Http => "this slot is a connection to an HTTP server, which tells nothing of its threads",
            Self::Silent => {
                "the worker does not answer: it is stopped, or its interpreter is held by code that lets no \
                 other thread run"
            }
        })
    }
}

impl std::error::Error for NoStacks {}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: SlotId = SlotId(3);

    fn asked(pending: &mut Pending) -> (Header, oneshot::Receiver<Stacks>) {
        let (asker, answered) = oneshot::channel();
        let header = pending.asks(SLOT, asker).expect("there is room");
        (header, answered)
    }

    #[test]
    fn an_answer_goes_to_who_asked_for_it() {
        let mut pending = Pending::default();
        let (first, mut to_first) = asked(&mut pending);
        let (second, mut to_second) = asked(&mut pending);
        assert_eq!((first.kind, first.aux), (Kind::Stack, 3));
        assert_ne!(first.request, second.request);
        pending.told(second, br#"{"thread": null}"#).expect("asked");
        assert_eq!(to_second.try_recv().map(|told| told.thread), Ok(None));
        let told = br#"{"thread": [{"file": "a.py", "line": 7, "function": "f"}], "parked": []}"#;
        pending.told(first, told).expect("asked");
        let stack = to_first.try_recv().map(|told| told.thread);
        let stack = stack.expect("told").expect("a stack");
        assert_eq!((stack[0].file.as_str(), stack[0].line), ("a.py", 7));
    }

    #[test]
    fn what_nobody_asked_for_or_nobody_can_read_breaks_the_connection() {
        let mut pending = Pending::default();
        let (header, _) = asked(&mut pending);
        let other = Header {
            request: 99,
            ..header
        };
        assert!(pending.told(other, b"{}").is_err());
        assert!(pending.told(header, b"not JSON").is_err());
        assert!(
            pending.told(header, br#"{"thread": null}"#).is_err(),
            "told twice"
        );
        let (header, _) = asked(&mut pending);
        assert!(pending.told(header, &vec![b' '; ANSWER + 1]).is_err());
    }

    #[test]
    fn a_process_that_does_not_answer_is_not_asked_for_ever() {
        let mut pending = Pending::default();
        let waiting: Vec<_> = (0..ASKERS).map(|_| asked(&mut pending)).collect();
        let (asker, mut answered) = oneshot::channel();
        assert!(pending.asks(SLOT, asker).is_none());
        assert!(answered.try_recv().is_err());
        // Late, and nobody waits any more.
        let header = waiting[0].0;
        drop(waiting);
        pending.told(header, br#"{"thread": null}"#).expect("asked");
        asked(&mut pending);
    }

    #[test]
    fn what_is_told_is_bounded() {
        let call = Call {
            file: "é".repeat(3 * NAME),
            line: 1,
            function: "f".repeat(3 * NAME),
        };
        let parked = Parked {
            requests: 1,
            stack: vec![call.clone(); 3 * CALLS],
        };
        let bounded = Stacks {
            thread: Some(vec![call; 3 * CALLS]),
            parked: vec![parked; 3 * PARKED],
        }
        .bounded();
        assert_eq!(bounded.parked.len(), PARKED);
        assert_eq!(bounded.parked[0].stack.len(), CALLS);
        let thread = bounded.thread.expect("a stack");
        assert_eq!(thread.len(), CALLS);
        assert_eq!(thread[0].file.chars().count(), NAME);
        assert_eq!(thread[0].function.len(), NAME);
    }
}
