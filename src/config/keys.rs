//! The table of keys: the one place that says which keys there are.
//!
//! Defaults are written as in the environment and go through the same parser as any other
//! value. Nothing here reads anything; see [`super::read`].

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    /// A number or `auto`.
    Count,
    Size,
    Duration,
    /// One of these words.
    Word(&'static [&'static str]),
    Path,
    Address,
    Listen,
    Trusted,
    App,
    UnixSocket,
    Upstream,
    Dotted,
    Allow,
    Host,
    DatabaseUrl,
    RoutePath,
    Method,
    /// A path from `/` on, or from `./`.
    Folder,
    FileName,
    MediaType,
    HeaderValue,
    Header,
    /// `true` or `false`.
    Truth,
    /// From 0 to 1.
    Ratio,
    /// Where something of HTTP is sent to.
    HttpUrl,
    /// What people call something.
    Title,
    /// `NAME: VALUE`, of which nobody may know the value.
    SecretHeader,
    /// `NAME=VALUE`
    Attribute,
    /// What two programs know, and nobody else.
    SharedSecret,
}

/// What holds when no source gives a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Default {
    Value {
        text: &'static str,
        because: &'static str,
    },
    /// No value, and what that means.
    Unset(&'static str),
}

pub(super) struct Key {
    /// `section.key`, or `key` at the top level.
    pub name: &'static str,
    pub kind: Kind,
    /// Takes any number of values.
    pub list: bool,
    /// The smallest and the largest value.
    pub range: Option<(&'static str, &'static str)>,
    pub default: Default,
    /// A value other than the default, as in the environment.
    pub example: &'static str,
    pub flag: Option<&'static str>,
    /// A change needs a restart; all others take effect on a reload.
    pub restart: bool,
    pub doc: &'static str,
}

/// What keys are compared with where they leave something out.
const PLAIN: Key = Key {
    name: "",
    kind: Kind::Number,
    list: false,
    range: None,
    default: Default::Unset(""),
    example: "",
    flag: None,
    restart: false,
    doc: "",
};

/// In the order of the reference page.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "listen",
        kind: Kind::Listen,
        list: true,
        default: Default::Value {
            text: "127.0.0.1:8000",
            because: "nothing is reachable from outside until somebody says so",
        },
        example: "0.0.0.0:8000",
        flag: Some("--listen"),
        doc: "Where clients connect: addresses with port, `unix:PATH`, or sockets that systemd holds: \
              `systemd` for all of them, `systemd:NAME` for those with this `FileDescriptorName`. A reload \
              opens new ones and closes those that are gone. `[::]` is for IPv4 too, unless an address of IPv4 \
              has the same port.",
        ..PLAIN
    },
    Key {
        name: "admin",
        kind: Kind::Address,
        default: Default::Value {
            text: "127.0.0.1:9180",
            because: "what requests there are, and where they are, is for the host itself",
        },
        example: "127.0.0.1:9190",
        flag: Some("--admin"),
        restart: true,
        doc: "Metrics, health and status. Never on a public address.",
        ..PLAIN
    },
    Key {
        name: "probes",
        kind: Kind::Address,
        default: Default::Unset("no such listener"),
        example: "0.0.0.0:9181",
        restart: true,
        doc: "Read-only `/metrics`, `/livez` and `/readyz`, for scrapers and kubelets on other hosts.",
        ..PLAIN
    },
    Key {
        name: "trusted_proxies",
        kind: Kind::Trusted,
        list: true,
        default: Default::Value {
            text: "",
            because: "anybody can send these headers; only a named proxy tells the truth in them",
        },
        example: "10.0.0.0/8",
        doc: "Peers whose `X-Forwarded-*` and `Forwarded` are believed: addresses, networks, \
              or `unix` for every peer on a Unix-socket listener.",
        ..PLAIN
    },
    Key {
        name: "forwarding_headers",
        kind: Kind::Word(&["any", "x-forwarded", "forwarded"]),
        default: Default::Value {
            text: "any",
            because: "proxies differ; where both kinds come and disagree, the request is refused",
        },
        example: "x-forwarded",
        doc: "Which headers the `trusted_proxies` write. The other kind is then removed: it may be the client's, \
              whom a proxy that does not know it lets pass.",
        ..PLAIN
    },
    Key {
        name: "proxy_protocol",
        kind: Kind::Trusted,
        list: true,
        default: Default::Value {
            text: "",
            because: "whoever may send such a header chooses the client's address",
        },
        example: "10.0.0.7",
        doc: "Peers whose connections begin with a PROXY protocol header, version 1 or 2, without exception: \
              addresses, networks, or `unix` for every peer on a Unix-socket listener. From all others it is no request.",
        ..PLAIN
    },
    Key {
        name: "max_body",
        kind: Kind::Size,
        range: Some(("1", "1024TiB")),
        default: Default::Value {
            text: "100MiB",
            because: "photos and documents pass, and one client cannot fill the disk",
        },
        example: "1GiB",
        doc: "Largest request body; a larger one is answered 413.",
        ..PLAIN
    },
    Key {
        name: "spool_dir",
        kind: Kind::Path,
        default: Default::Value {
            text: "/var/tmp",
            because: "on disk nearly everywhere, where `/tmp` is often memory",
        },
        example: "/srv/spool",
        doc: "Folder for bodies that are too large for memory. The files have no name and go with the process.",
        restart: true,
        ..PLAIN
    },
    Key {
        name: "spool_limit",
        kind: Kind::Size,
        range: Some(("0", "1024TiB")),
        default: Default::Value {
            text: "10GiB",
            because: "a hundred of the largest bodies, and most disks have it to spare",
        },
        example: "2GiB",
        doc: "Bytes that all bodies together may take in `spool_dir`. At the limit, and when the disk itself is \
              full, an upload that needs the disk is answered 503 and an answer goes on at its client's speed.",
        ..PLAIN
    },
    Key {
        name: "memory_limit",
        kind: Kind::Size,
        range: Some(("0", "1024TiB")),
        default: Default::Value {
            text: "256MiB",
            because: "thousands of bodies of usual size, and small beside what the workers take",
        },
        example: "64MiB",
        doc: "Bytes of bodies that the gateway keeps in memory for all requests together. At the limit bodies go to \
              disk however small they are.",
        ..PLAIN
    },
    Key {
        name: "answer_spool",
        kind: Kind::Size,
        range: Some(("0", "1024TiB")),
        default: Default::Value {
            text: "256MiB",
            because: "every usual download frees its slot at once, and no single client can fill the spool",
        },
        example: "1GiB",
        doc: "Bytes of one answer that are kept on disk for a client that reads slowly; with more to say, the \
              application waits for its client.",
        ..PLAIN
    },
    Key {
        name: "max_connections",
        kind: Kind::Number,
        range: Some(("1", "10000000")),
        default: Default::Unset("half of the file descriptors that the process may have"),
        example: "20000",
        doc: "Connections of clients at most. At the limit those that have been idle longest are closed for new ones; \
              if none is idle, a new one is answered 503 and closed at once.",
        ..PLAIN
    },
    Key {
        name: "max_connections_per_client",
        kind: Kind::Number,
        range: Some(("1", "10000000")),
        default: Default::Unset("no such limit: behind one address there may be a whole office"),
        example: "200",
        doc: "Connections of one client address (IPv6: of one /64 network) at most; the next one is answered 503 and \
              closed. It is not for trusted proxies and Unix-socket listeners.",
        ..PLAIN
    },
    Key {
        name: "head_timeout",
        kind: Kind::Duration,
        range: Some(("100ms", "24h")),
        default: Default::Value {
            text: "15s",
            because: "a head is a few packets, also on a bad line",
        },
        example: "5s",
        doc: "From the first byte of a request's head to its last; then the connection is closed.",
        ..PLAIN
    },
    Key {
        name: "idle_timeout",
        kind: Kind::Duration,
        range: Some(("1s", "24h")),
        default: Default::Value {
            text: "75s",
            because: "longer than the 60 s that common balancers keep theirs, so that they close first and \
                      never meet a closed one",
        },
        example: "20s",
        doc: "How long a connection is kept without a request.",
        ..PLAIN
    },
    Key {
        name: "stall_timeout",
        kind: Kind::Duration,
        range: Some(("100ms", "24h")),
        default: Default::Value {
            text: "30s",
            because: "a train's tunnel passes, a client that is gone does not hold its body for long",
        },
        example: "10s",
        doc: "How long a client may be behind with a body, its own or an answer's: the longest pause, and the head \
              start that `min_rate` gives. A late upload is answered 408, a late reader's connection is reset.",
        ..PLAIN
    },
    Key {
        name: "min_rate",
        kind: Kind::Size,
        range: Some(("0", "1GiB")),
        default: Default::Value {
            text: "1KiB",
            because: "slower than any line that people use, faster than those who want to keep us busy",
        },
        example: "240",
        doc: "Bytes per second that a client sends or takes of a body at least. Each byte makes up for the time that it \
              takes at this rate; a client that is `stall_timeout` behind is late. Time in which layby or the \
              application is the one to wait for does not count. With 0 only a pause is too long.",
        ..PLAIN
    },
    Key {
        name: "drain_timeout",
        kind: Kind::Duration,
        range: Some(("0s", "24h")),
        default: Default::Value {
            text: "30s",
            because: "the grace that orchestrators commonly give",
        },
        example: "20s",
        doc: "How long a drain waits for requests that are under way.",
        ..PLAIN
    },
    Key {
        name: "tunnel_timeout",
        kind: Kind::Duration,
        range: Some(("1s", "24h")),
        default: Default::Value {
            text: "10m",
            because: "WebSocket servers ping every half minute or so; what is silent for longer is most likely dead",
        },
        example: "30m",
        doc: "How long a tunnel, which is what a connection becomes after an upgrade such as WebSocket's, may carry \
              nothing either way; then it is closed. Only HTTP upstreams have them.",
        ..PLAIN
    },
    Key {
        name: "drain_delay",
        kind: Kind::Duration,
        range: Some(("0s", "1h")),
        default: Default::Value {
            text: "0s",
            because: "one gateway beside one application; a balancer that looks every few seconds needs as many",
        },
        example: "5s",
        doc: "Before a drain closes the door: `/readyz` is red already, and clients are still let in, until \
              the balancer has seen it.",
        ..PLAIN
    },
    Key {
        name: "log_format",
        kind: Kind::Word(&["text", "json"]),
        default: Default::Value {
            text: "text",
            because: "people read it first; a log collector is set up on purpose",
        },
        example: "json",
        flag: Some("--log-format"),
        restart: true,
        doc: "`text` for people, `json` for log collectors.",
        ..PLAIN
    },
    Key {
        name: "error_pages",
        kind: Kind::Path,
        default: Default::Unset("a line of text"),
        example: "/srv/errors",
        doc: "Folder of the pages that clients get instead of the gateway's own error texts: `503.html`, else \
              `5xx.html`, else `error.html`. In them `{status}`, `{reason}`, `{message}` and `{request_id}` \
              are filled in. Clients that ask for JSON get JSON.",
        ..PLAIN
    },
    Key {
        name: "sendfile_root",
        kind: Kind::Folder,
        list: true,
        default: Default::Unset("`X-Sendfile` is a header like any other"),
        example: "/srv/media",
        doc: "Folders whose files the application may name in `X-Sendfile`, for the gateway to send them in place of \
              the answer's body. From `/` on, or from `./` on.",
        ..PLAIN
    },
    Key {
        name: "http2",
        kind: Kind::Truth,
        default: Default::Value {
            text: "true",
            because: "browsers get a page with all that belongs to it over one connection",
        },
        example: "false",
        doc: "Offer HTTP/2 on the listeners of `[tls]`; each client chooses (ALPN).",
        ..PLAIN
    },
    Key {
        name: "h2c",
        kind: Kind::Truth,
        default: Default::Value {
            text: "false",
            because: "no browser speaks it, and looking for it costs every connection a little",
        },
        example: "true",
        doc: "Take HTTP/2 without TLS from clients that begin with it (prior knowledge), such as balancers, on the \
              listeners of `listen`, beside HTTP/1.",
        ..PLAIN
    },
    Key {
        name: "tls.listen",
        kind: Kind::Listen,
        list: true,
        default: Default::Value {
            text: "",
            because: "it takes a certificate",
        },
        example: "0.0.0.0:8443",
        restart: true,
        doc: "Where clients connect with TLS: addresses with port, or `unix:PATH`. With it, `listen` may be \
              an empty list.",
        ..PLAIN
    },
    Key {
        name: "tls.cert",
        kind: Kind::Path,
        list: true,
        default: Default::Value {
            text: "",
            because: "nobody can guess where certificates are",
        },
        example: "/etc/letsencrypt/live/shop.example/fullchain.pem",
        doc: "Certificates in PEM files, each with the chain below the root. With several, each client gets the first \
              for the name that it asks for (SNI) and with a key that it can use, else the first. Read again when the \
              files change, and on a reload.",
        ..PLAIN
    },
    Key {
        name: "tls.key",
        kind: Kind::Path,
        list: true,
        default: Default::Value {
            text: "",
            because: "nobody can guess where keys are",
        },
        example: "/etc/letsencrypt/live/shop.example/privkey.pem",
        doc: "The private key of each certificate, in the same order, in PEM files.",
        ..PLAIN
    },
    Key {
        name: "tls.min_version",
        kind: Kind::Word(&["1.2", "1.3"]),
        default: Default::Value {
            text: "1.2",
            because: "some clients that still matter know no 1.3, and what is weak in 1.2 is left out",
        },
        example: "1.3",
        doc: "Oldest version of TLS that is spoken.",
        ..PLAIN
    },
    Key {
        name: "tls.client_ca",
        kind: Kind::Path,
        default: Default::Unset("clients are not asked for a certificate"),
        example: "/etc/layby/clients.pem",
        doc: "Clients are asked for a certificate, which one of the authorities in this PEM file must have signed.",
        ..PLAIN
    },
    Key {
        name: "tls.client_auth",
        kind: Kind::Word(&["required", "optional"]),
        default: Default::Value {
            text: "required",
            because: "who asks for certificates mostly wants no one in without",
        },
        example: "optional",
        doc: "Clients without a certificate: with `required` they cannot connect, with `optional` the application \
              decides. A bad certificate is refused in either case. Only with `tls.client_ca`.",
        ..PLAIN
    },
    Key {
        name: "slots.count",
        kind: Kind::Count,
        range: Some(("1", "1024")),
        default: Default::Value {
            text: "8",
            because: "enough to keep a few cores busy, and ten replicas stay below the \
                      100 connections of an untouched PostgreSQL",
        },
        example: "16",
        flag: Some("--slots"),
        restart: true,
        doc: "Worker threads, each with its one database connection; `auto` asks `database.url` \
              how many it allows.",
        ..PLAIN
    },
    Key {
        name: "slots.queue",
        kind: Kind::Number,
        range: Some(("0", "1000000")),
        default: Default::Value {
            text: "1000",
            because: "what 8 slots work off within the queue timeout at 40 ms a request",
        },
        example: "200",
        doc: "Requests that may wait for a slot; the next one is answered 503 at once. With 0 none waits.",
        ..PLAIN
    },
    Key {
        name: "slots.queue_timeout",
        kind: Kind::Duration,
        range: Some(("1ms", "24h")),
        default: Default::Value {
            text: "5s",
            because: "after that people have reloaded, and the work would be for nobody",
        },
        example: "2s",
        doc: "Longest wait for a slot; then 503 with `Retry-After`.",
        ..PLAIN
    },
    Key {
        name: "slots.request_timeout",
        kind: Kind::Duration,
        range: Some(("1ms", "24h")),
        default: Default::Value {
            text: "60s",
            because: "balancers in front give up at about that time",
        },
        example: "90s",
        doc: "From a request's arrival to the head of its answer, parked time included; then 504.",
        ..PLAIN
    },
    Key {
        name: "slots.overdue_grace",
        kind: Kind::Duration,
        range: Some(("1ms", "24h")),
        default: Default::Value {
            text: "30s",
            because: "a query that is merely slow ends by itself, and costs no process",
        },
        example: "10s",
        doc: "How long a slot may go on with a request whose time is over. Then its process gets no new \
              requests, and is replaced when the time and the grace of all its others are over too.",
        ..PLAIN
    },
    Key {
        name: "slots.parked",
        kind: Kind::Number,
        range: Some(("1", "1000000")),
        default: Default::Value {
            text: "10000",
            because: "about half a gigabyte in gateway and workers, at some 50 KiB each",
        },
        example: "2000",
        doc: "Requests running or parked at most; beyond it new ones wait in the queue. \
              Never below `slots.count`.",
        ..PLAIN
    },
    Key {
        name: "slots.parked_bytes",
        kind: Kind::Size,
        range: Some(("64KiB", "1024TiB")),
        default: Default::Value {
            text: "1GiB",
            because: "ten of the largest bodies, or 100 KiB for each of the parked requests",
        },
        example: "512MiB",
        doc: "Bytes that running and parked requests may retain in the gateway's memory; beyond it \
              new requests wait in the queue. As much again may be on its way in, of responses to fetches, and \
              always one `outbound.max_response`: what comes on top fails as too large.",
        ..PLAIN
    },
    Key {
        name: "slots.on_disconnect",
        kind: Kind::Word(&["finish", "cancel"]),
        default: Default::Value {
            text: "finish",
            because: "money may be half moved",
        },
        example: "cancel",
        doc: "When a client leaves after its request has run: `finish` ends only parked GET and HEAD \
              requests, `cancel` ends every parked one.",
        ..PLAIN
    },
    Key {
        name: "workers.app",
        kind: Kind::App,
        default: Default::Unset("no workers of its own"),
        example: "mysite.wsgi:application",
        flag: Some("APP"),
        restart: true,
        doc: "Python application, `module:object`, that `layby run` starts workers for. Without an object \
              it is `application`.",
        ..PLAIN
    },
    Key {
        name: "workers.link",
        kind: Kind::UnixSocket,
        default: Default::Unset("no link socket"),
        example: "unix:/run/layby/link.sock",
        flag: Some("--link"),
        restart: true,
        doc: "Socket that `layby serve` waits on for workers started by somebody else.",
        ..PLAIN
    },
    Key {
        name: "workers.upstream",
        kind: Kind::Upstream,
        default: Default::Unset("no upstream"),
        example: "http://127.0.0.1:9000",
        flag: Some("--upstream"),
        restart: true,
        doc: "HTTP/1.1 application server that `layby serve` hands requests to: `http://HOST:PORT` \
              or `unix:PATH`.",
        ..PLAIN
    },
    Key {
        name: "workers.plans",
        kind: Kind::Truth,
        default: Default::Value {
            text: "false",
            because: "a server must mean it: its answers decide what the gateway fetches",
        },
        example: "true",
        doc: "Whether the server of `workers.upstream` may answer with a plan, which parks its request \
              ([plans.md](plans.md)). Only with `[plans]`.",
        ..PLAIN
    },
    Key {
        name: "workers.processes",
        kind: Kind::Number,
        range: Some(("1", "1024")),
        default: Default::Unset("min(cores, max(1, slots / 4))"),
        example: "2",
        flag: Some("--processes"),
        doc: "Worker processes that share the slots; only with `workers.app`. A parked request resumes in \
              its own process, so each should have several slots.",
        restart: true,
        ..PLAIN
    },
    Key {
        name: "workers.mode",
        kind: Kind::Word(&["auto", "coroutine", "greenlet", "wsgi"]),
        default: Default::Value {
            text: "auto",
            because: "coroutine for Django, wsgi, which is always correct, elsewhere",
        },
        example: "coroutine",
        flag: Some("--mode"),
        doc: "How Python code is suspended; only with `workers.app`.",
        ..PLAIN
    },
    Key {
        name: "workers.python",
        kind: Kind::Path,
        default: Default::Unset(
            "the active virtual environment's, else that of the one that layby lies in, else `python3`",
        ),
        example: "/srv/app/.venv/bin/python",
        flag: Some("--python"),
        doc: "The interpreter; only with `workers.app`.",
        ..PLAIN
    },
    Key {
        name: "workers.max_requests",
        kind: Kind::Number,
        range: Some(("1", "1000000000")),
        default: Default::Unset("any number"),
        example: "10000",
        doc: "A worker process is replaced after so many requests, or up to a fifth fewer, so that processes do not \
              come to it together; only with `workers.app`. None of its requests is lost.",
        ..PLAIN
    },
    Key {
        name: "workers.max_age",
        kind: Kind::Duration,
        range: Some(("1s", "8760h")),
        default: Default::Unset("any age"),
        example: "24h",
        doc: "A worker process is replaced at this age, or up to a fifth sooner; as for `workers.max_requests`.",
        ..PLAIN
    },
    Key {
        name: "workers.max_memory",
        kind: Kind::Size,
        range: Some(("16MiB", "1024TiB")),
        default: Default::Unset("any amount"),
        example: "1GiB",
        doc: "A worker process is replaced when its resident memory is this large, or up to a fifth smaller; as for \
              `workers.max_requests`. At twice as much it is killed at once, with the requests in it.",
        ..PLAIN
    },
    Key {
        name: "workers.thread_locals",
        kind: Kind::Dotted,
        list: true,
        default: Default::Value {
            text: "",
            because: "only the application's authors know theirs",
        },
        example: "myapp.middleware._state",
        doc: "`threading.local` objects that hold request state, as `module.attribute`: they follow a \
              request from slot to slot. Not with `workers.upstream`.",
        ..PLAIN
    },
    Key {
        name: "outbound.allow",
        kind: Kind::Allow,
        list: true,
        default: Default::Value {
            text: "public",
            because: "an application talked into a fetch must not reach internal services",
        },
        example: "api.example.org",
        doc: "Where fetches may go: `public`, names (which may resolve to private addresses), `*.names` \
              (only to public ones), addresses and networks. Replaces the default. Loopback, link-local \
              and metadata addresses only as address or network.",
        ..PLAIN
    },
    Key {
        name: "outbound.timeout",
        kind: Kind::Duration,
        range: Some(("1ms", "24h")),
        default: Default::Value {
            text: "30s",
            because: "slow third parties pass, and half of the request timeout is left",
        },
        example: "10s",
        doc: "Time for a fetch that has no timeout of its own, from start to last byte.",
        ..PLAIN
    },
    Key {
        name: "outbound.max_response",
        kind: Kind::Size,
        range: Some(("1", "1024TiB")),
        default: Default::Value {
            text: "32MiB",
            because: "far above what services answer, far below what hurts",
        },
        example: "8MiB",
        doc: "Largest response to a fetch; a larger one fails.",
        ..PLAIN
    },
    Key {
        name: "outbound.label",
        kind: Kind::Host,
        list: true,
        default: Default::Value {
            text: "",
            because: "every label costs series in the metrics store",
        },
        example: "api.stripe.com",
        doc: "Hosts of origins that get a metric label of their own, at most 100; all others are `other`.",
        restart: true,
        ..PLAIN
    },
    Key {
        name: "database.url",
        kind: Kind::DatabaseUrl,
        default: Default::Unset("layby does not ask the database"),
        example: "postgres://user:password@host:5432/name",
        restart: true,
        doc: "PostgreSQL that the workers use: `slots.count` is computed from it, or checked against it. \
              Never printed.",
        ..PLAIN
    },
    Key {
        name: "database.share",
        kind: Kind::Ratio,
        default: Default::Value {
            text: "1",
            because: "one gateway has the database to itself",
        },
        example: "0.25",
        restart: true,
        doc: "The part of the role's connections that is this gateway's: with four replicas, 0.25. `slots.count = \
              \"auto\"` takes no more, and a fixed count is checked against it.",
        ..PLAIN
    },
    Key {
        name: "access_log.format",
        kind: Kind::Word(&["off", "json", "combined"]),
        default: Default::Value {
            text: "off",
            because: "the application or a balancer often keeps one already",
        },
        example: "json",
        doc: "One line for each request that ended: `json`, with all fields, or `combined`, Apache's format.",
        ..PLAIN
    },
    Key {
        name: "access_log.path",
        kind: Kind::Path,
        default: Default::Unset("standard output"),
        example: "/var/log/layby/access.log",
        doc: "File that lines are added to. SIGUSR1 and a reload open it anew, as `logrotate` needs it.",
        ..PLAIN
    },
    Key {
        name: "access_log.query",
        kind: Kind::Truth,
        default: Default::Value {
            text: "false",
            because: "queries hold tokens and addresses of people, and logs are kept and copied",
        },
        example: "true",
        doc: "Whether lines tell the query of a request and of its referrer.",
        ..PLAIN
    },
    Key {
        name: "compression.algorithms",
        kind: Kind::Word(&["zstd", "br", "gzip"]),
        list: true,
        default: Default::Value {
            text: "",
            because: "off: compressing secrets beside what a client sent tells them (BREACH), and many \
                      applications and networks in front compress already",
        },
        example: "br",
        doc: "How answers are compressed for clients that take it; of what a client likes equally well, the first. \
              Never what is compressed already, parts of files, or answers with `Cache-Control: no-transform`.",
        ..PLAIN
    },
    Key {
        name: "compression.types",
        kind: Kind::MediaType,
        list: true,
        default: Default::Value {
            text: "text/html,text/css,text/plain,text/csv,text/xml,text/javascript,application/javascript,\
                   application/json,application/ld+json,application/problem+json,application/manifest+json,\
                   application/xml,application/rss+xml,application/atom+xml,application/wasm,image/svg+xml",
            because: "what is text, and grows much smaller",
        },
        example: "text/html",
        doc: "Media types of answers worth compressing.",
        ..PLAIN
    },
    Key {
        name: "compression.min_size",
        kind: Kind::Size,
        range: Some(("1", "1024TiB")),
        default: Default::Value {
            text: "1KiB",
            because: "below that both fit one packet",
        },
        example: "4KiB",
        doc: "Smallest answer worth compressing. One whose length is not known beforehand counts as large.",
        ..PLAIN
    },
    Key {
        name: "compression.level",
        kind: Kind::Word(&["fast", "balanced", "small"]),
        default: Default::Value {
            text: "balanced",
            because: "`small` takes several times the computing for a few percent",
        },
        example: "fast",
        doc: "What to save: time or bytes.",
        ..PLAIN
    },
    Key {
        name: "tracing.otlp_endpoint",
        kind: Kind::HttpUrl,
        default: Default::Unset("no spans are made, and nothing is sent"),
        example: "http://127.0.0.1:4318",
        restart: true,
        doc: "The OpenTelemetry collector that spans are sent to ([tracing](tracing.md)). With `http/protobuf` \
              `/v1/traces` is added unless the path ends so. Also from the environment, where it is the weakest: \
              `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT`.",
        ..PLAIN
    },
    Key {
        name: "tracing.protocol",
        kind: Kind::Word(&["http/protobuf", "grpc"]),
        default: Default::Value {
            text: "http/protobuf",
            because: "every collector takes it, and so does every proxy on the way",
        },
        example: "grpc",
        restart: true,
        doc: "How spans are sent. Collectors usually have port 4318 for `http/protobuf`, and 4317 for `grpc`. Also \
              `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`, `OTEL_EXPORTER_OTLP_PROTOCOL`.",
        ..PLAIN
    },
    Key {
        name: "tracing.headers",
        kind: Kind::SecretHeader,
        list: true,
        default: Default::Unset("none"),
        example: "x-api-key: 7f3a",
        restart: true,
        doc: "Headers that spans are sent with, most often a key. Also `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, \
              `OTEL_EXPORTER_OTLP_HEADERS`, as `name=value`.",
        ..PLAIN
    },
    Key {
        name: "tracing.sample",
        kind: Kind::Ratio,
        default: Default::Value {
            text: "1",
            because: "every request can be looked up; a busy service says less",
        },
        example: "0.05",
        doc: "The share of requests that are traced, of those that come without a `traceparent`. With one, what it says \
              is done. Also from the ratio of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.",
        ..PLAIN
    },
    Key {
        name: "tracing.service_name",
        kind: Kind::Title,
        default: Default::Value {
            text: "layby",
            because: "the gateway is a service of its own beside the application",
        },
        example: "shop-gateway",
        restart: true,
        doc: "`service.name` of the spans. Also `OTEL_SERVICE_NAME`.",
        ..PLAIN
    },
    Key {
        name: "tracing.resource_attributes",
        kind: Kind::Attribute,
        list: true,
        default: Default::Unset("none"),
        example: "deployment.environment.name=staging",
        restart: true,
        doc: "What else is to be said of the gateway with every span. Also `OTEL_RESOURCE_ATTRIBUTES`.",
        ..PLAIN
    },
    Key {
        name: "plans.listen",
        kind: Kind::Listen,
        default: Default::Unset("no plans over HTTP"),
        example: "unix:/run/layby/plans.sock",
        restart: true,
        doc: "Where an application posts plans to `/v1/fetch` and waits for their results: `unix:PATH`, or an address of \
              this machine; not `systemd`. Only with `plans.secret` ([plans.md](plans.md)).",
        ..PLAIN
    },
    Key {
        name: "plans.secret",
        kind: Kind::SharedSecret,
        default: Default::Unset("no plans over HTTP"),
        example: "write-32-random-characters-or-more",
        doc: "What the gateway and the application know, and nobody else: at least 32 characters of ASCII, without \
              blanks. It signs what the gateway posts to `/.layby/`, and lets in who posts to `/v1/fetch`. Never printed.",
        ..PLAIN
    },
];

/// The keys of one `[[route]]`. They are in the file only: an environment variable holds no list of sections.
pub(super) const ROUTE: &[Key] = &[
    Key {
        name: "route.path",
        kind: Kind::RoutePath,
        default: Default::Unset("a mistake: a route is for some path"),
        example: "/upload",
        doc: "Which requests the route is for: this path and all below it. `/upload` stands for `/upload` and \
              `/upload/photo`, not for `/uploads`; `/` for every path. Compared with the decoded path.",
        ..PLAIN
    },
    Key {
        name: "route.host",
        kind: Kind::Host,
        default: Default::Unset("every host"),
        example: "shop.example.org",
        doc: "Only requests for this host. Every port counts.",
        ..PLAIN
    },
    Key {
        name: "route.methods",
        kind: Kind::Method,
        list: true,
        default: Default::Unset("every method"),
        example: "POST",
        doc: "Only requests with one of these methods.",
        ..PLAIN
    },
    Key {
        name: "route.body",
        kind: Kind::Word(&["buffered", "lazy"]),
        default: Default::Value {
            text: "buffered",
            because: "no client can keep a slot waiting with a slow upload",
        },
        example: "lazy",
        doc: "When a request's body is read: `buffered`, before the request asks for a slot, or `lazy`, when the \
              application asks for it (`await layby.read_uploaded_file(…)`). With `lazy` the application can refuse \
              an upload that then is never read, and `Expect: 100-continue` is answered only when the body is wanted.",
        ..PLAIN
    },
    Key {
        name: "route.max_body",
        kind: Kind::Size,
        range: Some(("1", "1024TiB")),
        default: Default::Unset("that at the top level"),
        example: "5GiB",
        doc: "Largest request body on this route; a larger one is answered 413.",
        ..PLAIN
    },
    Key {
        name: "route.upstream",
        kind: Kind::Upstream,
        default: Default::Unset("the workers of the whole gateway"),
        example: "http://127.0.0.1:9000",
        doc: "HTTP/1.1 server that these requests are handed to, `http://HOST:PORT` or `unix:PATH`, with a queue and \
              connections of its own: an ASGI or Node service beside the workers. Routes with the same upstream share \
              it. Not with `body = \"lazy\"`.",
        ..PLAIN
    },
    Key {
        name: "route.connections",
        kind: Kind::Number,
        range: Some(("1", "10000")),
        default: Default::Value {
            text: "64",
            because: "servers that need no thread for each request manage many, and a burst still waits here \
                      rather than there",
        },
        example: "200",
        doc: "Requests, and tunnels, at once to the upstream of this route, on a connection each; more wait in its \
              queue, bounded by `slots.queue` and `slots.queue_timeout`. At or below what the server itself works on \
              at once.",
        ..PLAIN
    },
    Key {
        name: "route.plans",
        kind: Kind::Truth,
        default: Default::Value {
            text: "false",
            because: "a server must mean it: its answers decide what the gateway fetches",
        },
        example: "true",
        doc: "Whether the server of `upstream` may answer with a plan, which parks its request \
              ([plans.md](plans.md)). Only with `[plans]`.",
        ..PLAIN
    },
];

/// The keys of one `[[static]]`, in the file only as well.
pub(super) const STATIC: &[Key] = &[
    Key {
        name: "static.path",
        kind: Kind::RoutePath,
        default: Default::Unset("a mistake: files stand below some path"),
        example: "/static",
        doc: "Where the files are for clients: this path and all below it, as for a route. Where a `[[route]]` with a \
              longer path fits a request, the request goes there.",
        ..PLAIN
    },
    Key {
        name: "static.root",
        kind: Kind::Folder,
        default: Default::Unset("a mistake: files are in some folder"),
        example: "/srv/app/staticfiles",
        doc: "The folder with the files, from `/` on, or from `./` on: where layby was started. It may be missing at \
              the start. Links that lead out of it are not followed, hidden files not served.",
        ..PLAIN
    },
    Key {
        name: "static.index",
        kind: Kind::FileName,
        default: Default::Unset("a folder is answered 404"),
        example: "index.html",
        doc: "The file that stands for its folder. The folder's name without a slash at its end is redirected to the one \
              with it.",
        ..PLAIN
    },
    Key {
        name: "static.fallthrough",
        kind: Kind::Truth,
        default: Default::Value {
            text: "false",
            because: "a file that is missing is no work for a slot",
        },
        example: "true",
        doc: "Whether requests that there is no file for go to the application, other methods than GET and HEAD too. \
              Else they are answered 404 and 405.",
        ..PLAIN
    },
    Key {
        name: "static.internal",
        kind: Kind::Truth,
        default: Default::Value {
            text: "false",
            because: "most files are for everybody",
        },
        example: "true",
        doc: "For files that only the application gives away, with `X-Accel-Redirect: PATH/FILE` in its answer. Clients \
              are answered 404.",
        ..PLAIN
    },
    Key {
        name: "static.cache_control",
        kind: Kind::HeaderValue,
        default: Default::Unset("caches decide by the age of the file"),
        example: "public, max-age=3600",
        doc: "`Cache-Control` of the files, but for those that are `immutable`.",
        ..PLAIN
    },
    Key {
        name: "static.immutable",
        kind: Kind::Word(&["none", "hashed", "all"]),
        default: Default::Value {
            text: "none",
            because: "what a browser keeps for a year cannot be called back",
        },
        example: "hashed",
        doc: "Files whose content never changes, and that caches keep for a year: those with a `hashed` name, as \
              Django's `ManifestStaticFilesStorage` and bundlers make them (`base.4f5a2e1b3c9d.css`), or `all`.",
        ..PLAIN
    },
    Key {
        name: "static.precompressed",
        kind: Kind::Word(&["zstd", "br", "gzip"]),
        list: true,
        default: Default::Value {
            text: "",
            because: "each costs a look for every file",
        },
        example: "gzip",
        doc: "Compressed siblings that are sent to clients that take them: `a.css.zst`, `a.css.br`, `a.css.gz`, in the \
              order given. Never one that is older than the file itself.",
        ..PLAIN
    },
    Key {
        name: "static.headers",
        kind: Kind::Header,
        list: true,
        default: Default::Unset("none"),
        example: "Access-Control-Allow-Origin: *",
        doc: "Headers that every file is sent with besides.",
        ..PLAIN
    },
];

/// What lists of sections are called in the file.
pub(super) const ROUTES: &str = "route";
pub(super) const STATICS: &str = "static";

/// The sections that there may be several of, in the file only, and their keys.
pub(super) const LISTS: &[(&str, &[Key])] = &[(ROUTES, ROUTE), (STATICS, STATIC)];

pub(super) const SECTIONS: &[&str] = &[
    "tls",
    "slots",
    "workers",
    "outbound",
    "database",
    "access_log",
    "compression",
    "tracing",
    "plans",
];

/// What other servers call a key, and what it is here.
const KNOWN_ELSEWHERE: &[(&str, &str)] = &[
    ("access_log.file", "access_log.path"),
    ("access_logfile", "access_log.path"),
    ("address", "listen"),
    ("bind", "listen"),
    ("client_max_body_size", "max_body"),
    ("client_body_timeout", "stall_timeout"),
    ("client_header_timeout", "head_timeout"),
    ("keepalive_timeout", "idle_timeout"),
    ("maxconn", "max_connections"),
    ("send_timeout", "stall_timeout"),
    ("worker_connections", "max_connections"),
    ("forwarded_allow_ips", "trusted_proxies"),
    ("graceful_timeout", "drain_timeout"),
    ("log", "log_format"),
    ("metrics", "admin"),
    ("tmp_dir", "spool_dir"),
    ("threads", "slots.count"),
    ("timeout", "slots.request_timeout"),
    ("workers.count", "workers.processes"),
    ("workers.threads", "slots.count"),
    ("workers.timeout", "slots.request_timeout"),
    ("workers.max_requests_jitter", "workers.max_requests"),
    ("workers.max_rss", "workers.max_memory"),
    ("workers.lifetime", "workers.max_age"),
    ("workers.module", "workers.app"),
    ("workers.socket", "workers.link"),
    ("workers.url", "workers.upstream"),
    ("slots.max_parked", "slots.parked"),
    ("slots.max_queue", "slots.queue"),
    ("slots.size", "slots.count"),
    ("slots.threads", "slots.count"),
    ("slots.timeout", "slots.request_timeout"),
    ("outbound.hosts", "outbound.allow"),
    ("outbound.labels", "outbound.label"),
    ("database.dsn", "database.url"),
    ("static.prefix", "static.path"),
    ("static.location", "static.path"),
    ("static.url", "static.path"),
    ("static.alias", "static.root"),
    ("static.folder", "static.root"),
    ("static.dir", "static.root"),
    ("static.add_header", "static.headers"),
    ("static.gzip_static", "static.precompressed"),
    ("compression.enabled", "compression.algorithms"),
    ("compression.min_length", "compression.min_size"),
    ("compression.minimum_size", "compression.min_size"),
    ("gzip", "compression.algorithms"),
    ("gzip_types", "compression.types"),
    ("gzip_min_length", "compression.min_size"),
    ("tls.certs", "tls.cert"),
    ("tls.certificate", "tls.cert"),
    ("tls.keys", "tls.key"),
    ("tls.private_key", "tls.key"),
    ("tls.ca", "tls.client_ca"),
    ("tls.protocols", "tls.min_version"),
    ("tracing.endpoint", "tracing.otlp_endpoint"),
    ("tracing.url", "tracing.otlp_endpoint"),
    ("tracing.ratio", "tracing.sample"),
    ("tracing.sampling", "tracing.sample"),
    ("tracing.sample_rate", "tracing.sample"),
    ("tracing.service", "tracing.service_name"),
    ("tracing.name", "tracing.service_name"),
    ("otlp_endpoint", "tracing.otlp_endpoint"),
    ("route.prefix", "route.path"),
    ("route.location", "route.path"),
    ("route.method", "route.methods"),
    ("route.hosts", "route.host"),
    ("route.client_max_body_size", "route.max_body"),
    ("route.proxy_pass", "route.upstream"),
    ("route.url", "route.upstream"),
    ("route.slots", "route.connections"),
    ("route.max_connections", "route.connections"),
];

impl Key {
    /// The section, empty at the top level.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// The name within its section.
    pub fn short(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, key)| key)
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("LAYBY_{}", self.name.replace('.', "_").to_uppercase())
    }

    pub fn is_secret(&self) -> bool {
        matches!(
            self.kind,
            Kind::DatabaseUrl | Kind::SecretHeader | Kind::SharedSecret
        )
    }
}

pub(super) fn find(name: &str) -> Option<&'static Key> {
    let mut all = KEYS.iter().chain(LISTS.iter().flat_map(|(_, keys)| *keys));
    all.find(|key| key.name == name)
}

/// The one of these keys that somebody who wrote this unknown name most likely meant.
pub(super) fn meant_among(keys: &'static [Key], name: &str) -> Option<&'static str> {
    known_elsewhere(name).or_else(|| nearest(name, keys.iter().map(|key| key.name)))
}

fn known_elsewhere(name: &str) -> Option<&'static str> {
    let elsewhere = KNOWN_ELSEWHERE.iter().find(|(known, _)| *known == name);
    elsewhere.map(|(_, key)| *key)
}

/// The key that somebody who wrote this unknown name most likely meant.
pub(super) fn meant_by(name: &str) -> Option<&'static str> {
    if let Some(key) = known_elsewhere(name) {
        return Some(key);
    }
    // The right key in the wrong section, before a similar one in the right section.
    let last = name.rsplit('.').next().unwrap_or(name);
    let mut same = KEYS.iter().filter(|key| key.short() == last);
    if let (Some(key), None) = (same.next(), same.next()) {
        return Some(key.name);
    }
    nearest(name, KEYS.iter().map(|key| key.name))
}

/// The candidate that a slip of the keyboard turns into `word`, if there is one.
pub(super) fn nearest<'c>(
    word: &str,
    candidates: impl Iterator<Item = &'c str>,
) -> Option<&'c str> {
    let tolerated = 1 + word.len() / 6;
    candidates
        .map(|candidate| (slips(word, candidate), candidate))
        .filter(|(slips, _)| *slips <= tolerated)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// Letters added, left out, replaced, or swapped with their neighbour between two words.
fn slips(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}
