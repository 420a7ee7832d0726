//! The closed sets of label values.
//!
//! A label value comes from one of these enums or from configuration, never from a
//! request, so a client cannot make the number of series grow. Each value is declared
//! once, with the meaning that `docs/metrics.md` gives it.

use http::Method;

/// A closed set of label values.
pub trait LabelSet: Copy + 'static {
    const ALL: &'static [Self];

    fn as_str(self) -> &'static str;

    /// Place in [`LabelSet::ALL`].
    fn index(self) -> usize;
}

/// A label value and what it means (empty if that is plain), for the documentation.
pub type Meaning = (&'static str, &'static str);

macro_rules! label_set {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $value:literal $(: $meaning:literal)?,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[doc = $meaning])? $variant,)+
        }

        impl $name {
            pub const MEANINGS: &'static [Meaning] = &[$(($value, concat!($($meaning)?)),)+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }

        impl LabelSet for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn as_str(self) -> &'static str {
                self.as_str()
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label_set! {
    /// What a slot is doing.
    SlotState {
        Idle = "idle": "ready for its next job",
        Busy = "busy": "running application code, or waiting in place",
        Lost = "lost": "overdue, dead or not yet started",
    }
}

label_set! {
    /// Where a request is, from its client's point of view: Body → Queue → Run → Park → Resume → Run → …,
    /// and from any of them → Answer, which is the last.
    Stage {
        Body = "body": "its body was on the way; only requests that had one",
        Queue = "queue": "it waited for its first slot",
        Run = "run": "it had a slot, and may have waited in place there",
        Park = "park": "it waited without a slot",
        Resume = "resume": "it waited for a slot to go on",
        Answer = "answer": "from the head of its answer to the last byte, whatever the application still did for it",
    }
}

label_set! {
    /// Why a request was refused because of load.
    ShedReason {
        QueueFull = "queue_full": "the queue was full on arrival",
        QueueTimeout = "queue_timeout": "no slot came free within the queue timeout",
        Draining = "draining": "the gateway admits nothing new any more",
        ParkedFull = "parked_full": "running and parked requests were at their bound, by count or by bytes",
    }
}

label_set! {
    /// What a client's connection is about.
    ConnectionState {
        Idle = "idle": "between two requests, or before the first",
        Reading = "reading": "a request, or its body, is on its way in",
        Waiting = "waiting": "the request is in the queue, with the application, or parked",
        Writing = "writing": "an answer is on its way out",
        Tunnel = "tunnel": "it was upgraded, and carries another protocol",
    }
}

label_set! {
    /// Why a connection was let go at once.
    TurnedAway {
        Limit = "limit": "there were as many as there may be, and none of them was idle",
        ClientLimit = "client_limit": "there were as many of that client as there may be",
        Descriptors = "descriptors": "there was no file descriptor for it",
    }
}

label_set! {
    /// What kind of room a body did not find.
    Shortage {
        Memory = "memory": "the memory limit was reached: it went to disk instead",
        SpoolLimit = "spool_limit": "the spool's limit was reached: an upload was refused, an answer held back",
        Disk = "disk": "the spool folder took no more, with the same consequence",
    }
}

label_set! {
    /// Why a request kept its slot while it waited.
    WaitReason {
        Transaction = "transaction": "a database transaction was open",
        Cursor = "cursor": "a server-side cursor was open",
        Middleware = "middleware": "a middleware that cannot be suspended was on the stack",
        Mode = "mode": "the worker's mode cannot park",
        Unsupported = "unsupported": "anything else that the worker could not suspend safely",
    }
}

label_set! {
    /// How a fetch ended.
    FetchOutcome {
        Ok = "ok": "a whole response with a status below 400",
        HttpError = "http_error": "a whole response with status 4xx or 5xx",
        Timeout = "timeout": "its time, its plan's or its request's was over",
        Connect = "connect": "no connection, or one that did not bring a whole response",
        Refused = "refused": "forbidden by the address policy; nothing was connected",
        TooLarge = "too_large": "the response was over its bound",
        Aborted = "aborted": "not needed any more: the join was met, or the client left",
    }
}

label_set! {
    /// What became of spans.
    SpanOutcome {
        Sent = "sent": "the collector has taken them",
        QueueFull = "queue_full": "more came than are sent, or the collector is away",
        Unreachable = "unreachable": "the collector could not be had, several times over",
        Refused = "refused": "the collector did not want them",
    }
}

label_set! {
    /// Why a worker process was started again.
    RestartReason {
        Crash = "crash": "it died by itself",
        Overdue = "overdue": "a job ran past its deadline and the process was replaced",
        Recycled = "recycled": "it reached the end of its planned life",
        Reload = "reload": "a reload was asked for",
    }
}

label_set! {
    /// Where a request was when its client left.
    CancelPhase {
        Queued = "queued": "waiting for its first slot; no application code had run",
        Running = "running": "in a slot",
        Parked = "parked": "waiting without a slot, or in place",
    }
}

label_set! {
    /// How a TLS handshake with a client ended.
    HandshakeOutcome {
        Ok = "ok": "with a connection",
        Failed = "failed": "no version, cipher or certificate in common, or the client left",
        Timeout = "timeout": "its time was over",
        Plain = "plain": "the client spoke plain HTTP",
    }
}

label_set! {
    /// Methods that have a label value of their own.
    MethodLabel {
        Get = "GET",
        Head = "HEAD",
        Post = "POST",
        Put = "PUT",
        Patch = "PATCH",
        Delete = "DELETE",
        Options = "OPTIONS",
        Trace = "TRACE",
        Other = "other",
    }
}

impl From<&Method> for MethodLabel {
    fn from(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            Method::OPTIONS => Self::Options,
            Method::TRACE => Self::Trace,
            _ => Self::Other,
        }
    }
}
