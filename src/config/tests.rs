use std::path::Path;

use proptest::prelude::*;

use super::keys::{Default, KEYS, Key, Kind, LISTS, ROUTE, SECTIONS, STATIC};
use super::values::{Size, Value};
use super::*;

fn env(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    let pair = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
    variables.iter().map(pair).collect()
}

fn load(text: &str, sources: &Sources) -> Result<Loaded, Mistakes> {
    read::resolve(Ok(Some(file::File::new("layby.toml", text))), sources)
}

fn mistakes(text: &str) -> String {
    match Config::from_toml(text) {
        Ok(loaded) => panic!("valid: {loaded:?}"),
        Err(mistakes) => mistakes.to_string(),
    }
}

/// The mistake in a file that is right but for this line.
fn mistake(line: &str) -> String {
    let base = match line.starts_with("workers") {
        true => "",
        false => "\nworkers.app = \"base\"",
    };
    mistakes(&format!("{line}{base}"))
}

/// The text with the sections that there are in place of the word for them.
fn with_sections(text: &str) -> String {
    text.replace(
        "SECTIONS",
        &format!("{}, route, static", SECTIONS.join(", ")),
    )
}

fn in_file(key: &Key) -> String {
    let bare = matches!(
        key.kind,
        Kind::Number | Kind::Count | Kind::Truth | Kind::Ratio
    );
    match bare {
        true => format!("{} = {}", key.name, key.example),
        false => format!("{} = {:?}", key.name, key.example),
    }
}

/// One key of the section is nothing without the other.
const PLANS: &str = "workers.app = \"base\"\nplans.listen = \"unix:a\"\nplans.secret = \"01234567890123456789012345678901\"";

/// What has to be set too, so that a key makes sense.
fn beside(key: &Key) -> &'static str {
    match key.name {
        "workers.app" | "workers.link" | "workers.upstream" => "",
        "workers.plans" => {
            "\nworkers.upstream = \"unix:a\"\nplans.listen = \"unix:b\"\nplans.secret = \"01234567890123456789012345678901\""
        }
        "plans.listen" => {
            "\nworkers.app = \"base\"\nplans.secret = \"01234567890123456789012345678901\""
        }
        "plans.secret" => "\nworkers.app = \"base\"\nplans.listen = \"unix:a\"",
        "tls.listen" => "\nworkers.app = \"base\"\ntls.cert = \"cert\"\ntls.key = \"key\"",
        "database.share" => "\nworkers.app = \"base\"\ndatabase.url = \"postgres://db/shop\"",
        _ => "\nworkers.app = \"base\"",
    }
}

const SAMPLE: &str = r#"
listen = "0.0.0.0:8000"            # or a list; "unix:/run/layby/http.sock"
admin  = "127.0.0.1:9180"
probes = "0.0.0.0:9181"
trusted_proxies = ["10.0.0.0/8"]
max_body = "100MiB"
spool_dir = "/var/tmp"
drain_timeout = "30s"

[slots]
count = 8
queue = 1000
queue_timeout = "5s"
request_timeout = "60s"
parked = 10000
on_disconnect = "finish"

[workers]
app = "mysite.wsgi:application"
processes = 2
mode = "auto"
thread_locals = ["myapp.middleware._state"]

[outbound]
allow = ["public"]
timeout = "30s"
max_response = "32MiB"
label = ["api.stripe.com"]

[database]
url = "postgres://shop:hunter2@db/shop"
"#;

#[test]
fn the_sample_of_the_contract_is_valid() {
    let config = Config::from_toml(SAMPLE).expect("valid").config;
    let expected = Config {
        plans: None,
        listen: vec![Listen::Tcp(([0, 0, 0, 0], 8000).into())],
        admin: ([127, 0, 0, 1], 9180).into(),
        probes: Some(([0, 0, 0, 0], 9181).into()),
        trusted_proxies: vec![Trusted::Net("10.0.0.0/8".parse().expect("a network"))],
        forwarding_headers: ForwardingHeaders::Any,
        proxy_protocol: Vec::new(),
        max_body: 100 << 20,
        spool_dir: "/var/tmp".into(),
        bodies: Bodies {
            memory_limit: 256 << 20,
            spool_limit: 10 << 30,
            answer_spool: 256 << 20,
        },
        clients: Clients {
            max_connections: None,
            max_connections_per_client: None,
            head_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(30),
            min_rate: 1024,
        },
        drain_timeout: Duration::from_secs(30),
        tunnel_timeout: Duration::from_secs(600),
        drain_delay: Duration::ZERO,
        log_format: LogFormat::Text,
        http2: true,
        h2c: false,
        tls: Tls {
            listen: Vec::new(),
            certificates: Vec::new(),
            min_version: TlsVersion::V12,
            client_ca: None,
            client_auth: ClientAuth::Required,
        },
        slots: Slots {
            count: Count::Fixed(8),
            queue: 1000,
            queue_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(60),
            overdue_grace: Duration::from_secs(30),
            parked: 10_000,
            parked_bytes: 1 << 30,
            on_disconnect: OnDisconnect::Finish,
        },
        workers: Workers {
            plans: false,
            source: Source::App(App {
                app: "mysite.wsgi:application".to_owned(),
                processes: Some(2),
                mode: Mode::Auto,
                python: None,
                recycle: Recycle::default(),
            }),
            thread_locals: vec!["myapp.middleware._state".to_owned()],
        },
        outbound: Outbound {
            allow: vec![Allow::Public],
            timeout: Duration::from_secs(30),
            max_response: 32 << 20,
            max_held: 1 << 30,
            label: vec!["api.stripe.com".to_owned()],
        },
        database: Some(Database {
            url: Secret("postgres://shop:hunter2@db/shop".to_owned()),
            share: Ratio(1.0),
        }),
        access_log: AccessLog {
            format: AccessFormat::Off,
            path: None,
            query: false,
        },
        error_pages: None,
        tracing: Tracing {
            endpoint: None,
            protocol: OtlpProtocol::Http,
            headers: vec![],
            sample: Ratio(1.0),
            service_name: "layby".to_owned(),
            resource_attributes: vec![],
        },
        compression: Compression {
            algorithms: Vec::new(),
            types: config.compression.types.clone(),
            min_size: 1 << 10,
            level: Level::Balanced,
        },
        sendfile_root: Vec::new(),
        routes: Vec::new(),
        mounts: Vec::new(),
    };
    assert_eq!(config, expected);
}

#[test]
fn each_source_of_workers_is_enough() {
    let source = |line| {
        let loaded = Config::from_toml(line).expect("valid");
        loaded.config.workers.source
    };
    assert_eq!(
        source(r#"workers.link = "unix:/run/link.sock""#),
        Source::Link("/run/link.sock".into())
    );
    assert_eq!(
        source(r#"workers.upstream = "http://App.Local/""#),
        Source::Upstream(Upstream::Tcp("app.local:80".to_owned()))
    );
    assert_eq!(
        source(r#"workers.upstream = "http://[::1]:9000""#),
        Source::Upstream(Upstream::Tcp("[::1]:9000".to_owned()))
    );
    assert_eq!(
        source(r#"workers.upstream = "unix:run/app.sock""#),
        Source::Upstream(Upstream::Unix("run/app.sock".into()))
    );
    let Source::App(app) = source(r#"workers.app = "mysite.wsgi""#) else {
        panic!("not an app");
    };
    assert_eq!(app.app, "mysite.wsgi:application");
}

#[test]
fn values_have_the_spellings_of_the_contract() {
    let text = r#"
        listen = ["127.0.0.1:8000", "[::1]:8000", "unix:/run/layby/http.sock", "systemd:web", "systemd:more"]
        trusted_proxies = ["unix", "10.0.0.7", "fd00::/8"]
        max_body = 1_000
        drain_timeout = "0s"
        slots.queue = 0x10
        slots.queue_timeout = "250ms"
        workers.app = "base"
        outbound.allow = ["public", "Api.Example.org.", "*.example.org", "10.0.0.0/8", "::1", "bücher.example"]
    "#;
    let config = Config::from_toml(text).expect("valid").config;
    assert_eq!(
        config.listen[2],
        Listen::Unix("/run/layby/http.sock".into())
    );
    assert_eq!(config.listen[3], Listen::Systemd(Some("web".to_owned())));
    assert_eq!(config.trusted_proxies[0], Trusted::Unix);
    assert_eq!(config.max_body, 1000);
    assert_eq!(config.drain_timeout, Duration::ZERO);
    assert_eq!(config.slots.queue, 16);
    assert_eq!(config.slots.queue_timeout, Duration::from_millis(250));
    let net = |text: &str| Allow::Net(text.parse().expect("a network"));
    assert_eq!(
        config.outbound.allow,
        [
            Allow::Public,
            Allow::Name("api.example.org".to_owned()),
            Allow::Wildcard("example.org".to_owned()),
            net("10.0.0.0/8"),
            net("::1/128"),
            Allow::Name("xn--bcher-kva.example".to_owned()),
        ]
    );
}

#[test]
fn every_key_can_be_set_in_the_file() {
    for key in KEYS {
        let text = format!("{}{}", in_file(key), beside(key));
        let loaded = Config::from_toml(&text).expect(&text);
        let entry = loaded.effective.entry(key.name).expect("it is in force");
        assert_eq!(entry.source.to_string(), "layby.toml:1", "{}", key.name);
        let value = entry.value.as_deref().expect("it has a value");
        assert!(
            key.is_secret() || value.contains(key.example),
            "{value} for {}",
            key.name
        );
    }
}

#[test]
fn every_key_can_be_set_in_the_environment_and_means_the_same() {
    for key in KEYS {
        let sources = Sources {
            env: env(&[(&key.variable(), key.example)]),
            ..Sources::default()
        };
        let from_env = load(beside(key), &sources).expect(key.name);
        let text = format!("{}{}", in_file(key), beside(key));
        let from_file = Config::from_toml(&text).expect(&text);
        assert_eq!(from_env.config, from_file.config, "{}", key.name);
        let entry = from_env.effective.entry(key.name).expect("it is in force");
        assert_eq!(entry.source, Place::Variable(key.variable()));
        assert_eq!(from_env.warnings, Vec::<String>::new());
    }
}

#[test]
fn the_table_is_sound() {
    for (list, keys) in LISTS {
        for key in *keys {
            assert_eq!(key.section(), *list);
            assert!(!key.doc.is_empty());
        }
    }
    for key in KEYS {
        assert!(
            key.section().is_empty() || SECTIONS.contains(&key.section()),
            "{}",
            key.name
        );
        assert!(
            !key.doc.is_empty() && !key.example.is_empty(),
            "{}",
            key.name
        );
        if let Default::Value { text, because } = key.default {
            assert!(!because.is_empty(), "{}", key.name);
            assert_ne!(
                text, key.example,
                "{}: the test of sources needs two",
                key.name
            );
        }
    }
    // Ranges and defaults are parsed as they are used.
    let defaults = Config::from_toml(r#"workers.app = "base""#).expect("valid");
    let by_default = |entry: &&Entry| entry.source == Place::Default;
    assert_eq!(
        defaults.effective.0.iter().filter(by_default).count(),
        // All but app, its two rivals, and what stands beside a rival only.
        KEYS.len() - 4
    );
}

#[test]
fn routes_are_read_in_the_order_of_the_file() {
    let text = r#"
        workers.app = "base"
        [[route]]
        path = "/upload"
        methods = ["POST", "PUT"]
        body = "lazy"
        max_body = "5GiB"
        [[route]]
        path = "/"
        host = "Shop.Example."
    "#;
    let loaded = Config::from_toml(text).expect("valid");
    assert_eq!(
        loaded.config.routes,
        [
            Route {
                path: "/upload".to_owned(),
                host: None,
                methods: vec![http::Method::POST, http::Method::PUT],
                body: BodyMode::Lazy,
                max_body: Some(5 << 30),
                upstream: None,
            },
            Route {
                path: "/".to_owned(),
                host: Some("shop.example".to_owned()),
                methods: Vec::new(),
                body: BodyMode::Buffered,
                max_body: None,
                upstream: None,
            },
        ]
    );
    let effective = loaded.effective.to_string();
    for line in [
        r#"route = { path = "/upload", methods = ["POST", "PUT"], body = "lazy", max_body = "5GiB" }  # layby.toml:3"#,
        r#"route = { path = "/", host = "shop.example" }"#,
    ] {
        assert!(effective.contains(line), "{line} is not in\n{effective}");
    }
    let (section, values) = &loaded.effective.sections()[0];
    assert_eq!(*section, "general");
    assert!(values.contains(r#"{ path = "/", host"#), "{values}");
}

#[test]
fn the_keys_of_a_route_are_those_of_the_table() {
    for key in ROUTE {
        let path = match key.short() {
            "path" => "",
            "connections" | "plans" => "path = \"/\"\nupstream = \"unix:/run/app.sock\"\n",
            _ => "path = \"/\"\n",
        };
        let example = match key.kind {
            Kind::Number | Kind::Truth => key.example.to_owned(),
            _ => format!("{:?}", key.example),
        };
        let text = format!("{PLANS}\n[[route]]\n{path}{} = {example}", key.short());
        let loaded = Config::from_toml(&text).expect(&text);
        let entry = loaded.effective.entry("route").expect("it is in force");
        let value = entry.value.as_deref().expect("it has one");
        assert!(value.contains(key.example), "{value}");
    }
}

#[test]
fn mounts_are_read_in_the_order_of_the_file() {
    let text = r#"
        workers.app = "base"
        [[static]]
        path = "/static"
        root = "/srv/app/static"
        index = "index.html"
        fallthrough = true
        cache_control = "public, max-age=60"
        immutable = "hashed"
        precompressed = ["br", "gzip"]
        headers = ["Access-Control-Allow-Origin: *", "x-a:b"]
        [[static]]
        path = "/"
        root = "./media"
        internal = true
    "#;
    let loaded = Config::from_toml(text).expect("valid");
    let value = http::HeaderValue::from_static;
    let plain = Mount {
        path: "/".to_owned(),
        root: "./media".into(),
        index: None,
        fallthrough: false,
        internal: true,
        cache_control: None,
        immutable: Immutable::None,
        precompressed: Vec::new(),
        headers: Vec::new(),
    };
    let rich = Mount {
        path: "/static".to_owned(),
        root: "/srv/app/static".into(),
        index: Some("index.html".to_owned()),
        fallthrough: true,
        internal: false,
        cache_control: Some(value("public, max-age=60")),
        immutable: Immutable::Hashed,
        precompressed: vec![Coding::Brotli, Coding::Gzip],
        headers: vec![
            (http::header::ACCESS_CONTROL_ALLOW_ORIGIN, value("*")),
            (http::HeaderName::from_static("x-a"), value("b")),
        ],
    };
    assert_eq!(loaded.config.mounts, [rich, plain]);
    let effective = loaded.effective.to_string();
    for line in [
        r#"static = { path = "/static", root = "/srv/app/static", index = "index.html", fallthrough = true, cache_control = "public, max-age=60", immutable = "hashed", precompressed = ["br", "gzip"], headers = ["access-control-allow-origin: *", "x-a: b"] }  # layby.toml:3"#,
        r#"static = { path = "/", root = "./media", internal = true }"#,
    ] {
        assert!(effective.contains(line), "{line} is not in\n{effective}");
    }
}

#[test]
fn the_keys_of_a_mount_are_those_of_the_table() {
    for key in STATIC {
        let other = |name: &str, line: &str| match key.short() == name {
            true => String::new(),
            false => format!("{line}\n"),
        };
        let own = match key.kind == Kind::Truth {
            true => key.example.to_owned(),
            false => format!("{:?}", key.example),
        };
        let text = format!(
            "[[static]]\n{}{}{} = {own}\n[workers]\napp = \"base\"",
            other("path", "path = \"/\""),
            other("root", "root = \"/srv/x\""),
            key.short(),
        );
        let loaded = Config::from_toml(&text).expect(&text);
        let entry = loaded.effective.entry("static").expect("it is in force");
        let value = entry.value.as_deref().expect("it has one");
        let shown = key.example.to_lowercase();
        assert!(value.to_lowercase().contains(&shown), "{value}");
    }
}

#[test]
fn what_is_wrong_with_mounts_is_said_all_at_once() {
    let text = r#"workers.app = "base"
[[static]]
path = "/a/"
root = "static"
[[static]]
root = "/srv/../etc"
[[static]]
path = "/b"
root = "/"
index = "a/b.html"
immutable = true
precompressed = ["deflate"]
headers = ["Content-Type: text/html", "nonsense", "Cache-Control: no-store", "a b: c"]
[[static]]
path = "/c"
root = "/srv/c"
internal = true
fallthrough = true
[[static]]
path = "/c"
alias = "/srv/d"
root = "/srv/d"
"#;
    let said = mistakes(text);
    for line in [
        r#"layby.toml:3: static.path: "/a/" is not a path from / on, without / at its end; write "/a""#,
        r#"layby.toml:4: static.root: "static" does not say from where on; write "/static" or "./static""#,
        r#"layby.toml:5: static.path: is missing; write it like "/static""#,
        r#"layby.toml:6: static.root: "/srv/../etc" has steps back in it; write the path that they lead to"#,
        r#"layby.toml:9: static.root: "/" is all of the machine; write a folder with nothing but these files"#,
        r#"layby.toml:10: static.index: "a/b.html" is not the name of a file; write it like "index.html""#,
        r#"layby.toml:11: static.immutable: true is not one of the values; write "none", "hashed" or "all""#,
        r#"layby.toml:12: static.precompressed: "deflate" is not one of the values; write "zstd", "br" or "gzip""#,
        r#"layby.toml:13: static.headers: "Content-Type: text/html" is said by the gateway; remove it"#,
        r#"layby.toml:13: static.headers: "nonsense" is not NAME: VALUE; write it like "Access-Control-Allow-Origin: *""#,
        r#"layby.toml:13: static.headers: "Cache-Control: no-store" has a key of its own; write it as cache_control"#,
        r#"layby.toml:13: static.headers: "a b: c" begins with no name of a header; write it like "Access-Control-Allow-Origin: *""#,
        "layby.toml:18: static.fallthrough: says nothing of internal files; the application's answer does",
        "layby.toml:19: static: has the path of the one at layby.toml:14 already; keep one",
        "layby.toml:21: static.alias: unknown key; did you mean static.root?",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    assert_eq!(said.lines().count(), 15, "{said}");
}

#[test]
fn what_is_wrong_with_routes_is_said_all_at_once() {
    let text = r#"workers.app = "base"
[[route]]
path = "/upload/"
body = "lasy"
[[route]]
methods = "post"
max_body = "0"
[[route]]
path = "/a"
methods = ["GET", "HEAD"]
prefix = "/b"
[[route]]
path = "/a"
methods = ["HEAD"]
[[route]]
path = "/a"
host = "example.org:80"
max_bdy = "1MiB"
"#;
    let said = mistakes(text);
    for line in [
        r#"layby.toml:3: route.path: "/upload/" is not a path from / on, without / at its end; write "/upload""#,
        r#"layby.toml:4: route.body: "lasy" is not one of the values; write "buffered" or "lazy""#,
        r#"layby.toml:5: route.path: is missing; write path = "/" for every path"#,
        r#"layby.toml:6: route.methods: "post" is not in capitals, as methods are; write "POST""#,
        r#"layby.toml:7: route.max_body: "0" is too small; write 1 to "1024TiB""#,
        "layby.toml:11: route.prefix: unknown key; did you mean route.path?",
        "layby.toml:12: route: is for requests of the route at layby.toml:8 already; keep one",
        r#"layby.toml:17: route.host: "example.org:80" has a port; every port counts; write "example.org""#,
        "layby.toml:18: route.max_bdy: unknown key; did you mean route.max_body?",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    assert_eq!(said.lines().count(), 9, "{said}");
}

#[test]
fn a_route_may_have_an_upstream_of_its_own() {
    let text = r#"
        workers.app = "base"
        [[route]]
        path = "/live"
        upstream = "http://Live.Example:9000/"
        connections = 200
        [[route]]
        path = "/api"
        upstream = "unix:/run/api.sock"
    "#;
    let loaded = Config::from_toml(text).expect("valid");
    let upstream = |number: usize| loaded.config.routes[number].upstream.clone();
    assert_eq!(
        [upstream(0), upstream(1)],
        [
            Some(RouteUpstream {
                server: Upstream::Tcp("live.example:9000".to_owned()),
                connections: 200,
                plans: false,
            }),
            Some(RouteUpstream {
                server: Upstream::Unix("/run/api.sock".into()),
                connections: 64,
                plans: false,
            }),
        ]
    );
    let effective = loaded.effective.to_string();
    let shown =
        r#"route = { path = "/live", upstream = "http://live.example:9000", connections = 200 }"#;
    assert!(effective.contains(shown), "{effective}");
}

#[test]
fn what_cannot_be_beside_an_upstream_is_said() {
    let said = mistakes(
        r#"listen = ["127.0.0.1:8000", "unix:/run/front.sock"]
workers.upstream = "http://127.0.0.1:9000"
[[route]]
path = "/a"
upstream = "unix:/run/api.sock"
body = "lazy"
[[route]]
path = "/b"
connections = 5
[[route]]
path = "/c"
upstream = "unix:/run/api.sock"
connections = 5
[[route]]
path = "/d"
upstream = "http://127.0.0.1:9000"
[[route]]
path = "/e"
body = "lazy"
[[route]]
path = "/f"
upstream = "unix:/run/front.sock"
[[route]]
path = "/g"
upstream = "http://127.0.0.1:8000"
[[route]]
path = "/h"
upstream = "https://api.example"
connections = 0
"#,
    );
    for line in [
        r#"layby.toml:6: route.body: "lazy" is not for an upstream, which cannot ask for a body; write "buffered", or remove it"#,
        "layby.toml:9: route.connections: says nothing without upstream; remove it, or set upstream",
        "layby.toml:13: route.connections: unix:/run/api.sock has 64 of them by the route at layby.toml:3; write 64 here too",
        "layby.toml:16: route.upstream: http://127.0.0.1:9000 is workers.upstream already; remove it",
        r#"layby.toml:19: route.body: "lazy" is not for workers.upstream, which cannot ask for a body; write "buffered", or remove it"#,
        "layby.toml:22: route.upstream: unix:/run/front.sock is this gateway itself; write another",
        "layby.toml:25: route.upstream: http://127.0.0.1:8000 is this gateway itself; write another",
        "layby.toml:28: route.upstream: \"https://api.example\" is not plain HTTP",
        "layby.toml:29: route.connections: 0 is too small",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    assert_eq!(said.lines().count(), 9, "{said}");
}

#[test]
fn a_route_has_one_spelling_and_others_are_told_it() {
    let path = |path: &str| mistake(&format!("route = [{{ path = {path:?} }}]"));
    for (written, right) in [
        ("upload", "/upload"),
        ("/a//b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/upload/*", "/upload"),
        ("/upload?x=1", "/upload"),
        ("/caf%C3%A9", "/café"),
    ] {
        let said = path(written);
        assert!(said.contains(&format!("write {right:?}")), "{said}");
    }
    assert!(path("/a/../b").contains("write the path that they lead to"));
    let said = mistake("[route]\npath = \"/\"\n[workers]\napp = \"base\"\n[x]");
    assert!(
        said.contains("route: is a list of sections; write [[route]]"),
        "{said}"
    );
    let said = mistakes("[[routes]]\npath = \"/\"\n[workers]\napp = \"base\"");
    assert!(said.contains("did you mean [[route]]?"), "{said}");
}

#[test]
fn routes_cannot_come_from_the_environment() {
    let sources = Sources {
        env: env(&[("LAYBY_ROUTE_PATH", "/upload")]),
        ..Sources::default()
    };
    let loaded = load("workers.app = \"base\"", &sources).expect("valid");
    assert!(loaded.config.routes.is_empty());
    assert!(
        loaded.warnings[0].contains("these sections are given in the file, as [[route]]"),
        "{:?}",
        loaded.warnings
    );
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let count = |text: &str, variables: &[(&str, &str)], flags| {
        let sources = Sources {
            env: env(variables),
            flags,
            ..Sources::default()
        };
        let text = format!("workers.app = \"base\"\n{text}");
        let loaded = load(&text, &sources).expect("valid");
        let entry = loaded.effective.entry("slots.count").expect("in force");
        (loaded.config.slots.count, entry.source.to_string())
    };
    let file = "slots.count = 2";
    let variable = [("LAYBY_SLOTS_COUNT", "3")];
    let flag = vec![("slots.count", vec!["4".to_owned()])];
    let fixed = |count, source: &str| (Count::Fixed(count), source.to_owned());

    assert_eq!(count("", &[], vec![]), fixed(8, "default"));
    assert_eq!(count(file, &[], vec![]), fixed(2, "layby.toml:2"));
    assert_eq!(
        count(file, &variable, vec![]),
        fixed(3, "LAYBY_SLOTS_COUNT")
    );
    assert_eq!(count(file, &variable, flag), fixed(4, "--slots"));
}

#[test]
fn a_stronger_source_of_workers_overrides_all_of_a_weaker_one() {
    let text = "[workers]\napp = \"base\"\nprocesses = 2\nmode = \"wsgi\"";
    let sources = Sources {
        flags: vec![("workers.upstream", vec!["unix:/run/app.sock".to_owned()])],
        role: Role::Serve,
        ..Sources::default()
    };
    let loaded = load(text, &sources).expect("valid");
    assert_eq!(
        loaded.config.workers.source,
        Source::Upstream(Upstream::Unix("/run/app.sock".into()))
    );
    assert_eq!(loaded.effective.entry("workers.processes"), None);

    // But not what is as strong: that would silently say nothing.
    let sources = Sources {
        env: env(&[
            ("LAYBY_WORKERS_LINK", "unix:/run/link.sock"),
            ("LAYBY_WORKERS_MODE", "wsgi"),
        ]),
        ..Sources::default()
    };
    assert_eq!(
        load(text, &sources).expect_err("mode is idle").to_string(),
        "LAYBY_WORKERS_MODE: says nothing beside workers.link; remove it"
    );
}

#[test]
fn a_command_says_which_workers_it_is_for() {
    let complaint = |text: &str, role| {
        let sources = Sources {
            role,
            ..Sources::default()
        };
        load(text, &sources).expect_err("wrong command").to_string()
    };
    assert_eq!(
        complaint("workers.link = \"unix:/run/link.sock\"", Role::Run),
        "layby.toml:1: workers.link: is not for `layby run`; give APP, or use `layby serve`"
    );
    assert_eq!(
        complaint("workers.app = \"base\"", Role::Serve),
        "layby.toml:1: workers.app: is not for `layby serve`; give --link or --upstream, or use `layby run`"
    );
    assert_eq!(
        complaint("", Role::Run),
        "workers: nothing says where workers come from; give APP (module:object) or set workers.app"
    );
}

#[test]
fn lists_in_the_environment_have_commas_and_may_be_empty() {
    let allow = |value| {
        let sources = Sources {
            env: env(&[("LAYBY_OUTBOUND_ALLOW", value)]),
            ..Sources::default()
        };
        let loaded = load("workers.app = \"base\"", &sources).expect("valid");
        loaded.config.outbound.allow
    };
    let name = |name: &str| Allow::Name(name.to_owned());
    assert_eq!(
        allow(" a.example, b.example,"),
        [name("a.example"), name("b.example")]
    );
    assert_eq!(allow(""), []);
}

#[test]
fn an_empty_variable_for_one_value_is_as_good_as_none() {
    let sources = Sources {
        env: env(&[("LAYBY_DATABASE_URL", ""), ("LAYBY_SLOTS_COUNT", " ")]),
        ..Sources::default()
    };
    let loaded = load("workers.app = \"base\"\nslots.count = 3", &sources).expect("valid");
    assert_eq!(loaded.config.slots.count, Count::Fixed(3));
    assert_eq!(loaded.config.database, None);
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let sources = Sources {
        env: env(&[
            ("LAYBY_SLOT_COUNT", "4"),
            ("LAYBY_PORT", "tcp://10.0.0.1:80"),
            ("LAYBY_LINK", "unix:/run/link.sock"),
            ("LAYBY_STRICT", "1"),
            ("LAYBY_DEBUG", "1"),
            ("LAYBY_TOKEN", "t"),
            ("LAYBY_LOG", "debug"),
            ("PATH", "/bin"),
        ]),
        ..Sources::default()
    };
    let loaded = load("workers.app = \"base\"", &sources).expect("valid");
    assert_eq!(
        loaded.warnings,
        [
            "LAYBY_PORT: unknown variable, ignored",
            "LAYBY_SLOT_COUNT: unknown variable, ignored; did you mean LAYBY_SLOTS_COUNT?",
        ]
    );
}

#[test]
fn an_admin_listener_that_others_reach_is_a_warning() {
    let loaded = Config::from_toml("admin = \"0.0.0.0:9180\"\nworkers.app = \"base\"");
    assert_eq!(
        loaded.expect("valid").warnings,
        [
            "layby.toml:1: admin: 0.0.0.0:9180 shows other hosts what requests there are; \
             probes is enough for scrapers and kubelets"
        ]
    );
}

#[test]
fn every_mistake_of_every_source_is_reported_at_once() {
    let text = r#"
listen = ":8000"
lisen = 3
max_body = 100MB
spool_dir =
trusted_proxies = [
    "10.0.0.1/8",
    7,
]
tsl = { cert = "x" }

[slots]
count = "8"
queue_timeout = 5
parked = 0

[workers]
app = "mysite/wsgi.py"
link = "unix:/run/link.sock"

[plan]
listen = "x"

[database]
url = "mysql://shop:hunter2@db/shop"
"#;
    let sources = Sources {
        env: env(&[
            ("LAYBY_SLOTS_QUEUE_TIMEOUT", "6"),
            ("LAYBY_OUTBOUND_ALLOW", "localhost,api.example"),
        ]),
        flags: vec![("log_format", vec!["xml".to_owned()])],
        ..Sources::default()
    };
    let mistakes = load(text, &sources).expect_err("all wrong").to_string();
    let expected = r#"layby.toml:2: listen: ":8000" has no address; write "127.0.0.1:8000" or "0.0.0.0:8000"
layby.toml:3: lisen: unknown key; did you mean listen?
layby.toml:4: max_body: 100MB has no quotes; write "100MB"
layby.toml:5: spool_dir: there is no value
layby.toml:7: trusted_proxies: "10.0.0.1/8" is an address within a network; write "10.0.0.0/8" or "10.0.0.1"
layby.toml:8: trusted_proxies: 7 is not an address, a network or unix; write it like "10.0.0.0/8"
layby.toml:10: tsl: unknown section; did you mean [tls]?
layby.toml:13: slots.count: "8" is a text; write 8
layby.toml:14: slots.queue_timeout: 5 has no unit; write "5s"
layby.toml:15: slots.parked: 0 is too small; write 1 to 1000000
layby.toml:18: workers.app: "mysite/wsgi.py" is not a Python name, module:object; write "mysite.wsgi:application"
layby.toml:19: workers.link: conflicts with workers.app (layby.toml:18); keep exactly one of app, link and upstream
layby.toml:21: plan: unknown section; did you mean [plans]?
layby.toml:25: database.url: *** is not a PostgreSQL URL; write it like "postgres://user:password@host:5432/name"
LAYBY_OUTBOUND_ALLOW: localhost is loopback, which only an address allows; write 127.0.0.1
LAYBY_SLOTS_QUEUE_TIMEOUT: 6 has no unit; write 6s
--log-format: xml is not one of the values; write text or json"#;
    assert_eq!(mistakes, with_sections(expected));
}

#[test]
fn a_mistake_says_what_to_write() {
    let cases = [
        // Numbers
        (
            "slots.queue = -1",
            "slots.queue: -1 is not a whole number; write 0 to 1000000",
        ),
        (
            "slots.queue = 1.5",
            "slots.queue: 1.5 is not a whole number; write 0 to 1000000",
        ),
        (
            "slots.count = 1025",
            "slots.count: 1025 is too large; write 1 to 1024",
        ),
        (
            "slots.count = 99999999999999999999",
            "slots.count: 99999999999999999999 is too large; write 1 to 1024",
        ),
        (
            "slots.count = \"Auto\"",
            "slots.count: \"Auto\" is misspelt; write \"auto\"",
        ),
        (
            "slots.queue = \"1_000\"",
            "slots.queue: \"1_000\" is not a whole number; write 1000",
        ),
        // Truth values
        ("h2c = \"true\"", "h2c: \"true\" is a text; write true"),
        (
            "h2c = \"yes\"",
            "h2c: \"yes\" is not a truth value; write true",
        ),
        ("http2 = 1", "http2: 1 is not a truth value; write true"),
        // TLS
        (
            "tls.min_version = \"1.1\"",
            "tls.min_version: \"1.1\" is not one of the values; write \"1.2\" or \"1.3\"",
        ),
        (
            "tls.client_auth = \"on\"",
            "tls.client_auth: \"on\" is not one of the values; write \"required\" or \"optional\"",
        ),
        (
            "tls.certs = \"a.pem\"",
            "tls.certs: unknown key; did you mean tls.cert?",
        ),
        (
            "tls.listen = \"127.0.0.1:8443\"",
            "tls.listen: takes a certificate; set tls.cert and tls.key",
        ),
        (
            "tls = { listen = \"127.0.0.1:1\", cert = [\"a\", \"b\"], key = \"a\" }",
            "tls.key: there are 1 for 2 in tls.cert; write one for each, in the same order",
        ),
        (
            "tls = { listen = \"127.0.0.1:8000\", cert = \"a\", key = \"a\" }",
            "tls.listen: 127.0.0.1:8000 is taken by listen already; write another",
        ),
        // Sizes
        (
            "max_body = \"100 MB\"",
            "max_body: \"100 MB\" is not a size; write \"100MiB\"",
        ),
        (
            "max_body = \"1.5GiB\"",
            "max_body: \"1.5GiB\" is not a size: a whole number with KiB, MiB, GiB, TiB, or of bytes; write 1 to \"1024TiB\"",
        ),
        (
            "max_body = 0",
            "max_body: 0 is too small; write 1 to \"1024TiB\"",
        ),
        (
            "max_body = \"99999999TiB\"",
            "max_body: \"99999999TiB\" is too large; write 1 to \"1024TiB\"",
        ),
        // Durations
        (
            "drain_timeout = \"1.5m\"",
            "drain_timeout: \"1.5m\" is not a duration: a whole number with ms, s, m or h; write \"90s\"",
        ),
        (
            "drain_timeout = 0.25",
            "drain_timeout: 0.25 has no unit; write \"250ms\"",
        ),
        (
            "drain_timeout = \"soon\"",
            "drain_timeout: \"soon\" is not a duration: a whole number with ms, s, m or h; write \"0s\" to \"24h\"",
        ),
        (
            "drain_timeout = \"25h\"",
            "drain_timeout: \"25h\" is too large; write \"0s\" to \"24h\"",
        ),
        // Bounds on clients
        (
            "min_rate = \"1KiB/s\"",
            "min_rate: \"1KiB/s\" is not a size: a whole number with KiB, MiB, GiB, TiB, or of bytes; write 0 to \"1GiB\"",
        ),
        (
            "max_connections = 0",
            "max_connections: 0 is too small; write 1 to 10000000",
        ),
        (
            "stall_timeout = \"0s\"",
            "stall_timeout: \"0s\" is too small; write \"100ms\" to \"24h\"",
        ),
        (
            "keepalive_timeout = \"5s\"",
            "keepalive_timeout: unknown key; did you mean idle_timeout?",
        ),
        // Words, paths, types
        (
            "log_format = \"JSON\"",
            "log_format: \"JSON\" is not one of the values; write \"text\" or \"json\"",
        ),
        ("spool_dir = 7", "spool_dir: 7 is a number; write \"7\""),
        (
            "spool_dir = true",
            "spool_dir: true is not a text; write \"true\"",
        ),
        (
            "access_log.query = \"true\"",
            "access_log.query: \"true\" is a text; write true",
        ),
        (
            "access_log.query = 1",
            "access_log.query: 1 is not a truth value; write true",
        ),
        (
            "access_log.query = \"maybe\"",
            "access_log.query: \"maybe\" is not a truth value; write true or false",
        ),
        (
            "access_log.format = \"apache\"",
            "access_log.format: \"apache\" is not one of the values; write \"off\", \"json\" or \"combined\"",
        ),
        (
            "spool_dir = [\"/a\"]",
            "spool_dir: a list is too much; write \"/srv/spool\"",
        ),
        (
            "listen = [[\"a\"]]",
            "listen: an item is not a text; write [\"0.0.0.0:8000\"]",
        ),
        (
            "slots = 8",
            "slots: is a section; write [slots] with its keys below",
        ),
        // Addresses
        (
            "admin = \"localhost:9180\"",
            "admin: \"localhost:9180\" is not an IP address; write \"127.0.0.1:9180\"",
        ),
        (
            "admin = \"unix:/a\"",
            "admin: \"unix:/a\" is not an IP address with a port; write it like \"127.0.0.1:9190\"",
        ),
        (
            "listen = \"/run/l.sock\"",
            "listen: \"/run/l.sock\" is not a Unix socket; write \"unix:/run/l.sock\"",
        ),
        (
            "listen = \"unix:///run/l.sock\"",
            "listen: \"unix:///run/l.sock\" has too many slashes; write \"unix:/run/l.sock\"",
        ),
        (
            "listen = []",
            "listen: is empty; write at least one address",
        ),
        (
            "listen = \"systemd:\"",
            "listen: \"systemd:\" has no name that systemd could give; write the FileDescriptorName of the socket \
             unit, or systemd for every socket",
        ),
        (
            "listen = [\"systemd:web\", \"systemd\"]",
            "listen: systemd is taken by listen already; write another",
        ),
        (
            "proxy_protocol = \"on\"",
            "proxy_protocol: \"on\" is not an address, a network or unix; write it like \"10.0.0.7\"",
        ),
        (
            "forwarding_headers = \"both\"",
            "forwarding_headers: \"both\" is not one of the values; write \"any\", \"x-forwarded\" or \"forwarded\"",
        ),
        (
            "drain_delay = \"2h\"",
            "drain_delay: \"2h\" is too large; write \"0s\" to \"1h\"",
        ),
        (
            "listen = [\"127.0.0.1:80\", \"0.0.0.0:80\"]",
            "listen: 0.0.0.0:80 is taken by listen already; write another",
        ),
        (
            "listen = \"0.0.0.0:9180\"",
            "listen: 127.0.0.1:9180 is taken by admin already; write another",
        ),
        (
            "probes = \"127.0.0.1:9180\"",
            "probes: 127.0.0.1:9180 is taken by admin already; write another",
        ),
        (
            "trusted_proxies = \"*\"",
            "trusted_proxies: \"*\" would believe everybody; write the addresses or networks of your proxies, or unix",
        ),
        // Workers
        (
            "workers.upstream = \"https://app\"",
            "workers.upstream: \"https://app\" is not plain HTTP; upstreams stand beside the gateway; write http://HOST:PORT or unix:PATH",
        ),
        (
            "workers.upstream = \"app:9000\"",
            "workers.upstream: \"app:9000\" is not an http URL; write \"http://app:9000\"",
        ),
        (
            "workers.upstream = \"http://app/x\"",
            "workers.upstream: \"http://app/x\" has a path; write \"http://app:80\"",
        ),
        (
            "workers.upstream = \"http://u:hunter2@app\"",
            "workers.upstream: \"http://***@app\" has a user name; write http://HOST:PORT",
        ),
        (
            "workers.upstream = \"http://127.0.0.1:8000\"",
            "workers.upstream: 127.0.0.1:8000 is taken by listen already; write another",
        ),
        (
            "workers.upstream = \"http://localhost:9180\"",
            "workers.upstream: localhost:9180 is taken by admin already; write another",
        ),
        (
            "route = [{ path = \"/\", upstream = \"http://localhost:8000\" }]",
            "route.upstream: http://localhost:8000 is this gateway itself; write another",
        ),
        (
            "route = [{ path = \"/\", upstream = \"http://127.0.0.1:9180\" }]",
            "route.upstream: http://127.0.0.1:9180 is this gateway itself; write another",
        ),
        (
            "workers.app = \"site:make()\"",
            "workers.app: \"site:make()\" calls something; name an object that is a WSGI application already",
        ),
        (
            "workers = { app = \"a\", thread_locals = [\"m:x\"] }",
            "workers.thread_locals: \"m:x\" is not a Python name, module.attribute; write \"m.x\"",
        ),
        (
            "workers = { app = \"a\", processes = 9 }",
            "workers.processes: 9 is more than the slots, slots.count is 8 (default); write at most 8",
        ),
        (
            "workers = { app = \"a\", max_memory = \"1MiB\" }",
            "workers.max_memory: \"1MiB\" is too small; write \"16MiB\" to \"1024TiB\"",
        ),
        (
            "workers = { app = \"a\", max_age = 60 }",
            "workers.max_age: 60 has no unit; write \"60s\"",
        ),
        (
            "workers = { app = \"a\", max_requests = 0 }",
            "workers.max_requests: 0 is too small; write 1 to 1000000000",
        ),
        (
            "workers = { link = \"unix:/a\", max_age = \"1h\" }",
            "workers.max_age: says nothing beside workers.link; remove it",
        ),
        (
            "slots.overdue_grace = \"0s\"",
            "slots.overdue_grace: \"0s\" is too small; write \"1ms\" to \"24h\"",
        ),
        (
            "workers = { upstream = \"unix:/a\", thread_locals = [\"m.x\"] }",
            "workers.thread_locals: says nothing beside workers.upstream; remove it",
        ),
        // Outbound
        (
            "outbound.allow = \"https://api.example/v1\"",
            "outbound.allow: \"https://api.example/v1\" is not a host name; write \"api.example\"",
        ),
        (
            "outbound.allow = \"api.example:443\"",
            "outbound.allow: \"api.example:443\" has a port; every port counts; write \"api.example\"",
        ),
        (
            "outbound.allow = \"0x7f.1\"",
            "outbound.allow: \"0x7f.1\" is an address by another spelling; write \"127.0.0.1\"",
        ),
        (
            "outbound.allow = \"[::1]\"",
            "outbound.allow: \"[::1]\" has brackets; write \"::1\"",
        ),
        (
            "outbound.allow = \"*\"",
            "outbound.allow: \"*\" would reach internal services; write \"public\"",
        ),
        (
            "outbound.allow = \"api.*.example\"",
            "outbound.allow: \"api.*.example\" is not a host name; write it like \"api.example.org\"",
        ),
        // Between keys
        (
            "slots = { count = 20, parked = 10 }",
            "slots.parked: 10 is too small, slots.count is 20 (layby.toml:1); write 20 or more",
        ),
        (
            "slots.count = \"auto\"",
            "slots.count: \"auto\" needs the database's limits; set database.url, or write a number",
        ),
        // Files and compression
        (
            "sendfile_root = \"media\"",
            "sendfile_root: \"media\" does not say from where on; write \"/media\" or \"./media\"",
        ),
        (
            "compression.types = [\"html\"]",
            "compression.types: \"html\" is not a media type; write it like \"text/html\"",
        ),
        (
            "compression.types = [\"text/*\"]",
            "compression.types: \"text/*\" has a star; write each type that is meant",
        ),
        (
            "compression.types = [\"text/html; charset=utf-8\"]",
            "compression.types: \"text/html; charset=utf-8\" has parameters, which do not count; write \"text/html\"",
        ),
        (
            "compression.algorithms = [\"gzip\", \"deflate\"]",
            "compression.algorithms: \"deflate\" is not one of the values; write \"zstd\", \"br\" or \"gzip\"",
        ),
        (
            "compression.min_size = 0",
            "compression.min_size: 0 is too small; write 1 to \"1024TiB\"",
        ),
        (
            "compression.level = 6",
            "compression.level: 6 is not one of the values; write \"fast\", \"balanced\" or \"small\"",
        ),
        // Unknown keys
        ("bind = \":80\"", "bind: unknown key; did you mean listen?"),
        ("queue = 8", "queue: unknown key; did you mean slots.queue?"),
        (
            "slots.qeueu = 8",
            "slots.qeueu: unknown key; did you mean slots.queue?",
        ),
        (
            "slots.colour = 8",
            "slots.colour: unknown key; in [slots] there are count, queue, queue_timeout, request_timeout, overdue_grace, parked, parked_bytes, on_disconnect",
        ),
        (
            "slot.count = 8",
            "slot: unknown section; did you mean [slots]?",
        ),
        (
            "colours = [{ path = \"/\" }]",
            "colours: unknown section; there are SECTIONS",
        ),
    ];
    for (line, expected) in cases {
        let expected = format!("layby.toml:1: {}", with_sections(expected));
        assert_eq!(mistake(line), expected, "{line}");
    }
}

#[test]
fn a_syntax_error_hides_little_but_its_own_line() {
    let text = "[slots\ncount = 0\n[workers]\nmode = \"fast\"\napp = \"a\n[outbound]\nhosts = 1\ntimeout 5";
    assert_eq!(
        mistakes(text),
        "layby.toml:1: not TOML: unclosed table, expected `]`\n\
         layby.toml:4: workers.mode: \"fast\" is not one of the values; write \"auto\", \"coroutine\", \"greenlet\" or \"wsgi\"\n\
         layby.toml:5: not TOML: invalid basic string, expected `\"`\n\
         layby.toml:7: outbound.hosts: unknown key; did you mean outbound.allow?\n\
         layby.toml:8: not TOML: key with no value, expected `=`"
    );
    assert_eq!(
        mistakes("workers.app = \"a\"\n[database]\nurl = postgres://shop:hunter2@db/shop"),
        "layby.toml:3: database.url: the value has no quotes; write it in quotes"
    );
    assert_eq!(
        mistakes("workers.app = \"a\"\nmax_body = 1\nmax_body = 2"),
        "layby.toml:3: not TOML: duplicate key"
    );
}

#[test]
fn what_may_be_a_secret_is_not_shown_for_a_line_that_is_not_toml() {
    for line in [
        "tracing.headers = x-api-key: hunter2",
        "[tracing]\nheaders = x-api-key: hunter2",
        "[tracing]\nheaders = [x-api-key: hunter2]",
        "[tracing]\nheader = x-api-key: hunter2",
        "[database]\nurl = postgresql:/u:hunter2@host/db",
        "[database]\nurll = postgresql:/u:hunter2@host/db",
        "[database]\nurl =\n  postgres://u:hunter2@host/db?sslmode=require",
        "database.url = host=db password=hunter2",
    ] {
        let said = mistakes(&format!("workers.app = \"a\"\n{line}"));
        assert!(said.contains("layby.toml:"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_file_that_was_asked_for_must_be_readable() {
    let folder = tempfile::tempdir().expect("a folder");
    let complaint = |path: &Path| {
        let sources = Sources {
            file: Some(path.to_owned()),
            ..Sources::default()
        };
        let mistakes = Config::load(&sources).expect_err("unreadable").to_string();
        mistakes.replace(&folder.path().display().to_string(), "DIR")
    };
    assert_eq!(
        complaint(&folder.path().join("gone.toml")),
        "DIR/gone.toml: cannot be read: No such file or directory (os error 2)"
    );
    assert_eq!(
        complaint(folder.path()),
        "DIR: cannot be read: Is a directory (os error 21)"
    );
    let latin = folder.path().join("latin.toml");
    std::fs::write(&latin, b"spool_dir = \"/\xe4\"").expect("written");
    assert_eq!(
        complaint(&latin),
        "DIR/latin.toml: cannot be read: not UTF-8; save it as UTF-8"
    );
}

#[test]
fn a_file_is_read_from_its_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("shop.toml");
    std::fs::write(&path, SAMPLE).expect("written");
    let sources = Sources {
        file: Some(path),
        ..Sources::default()
    };
    let loaded = Config::load(&sources).expect("valid");
    assert_eq!(
        loaded.config,
        Config::from_toml(SAMPLE).expect("valid").config
    );
}

#[test]
fn a_secret_is_never_printed() {
    let loaded = Config::from_toml(SAMPLE).expect("valid");
    let printed = format!("{loaded:?}{}", loaded.effective);
    assert!(printed.contains("database.url = \"***\""));
    assert!(!printed.contains("hunter2"));
}

#[test]
fn the_effective_configuration_reads_like_the_file() {
    let sources = Sources {
        env: env(&[("LAYBY_OUTBOUND_ALLOW", "a.example,10.0.0.7")]),
        flags: vec![("slots.count", vec!["4".to_owned()])],
        ..Sources::default()
    };
    let loaded = load("workers.app = \"mysite.wsgi\"", &sources).expect("valid");
    let printed = loaded.effective.to_string();
    let lines: Vec<&str> = printed.lines().collect();
    for expected in [
        "listen = [\"127.0.0.1:8000\"]                 # default",
        "probes is not set",
        "slots.count = 4                             # --slots",
        "slots.request_timeout = \"60s\"               # default",
        "workers.app = \"mysite.wsgi:application\"     # layby.toml:1",
        "outbound.allow = [\"a.example\", \"10.0.0.7\"]  # LAYBY_OUTBOUND_ALLOW",
    ] {
        assert!(lines.contains(&expected), "{expected} in\n{printed}");
    }
}

#[test]
fn the_start_up_log_has_a_line_for_each_section() {
    let loaded = Config::from_toml("workers.link = \"unix:/run/link.sock\"\nslots.queue = 5");
    let sections = loaded.expect("valid").effective.sections();
    let names: Vec<_> = sections.iter().map(|(name, _)| *name).collect();
    let first = ["general", "tls", "slots", "workers", "outbound"];
    assert_eq!(names[..5], first);
    assert!(names[5..].iter().all(|name| SECTIONS.contains(name)));
    assert_eq!(
        sections[2].1,
        "count = 8, queue = 5 (layby.toml:2), queue_timeout = \"5s\", request_timeout = \"60s\", overdue_grace = \"30s\", \
         parked = 10000, parked_bytes = \"1GiB\", on_disconnect = \"finish\""
    );
    assert_eq!(
        sections[3].1,
        "link = \"unix:/run/link.sock\" (layby.toml:1), thread_locals = []"
    );
}

#[test]
fn a_share_of_the_database_is_more_than_nothing() {
    let text = |share: &str| {
        format!("workers.app = \"a\"\n[database]\nurl = \"postgres://db/shop\"\nshare = {share}")
    };
    let loaded = Config::from_toml(&text("0.25")).expect("valid");
    let database = loaded.config.database.expect("it has one");
    assert_eq!(database.share, Ratio(0.25));
    assert_eq!(
        mistakes(&text("0")),
        "layby.toml:4: database.share: 0 leaves no connection; write a number above 0"
    );
    let of_four = mistakes(&text("\"1/4\""));
    assert!(of_four.contains("is not a number from 0 to 1"), "{of_four}");
}

#[test]
fn an_upstream_elsewhere_may_have_the_gateways_port() {
    let text = "listen = \"0.0.0.0:8000\"\nworkers.upstream = \"http://10.0.0.7:8000\"";
    Config::from_toml(text).expect("valid");
    assert_eq!(
        mistakes(&text.replace("10.0.0.7", "127.0.0.1")),
        "layby.toml:2: workers.upstream: 127.0.0.1:8000 is taken by listen already; write another"
    );
}

#[test]
fn what_a_syntax_error_may_hide_is_not_said_to_be_missing() {
    let text = "slots.count = \"auto\"\n[database\nurl = \"postgres://db/shop\"";
    assert_eq!(
        mistakes(text),
        "layby.toml:2: not TOML: unclosed table, expected `]`"
    );
}

#[test]
fn responses_on_their_way_in_have_as_much_room_as_parked_requests_and_one_always_fits() {
    let held = |keys: &str| {
        let config = Config::from_toml(&format!("workers.app = \"a\"\n{keys}"));
        config.expect("valid").config.outbound.max_held
    };
    assert_eq!(held(""), 1 << 30);
    assert_eq!(held("slots.parked_bytes = \"96MiB\""), 96 << 20);
    let small = "slots.parked_bytes = \"1MiB\"\noutbound.max_response = \"8MiB\"";
    assert_eq!(held(small), 8 << 20);
}

#[test]
fn a_change_needs_a_restart_exactly_where_the_table_says_so() {
    for key in KEYS {
        let old = match beside(key) {
            "" => "workers.app = \"base\"",
            _ if key.section() == "plans" => PLANS,
            beside => beside,
        };
        let new = format!("{}{}", in_file(key), beside(key));
        let old = Config::from_toml(old).expect("valid").config;
        let new = Config::from_toml(&new).expect("valid").config;
        let expected: &[&str] = if key.restart { &[key.name] } else { &[] };
        assert_eq!(old.changes_needing_restart(&new), expected, "{}", key.name);
        assert_eq!(new.changes_needing_restart(&new), [""; 0]);
    }
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, reference()).expect("docs can be written");
    }
    let page = std::fs::read_to_string(&path).expect("the page exists");
    assert!(
        page == reference(),
        "docs/configuration.md differs from the table; run UPDATE_DOCS=1 cargo test reference"
    );
}

proptest! {
    #[test]
    fn a_duration_is_read_as_it_is_shown(millis in 0..=u64::MAX) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(Duration::parse(&duration.show()), Ok(duration));
    }

    #[test]
    fn a_size_is_read_as_it_is_shown(number in 0_u64..=u64::MAX, unit in 0_u32..=40) {
        let size = Size(number >> unit << unit);
        prop_assert_eq!(Size::parse(&size.show()), Ok(size));
    }

    #[test]
    fn a_duration_keeps_its_unit(number in 1_u64..100_000, unit in 0_usize..4) {
        let (unit, millis) = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)][unit];
        let parsed = Duration::parse(&format!("{number}{unit}"));
        prop_assert_eq!(parsed, Ok(Duration::from_millis(number * millis)));
    }

    #[test]
    fn whatever_was_suggested_is_right(text in "[0-9]{1,3}(\\.5)? ?([kKmMgG]i?[bB]?|s|sec|min|h|ms)?") {
        for key in ["max_body", "slots.request_timeout"] {
            let value = |text: &str| Config::from_toml(&format!("{key} = {text:?}\nworkers.app = \"a\""));
            let Err(mistakes) = value(&text) else { continue };
            let mistake = mistakes.to_string();
            let Some((_, advice)) = mistake.split_once("; write \"") else { continue };
            if let Some(advice) = advice.strip_suffix('"').filter(|advice| !advice.contains('"')) {
                // Out of range, then, at worst.
                let again = value(advice).err().map(|mistakes| mistakes.to_string());
                prop_assert!(
                    again.as_ref().is_none_or(|again| again.contains("is too ")),
                    "{} gave {}, which gave {:?}", text, advice, again
                );
            }
        }
    }

    #[test]
    fn no_text_is_too_strange_to_judge(text in "\\PC{0,40}", number in 0..KEYS.len()) {
        let key = &KEYS[number];
        let sources = Sources {
            env: env(&[(&key.variable(), &text)]),
            ..Sources::default()
        };
        if let Err(mistakes) = load(beside(key), &sources) {
            for mistake in &mistakes.0 {
                prop_assert!(!mistake.to_string().contains('\n'));
            }
        }
    }

    #[test]
    fn no_file_is_too_strange_to_judge(text in "([a-z]{1,3}|[\\[\\]{}=\",.\n#'é]|slots|count|listen|workers|app|1){0,30}") {
        let Err(mistakes) = Config::from_toml(&text) else { return Ok(()) };
        for mistake in &mistakes.0 {
            prop_assert!(!mistake.to_string().contains('\n'), "{}", mistake);
        }
    }
}

#[test]
fn the_hash_after_a_reload_is_of_what_is_in_force() {
    let load = |text: &str| Config::from_toml(text).expect("valid");
    for (old, new, in_force) in [
        (
            "slots.count = 8\nslots.queue = 10\nworkers.app = \"shop:app\"",
            "slots.count = 1\nslots.queue = 20\nworkers.app = \"shop:app\"\nworkers.mode = \"wsgi\"",
            "slots.count = 8\nslots.queue = 20\nworkers.app = \"shop:app\"\nworkers.mode = \"wsgi\"",
        ),
        (
            "log_format = \"json\"\nworkers.app = \"shop:app\"\nworkers.processes = 2",
            "drain_timeout = \"9s\"\nworkers.link = \"unix:/run/link.sock\"",
            "drain_timeout = \"9s\"\nlog_format = \"json\"\nworkers.app = \"shop:app\"\nworkers.processes = 2",
        ),
    ] {
        let (old, new, in_force) = (load(old), load(new), load(in_force));
        let kept = old.config.kept(&new.config);
        let reloaded = old.effective.reloaded(new.effective, &kept);
        assert_eq!(reloaded.hash(), in_force.effective.hash());
        assert_ne!(reloaded.hash(), old.effective.hash());
        assert_eq!(old.config.reloaded(new.config), in_force.config);
    }
}

#[test]
fn plans_over_http_take_an_address_and_a_secret() {
    let text = r#"
workers.upstream = "unix:/run/app.sock"
workers.plans = true
plans.listen = "127.0.0.1:9182"
plans.secret = "0123456789abcdef0123456789abcdef"
[[route]]
path = "/live"
upstream = "unix:/run/live.sock"
plans = true
"#;
    let loaded = Config::from_toml(text).expect("valid");
    let plans = loaded.config.plans.clone().expect("given");
    assert_eq!(plans.secret.0, "0123456789abcdef0123456789abcdef");
    assert!(loaded.config.workers.plans);
    let route = loaded.config.routes[0].upstream.clone();
    assert!(route.is_some_and(|upstream| upstream.plans));
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let shown = loaded.effective.to_string();
    assert!(!shown.contains("0123456789abcdef"), "{shown}");
    assert!(shown.contains("plans = true }"), "{shown}");
    assert!(!format!("{:?}", loaded.config).contains("0123456789abcdef"));

    let other = text
        .replace("9182", "9183")
        .replace("0123456789abcdef0", "another-one-of-32-");
    let new = Config::from_toml(&other).expect("valid").config;
    let old = loaded.config;
    assert_eq!(old.changes_needing_restart(&new), ["plans.listen"]);
    let reloaded = old.clone().reloaded(new.clone()).plans.expect("kept");
    assert_eq!(reloaded.listen, plans.listen);
    assert_eq!(
        Some(&reloaded.secret),
        new.plans.as_ref().map(|it| &it.secret)
    );

    let open = Config::from_toml(&text.replace("127.0.0.1", "0.0.0.0")).expect("valid");
    assert!(open.warnings[0].contains("plans.listen: 0.0.0.0:9182 lets other hosts try"));
}

#[test]
fn what_plans_over_http_lack_is_said() {
    for (text, said) in [
        (
            "plans.listen = \"unix:b\"",
            "layby.toml:1: plans.listen: says nothing without plans.secret; set both",
        ),
        (
            "plans.secret = \"0123456789abcdef0123456789abcdef\"",
            "layby.toml:1: plans.secret: says nothing without plans.listen; set both",
        ),
        (
            "plans.secret = \"0123456789abcdef\"\nplans.listen = \"unix:b\"",
            "layby.toml:1: plans.secret: *** is shorter than 32 characters; write what `openssl rand -hex 32` prints",
        ),
        (
            "plans.secret = \"0123456789abcdef 123456789abcdef\"\nplans.listen = \"unix:b\"",
            "layby.toml:1: plans.secret: *** has blanks, or characters beyond ASCII; \
             write what `openssl rand -hex 32` prints",
        ),
        (
            "plans.secret = hunter2\nplans.listen = \"unix:b\"",
            "layby.toml:1: plans.secret: the value has no quotes; write it in quotes",
        ),
        (
            "plans.listen = \"systemd\"\nplans.secret = \"0123456789abcdef0123456789abcdef\"",
            "layby.toml:1: plans.listen: is not for sockets of systemd; write unix:PATH, or an address of this machine",
        ),
        (
            "plans.listen = \"127.0.0.1:8000\"\nplans.secret = \"0123456789abcdef0123456789abcdef\"",
            "layby.toml:1: plans.listen: 127.0.0.1:8000 is taken by listen already; write another",
        ),
    ] {
        assert_eq!(mistake(text), said, "{text}");
    }
    assert_eq!(
        mistakes(
            "workers.upstream = \"unix:a\"\nworkers.plans = true\n[[route]]\npath = \"/a\"\nupstream = \"unix:c\"\nplans = true\n\
             [[route]]\npath = \"/b\"\nupstream = \"unix:c\"\n[[route]]\npath = \"/c\"\nplans = false"
        ),
        "layby.toml:2: workers.plans: needs [plans]; set plans.listen and plans.secret\n\
         layby.toml:6: route.plans: needs [plans]; set plans.listen and plans.secret\n\
         layby.toml:7: route.plans: unix:c has true by the route at layby.toml:3; write true here too\n\
         layby.toml:12: route.plans: says nothing without upstream; remove it, or set upstream"
    );
    assert_eq!(
        mistake("workers.app = \"base\"\nworkers.plans = true"),
        "layby.toml:2: workers.plans: says nothing beside workers.app; remove it"
    );
}
