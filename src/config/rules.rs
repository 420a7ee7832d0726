//! Rules between keys: which values make a configuration together?
//!
//! They are judged only if all of the file could be read, and where the keys themselves are
//! right, so that one mistake is reported once.

use std::net::SocketAddr;
use std::path::PathBuf;

use url::Url;

use super::addresses::{overlap, own};
use super::effective::Entry;
use super::keys::ROUTES;
use super::mistakes::{Mistake, Place};
use super::read::Reader;
use super::values::{
    AppName, Attribute, Dotted, Folder, Host, HttpUrl, MediaType, SharedSecret, Size, Title,
    UnixSocket,
};
use super::{
    AccessLog, App, Bodies, Certificate, Clients, Compression, Config, Count, Database, Listen,
    OtlpProtocol, Outbound, Plans, Ratio, Recycle, Role, Secret, Slots, Source, Tls, Tracing,
    Upstream, Workers,
};

pub(super) const CHOICES: [&str; 3] = ["workers.app", "workers.link", "workers.upstream"];

/// What says something beside `workers.app` only.
pub(super) const BESIDE_APP: [&str; 6] = [
    "workers.processes",
    "workers.mode",
    "workers.python",
    "workers.max_requests",
    "workers.max_age",
    "workers.max_memory",
];

/// The most hosts with a metric label of their own.
const MOST_LABELS: usize = 100;

/// Where collectors take spans by HTTP, below their address.
const TRACES: &str = "/v1/traces";

/// The port of collectors that speak gRPC.
const GRPC_PORT: u16 = 4317;

impl Reader {
    /// The configuration; none only if there is a mistake.
    pub fn config(&mut self, role: Role) -> Option<Config> {
        let listen = self.list("listen");
        let admin: SocketAddr = self.one("admin");
        let probes = self.optional("probes");
        let trusted_proxies = self.list("trusted_proxies");
        let forwarding_headers = self.one("forwarding_headers");
        let proxy_protocol = self.list("proxy_protocol");
        let max_body = self.one::<Size>("max_body").0;
        let spool_dir = self.one("spool_dir");
        let bodies = Bodies {
            memory_limit: self.one::<Size>("memory_limit").0,
            spool_limit: self.one::<Size>("spool_limit").0,
            answer_spool: self.one::<Size>("answer_spool").0,
        };
        let clients = Clients {
            max_connections: self.optional("max_connections"),
            max_connections_per_client: self.optional("max_connections_per_client"),
            head_timeout: self.one("head_timeout"),
            idle_timeout: self.one("idle_timeout"),
            stall_timeout: self.one("stall_timeout"),
            min_rate: self.one::<Size>("min_rate").0,
        };
        let drain_timeout = self.one("drain_timeout");
        let tunnel_timeout = self.one("tunnel_timeout");
        let drain_delay = self.one("drain_delay");
        let log_format = self.one("log_format");
        let error_pages = self.optional("error_pages");
        let sendfile_root = self.list("sendfile_root");
        let sendfile_root = sendfile_root.into_iter().map(|Folder(path)| path).collect();
        let http2 = self.one("http2");
        let h2c = self.one("h2c");
        let routes = self.routes();
        let mounts = self.mounts();
        let tls = self.tls();
        let slots = Slots {
            count: self.one("slots.count"),
            queue: self.one("slots.queue"),
            queue_timeout: self.one("slots.queue_timeout"),
            request_timeout: self.one("slots.request_timeout"),
            overdue_grace: self.one("slots.overdue_grace"),
            parked: self.one("slots.parked"),
            parked_bytes: self.one::<Size>("slots.parked_bytes").0,
            on_disconnect: self.one("slots.on_disconnect"),
        };
        let workers = self.workers(role);
        if let Some(Source::Upstream(server)) = workers.as_ref().map(|it| &it.source) {
            self.check_beside(server);
        }
        let allow = self.list("outbound.allow");
        let timeout = self.one("outbound.timeout");
        let max_response = self.one::<Size>("outbound.max_response").0;
        let outbound = Outbound {
            allow,
            timeout,
            max_response,
            max_held: slots.parked_bytes.max(max_response),
            label: self
                .list("outbound.label")
                .into_iter()
                .map(|Host(name)| name)
                .collect(),
        };
        let url: Option<Secret> = self.optional("database.url");
        let share: Ratio = self.one("database.share");
        if share.0 == 0.0 {
            let what = "leaves no connection; write a number above 0";
            self.blame("database.share", self.sentence("database.share", what));
        }
        let database = url.map(|url| Database { url, share });
        let types = self.list("compression.types").into_iter();
        let compression = Compression {
            algorithms: self.list("compression.algorithms"),
            types: types.map(|MediaType(media)| media).collect(),
            min_size: self.one::<Size>("compression.min_size").0,
            level: self.one("compression.level"),
        };
        let access_log = AccessLog {
            format: self.one("access_log.format"),
            path: self.optional("access_log.path"),
            query: self.one("access_log.query"),
        };

        let tracing = self.tracing();
        let plans = self.plans();
        if outbound.label.len() > MOST_LABELS {
            let text = format!("too many hosts; write at most {MOST_LABELS}");
            self.blame("outbound.label", text);
        }
        if self.complete {
            self.check_slots(&slots, workers.as_ref(), database.as_ref());
            let own = addresses(&listen, &tls, admin, probes, plans.as_ref());
            let source = workers.as_ref().map(|workers| &workers.source);
            self.check_addresses(own, source);
            if plans.is_none() {
                self.check_planless();
            }
        }
        if !admin.ip().is_loopback() {
            let text = format!(
                "{admin} shows other hosts what requests there are; probes is enough for scrapers and kubelets"
            );
            let warning = Mistake::new(self.place("admin"), "admin", text);
            self.warnings.push(warning.to_string());
        }
        Some(Config {
            listen,
            admin,
            probes,
            trusted_proxies,
            forwarding_headers,
            proxy_protocol,
            max_body,
            spool_dir,
            bodies,
            clients,
            drain_timeout,
            tunnel_timeout,
            drain_delay,
            log_format,
            http2,
            h2c,
            tls,
            slots,
            workers: workers?,
            outbound,
            database,
            access_log,
            error_pages,
            compression,
            tracing,
            plans,
            sendfile_root,
            routes,
            mounts,
        })
    }

    fn tracing(&mut self) -> Tracing {
        let endpoint: Option<HttpUrl> = self.optional("tracing.otlp_endpoint");
        let protocol = self.one("tracing.protocol");
        if let Some(HttpUrl(url)) = &endpoint
            && url.port() == Some(GRPC_PORT)
            && protocol == OtlpProtocol::Http
        {
            let text =
                "port 4317 is usually for grpc; write it as tracing.protocol, or take port 4318";
            let place = self.place("tracing.otlp_endpoint");
            let warning = Mistake::new(place, "tracing.otlp_endpoint", text);
            self.warnings.push(warning.to_string());
        }
        let attributes = self.list("tracing.resource_attributes").into_iter();
        Tracing {
            endpoint: endpoint.map(|HttpUrl(url)| match protocol {
                OtlpProtocol::Http => for_traces(url),
                OtlpProtocol::Grpc => url,
            }),
            protocol,
            headers: self.list("tracing.headers"),
            sample: self.one("tracing.sample"),
            service_name: self.one::<Title>("tracing.service_name").0,
            resource_attributes: attributes
                .map(|Attribute(name, value)| (name, value))
                .collect(),
        }
    }

    /// Both keys or neither.
    fn plans(&mut self) -> Option<Plans> {
        let listen: Option<Listen> = self.optional("plans.listen");
        let secret: Option<SharedSecret> = self.optional("plans.secret");
        match &listen {
            Some(Listen::Systemd(_)) => {
                let text =
                    "is not for sockets of systemd; write unix:PATH, or an address of this machine";
                self.blame("plans.listen", text);
            }
            Some(Listen::Tcp(address)) if !address.ip().is_loopback() => {
                let text = format!(
                    "{address} lets other hosts try the secret, which nothing encrypts; write unix:PATH, or an \
                     address of this machine"
                );
                let warning = Mistake::new(self.place("plans.listen"), "plans.listen", text);
                self.warnings.push(warning.to_string());
            }
            _ => {}
        }
        let right = |key| self.complete && self.is_right(key);
        let missing = match (&listen, &secret) {
            (Some(_), None) if right("plans.secret") => Some(("plans.listen", "plans.secret")),
            (None, Some(_)) if right("plans.listen") => Some(("plans.secret", "plans.listen")),
            _ => None,
        };
        if let Some((given, missing)) = missing {
            self.blame(given, format!("says nothing without {missing}; set both"));
        }
        Some(Plans {
            listen: listen?,
            secret: secret.map(|SharedSecret(text)| Secret(text))?,
        })
    }

    /// Nothing signs what a server is to resume by.
    fn check_planless(&mut self) {
        const TEXT: &str = "needs [plans]; set plans.listen and plans.secret";
        // One mistake is said once.
        if !self.is_right("plans.listen") || !self.is_right("plans.secret") {
            return;
        }
        let in_force =
            |entry: &Entry| entry.key == "workers.plans" && entry.value.as_deref() == Some("true");
        if self.entries.iter().any(in_force) && self.is_right("workers.plans") {
            self.blame("workers.plans", TEXT);
        }
        let mut mistakes = Vec::new();
        for table in self.lists.get(ROUTES).into_iter().flatten() {
            if table.layer.contains_key("route.upstream")
                && let Some(given) = table.layer.get("route.plans")
                && given.items.first().is_some_and(|item| item.text == "true")
            {
                mistakes.push(Mistake::new(given.place.clone(), "route.plans", TEXT));
            }
        }
        self.mistakes.extend(mistakes);
    }

    fn tls(&mut self) -> Tls {
        let listen: Vec<Listen> = self.list("tls.listen");
        let certs: Vec<PathBuf> = self.list("tls.cert");
        let keys: Vec<PathBuf> = self.list("tls.key");
        let right = self.complete && self.is_right("tls.cert") && self.is_right("tls.key");
        if listen.is_empty() || !right {
            // Nobody asks for them.
        } else if certs.len() != keys.len() {
            let text = format!(
                "there are {} for {} in tls.cert; write one for each, in the same order",
                keys.len(),
                certs.len()
            );
            self.blame("tls.key", text);
        } else if certs.is_empty() {
            let text = "takes a certificate; set tls.cert and tls.key";
            self.blame("tls.listen", text);
        }
        let pairs = certs.into_iter().zip(keys);
        Tls {
            listen,
            certificates: pairs.map(|(cert, key)| Certificate { cert, key }).collect(),
            min_version: self.one("tls.min_version"),
            client_ca: self.optional("tls.client_ca"),
            client_auth: self.one("tls.client_auth"),
        }
    }

    /// The three keys are one choice: a stronger source makes it anew, with the keys that
    /// only make sense beside it.
    fn workers(&mut self, role: Role) -> Option<Workers> {
        let app: Option<AppName> = self.optional("workers.app");
        let link: Option<UnixSocket> = self.optional("workers.link");
        let upstream: Option<Upstream> = self.optional("workers.upstream");
        let plans = self.one("workers.plans");
        let processes = self.optional("workers.processes");
        let mode = self.one("workers.mode");
        let python = self.optional("workers.python");
        let recycle = Recycle {
            max_requests: self.optional("workers.max_requests"),
            max_age: self.optional("workers.max_age"),
            max_memory: self
                .optional::<Size>("workers.max_memory")
                .map(|size| size.0),
        };
        let thread_locals = self.list("workers.thread_locals");

        let (chosen, layer) = self.chosen(role)?;
        self.check_role(role, chosen);
        let mut idle: Vec<&'static str> =
            CHOICES.into_iter().filter(|key| *key != chosen).collect();
        if chosen != "workers.app" {
            idle.extend(BESIDE_APP);
        }
        match chosen {
            "workers.upstream" => idle.push("workers.thread_locals"),
            _ => idle.push("workers.plans"),
        }
        for key in idle {
            self.entries.retain(|entry| entry.key != key);
            let mut as_strong = self.layers[layer..].iter();
            if !CHOICES.contains(&key) && as_strong.any(|layer| layer.contains_key(key)) {
                self.blame(key, format!("says nothing beside {chosen}; remove it"));
            }
        }

        let source = match chosen {
            "workers.app" => Source::App(App {
                app: app?.0,
                processes,
                mode,
                python,
                recycle,
            }),
            "workers.link" => Source::Link(link?.0),
            _ => Source::Upstream(upstream?),
        };
        Some(Workers {
            plans: plans && chosen == "workers.upstream",
            source,
            thread_locals: thread_locals.into_iter().map(|Dotted(name)| name).collect(),
        })
    }

    /// The one of the three keys that is in force, and the layer that chose it.
    fn chosen(&mut self, role: Role) -> Option<(&'static str, usize)> {
        for (number, layer) in self.layers.iter().enumerate().rev() {
            let given = CHOICES
                .iter()
                .filter_map(|key| Some((*key, layer.get(key)?)));
            let given: Vec<_> = given.collect();
            if let [(first, one), (second, other), ..] = given[..] {
                let text = format!(
                    "conflicts with {first} ({}); keep exactly one of app, link and upstream",
                    one.place
                );
                let mistake = Mistake::new(other.place.clone(), second, text);
                self.mistakes.push(mistake);
                return None;
            }
            if let [(key, _)] = given[..] {
                return Some((key, number));
            }
        }
        if self.complete {
            let write = match role {
                Role::Run => "give APP (module:object) or set workers.app",
                Role::Serve => "give --link or --upstream, or set workers.link or workers.upstream",
                Role::Any => {
                    "give APP, --link or --upstream, or set one of workers.app, workers.link \
                              and workers.upstream"
                }
            };
            self.mistakes.push(Mistake {
                place: None,
                key: Some("workers".to_owned()),
                text: format!("nothing says where workers come from; {write}"),
            });
        }
        None
    }

    fn check_role(&mut self, role: Role, chosen: &'static str) {
        let text = match (role, chosen) {
            (Role::Run, "workers.link" | "workers.upstream") => {
                "is not for `layby run`; give APP, or use `layby serve`"
            }
            (Role::Serve, "workers.app") => {
                "is not for `layby serve`; give --link or --upstream, or use `layby run`"
            }
            _ => return,
        };
        self.blame(chosen, text);
    }

    fn check_slots(
        &mut self,
        slots: &Slots,
        workers: Option<&Workers>,
        database: Option<&Database>,
    ) {
        if !self.is_right("slots.count") {
            return;
        }
        let count = match slots.count {
            Count::Fixed(count) => usize::from(count),
            Count::Auto if database.is_none() && self.is_right("database.url") => {
                let what = "needs the database's limits; set database.url, or write a number";
                return self.blame("slots.count", self.sentence("slots.count", what));
            }
            Count::Auto => return,
        };
        let set = format!("slots.count is {count} ({})", self.place("slots.count"));
        if slots.parked < count && self.is_right("slots.parked") {
            let what = format!("is too small, {set}; write {count} or more");
            self.blame("slots.parked", self.sentence("slots.parked", &what));
        }
        if let Some(Source::App(app)) = workers.map(|workers| &workers.source)
            && app
                .processes
                .is_some_and(|number| usize::from(number) > count)
        {
            let key = "workers.processes";
            let what = format!("is more than the slots, {set}; write at most {count}");
            self.blame(key, self.sentence(key, &what));
        }
    }

    fn check_addresses(
        &mut self,
        mut addresses: Vec<(&'static str, Listen)>,
        source: Option<&Source>,
    ) {
        if addresses.iter().all(|(key, _)| !key.ends_with("listen")) {
            self.blame("listen", "is empty; write at least one address");
        }
        addresses.retain(|(key, _)| self.is_right(key));
        if let Some(Source::Upstream(server)) = source
            && let Some((other, _)) = own(server, &addresses)
        {
            let server = server.to_string();
            let server = server.trim_start_matches("http://");
            let text = format!("{server} is taken by {other} already; write another");
            self.blame("workers.upstream", text);
        }
        self.check_elsewhere(&addresses);
        if let Some(Source::Link(path)) = source {
            addresses.push(("workers.link", Listen::Unix(path.clone())));
        }
        for (number, (key, address)) in addresses.iter().enumerate() {
            let mut before = addresses[..number].iter();
            if let Some((other, _)) = before.find(|(_, other)| overlap(address, other)) {
                // A default is nobody's mistake.
                let (key, other) = match self.place(key) {
                    Place::Default => (other, key),
                    _ => (key, other),
                };
                let text = format!("{address} is taken by {other} already; write another");
                self.blame(key, text);
            }
        }
    }
}

/// Where a collector takes spans.
fn for_traces(mut url: Url) -> Url {
    let path = url.path().trim_end_matches('/');
    if !path.ends_with(TRACES) {
        let path = format!("{path}{TRACES}");
        url.set_path(&path);
    }
    url
}

/// Every address where clients or people find the gateway, and the key it comes from.
fn addresses(
    listen: &[Listen],
    tls: &Tls,
    admin: SocketAddr,
    probes: Option<SocketAddr>,
    plans: Option<&Plans>,
) -> Vec<(&'static str, Listen)> {
    let mut all: Vec<_> = listen.iter().map(|one| ("listen", one.clone())).collect();
    all.extend(tls.listen.iter().map(|one| ("tls.listen", one.clone())));
    all.push(("admin", Listen::Tcp(admin)));
    all.extend(probes.map(|address| ("probes", Listen::Tcp(address))));
    all.extend(plans.map(|plans| ("plans.listen", plans.listen.clone())));
    all
}
