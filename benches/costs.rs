//! What two parts of the gateway cost by themselves: an entry of the access log, and a fetch.
//!
//!     cargo bench --bench costs
//!
//! CPU time of the threads that do the work, as the kernel counts it, so that other work on the machine
//! disturbs little. Rounds alternate between the compared; the lowest is the one least disturbed.

use std::fs;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, StatusCode};
use layby::config::{self, AccessFormat, Allow};
use layby::downstream::access_log::{AccessLog, Ended, Style};
use layby::message::{Client, Scheme};
use layby::metrics::Metrics;
use layby::outbound::Outbound;
use layby::plan::{Fetch, Gather, Join, Outcome, Plan, Thing};
use layby::record::{Id, Record, Stage};
use layby::slots::SlotId;
use layby::spool::Spool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const ROUNDS: usize = 9;
const ENTRIES: u32 = 100_000;
const FAN_OUT: usize = 32;
const PLANS: usize = 200;

fn main() {
    // `cargo test --benches` calls it too, to see that it runs; then it measures nothing.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    access_log();
    fetches();
}

/// CPU time of this process' threads of this name, in nanoseconds.
fn cpu_of(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux has it");
    tasks
        .filter_map(|task| {
            let task = task.ok()?.path();
            let named = fs::read_to_string(task.join("comm")).ok()?;
            let times = fs::read_to_string(task.join("schedstat")).ok()?;
            let on_cpu: u64 = times.split(' ').next()?.parse().ok()?;
            (named.trim_end() == name).then_some(on_cpu)
        })
        .sum()
}

/// The work's result in a thread of this name, with its own runtime.
fn in_thread<T: Send + 'static>(name: &str, work: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let thread = thread::Builder::new().name(name.to_owned());
    let working = thread.spawn(move || runtime.block_on(work()));
    working.expect("a thread").join().expect("it ends well")
}

// The access log --------------------------------------------------------------------------------

fn access_log() {
    let style = |format| {
        let config = config::AccessLog {
            format,
            path: None,
            query: false,
        };
        Style::new(&config)
    };
    let styles = [
        ("off", None),
        ("json", style(AccessFormat::Json)),
        ("combined", style(AccessFormat::Combined)),
    ];
    let log = AccessLog::start(Some("/dev/null".into()), Metrics::new(&[])).expect("a log");
    let mut lowest = [f64::MAX; 3];
    for _ in 0..ROUNDS {
        for ((_, style), lowest) in styles.iter().zip(&mut lowest) {
            let (log, style) = (log.clone(), *style);
            let spent = in_thread("entries", async move || {
                let before = cpu_of("entries");
                entries(&log, style);
                cpu_of("entries") - before
            });
            *lowest = lowest.min(spent as f64 / f64::from(ENTRIES));
        }
    }
    println!("access log, CPU ns per request: head, record with six stages, line");
    for ((name, _), each) in styles.iter().zip(lowest) {
        println!("  {name:10} {each:7.0}   {:+7.0}", each - lowest[0]);
    }
}

/// What is done for so many requests, with a style or without a log.
fn entries(log: &AccessLog, style: Option<Style>) {
    let request = Request::get("/products/teapot/?color=blue")
        .header("host", "shop.example")
        .header("referer", "https://shop.example/products/?page=2")
        .header(
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        );
    let (parts, ()) = request.body(()).expect("a request").into_parts();
    let client = Client {
        address: Some([203, 0, 113, 9].into()),
        port: Some(4711),
        peer: None,
        scheme: Scheme::Https,
        host: None,
        server_name: "shop.example".to_owned(),
        server_port: 443,
        credential: layby::message::Credential::Unasked,
    };
    for _ in 0..ENTRIES {
        let arrived = Instant::now();
        let head = style.map(|style| (SystemTime::now(), style.head(&parts, &client)));
        let record = Record::new(Id::new(), None, arrived);
        record.enters(Stage::Queue);
        record.runs(SlotId(3), 77, Instant::now());
        record.enters(Stage::Park);
        record.enters(Stage::Resume);
        record.runs(SlotId(3), 77, Instant::now());
        record.enters(Stage::Answer);
        if let Some(((at, head), style)) = head.zip(style) {
            let now = Instant::now();
            let ended = Ended {
                head: &head,
                record: &record,
                course: record.course(now),
                arrived: at,
                seconds: now - arrived,
                status: 200,
                sent: 12_345,
                whole: true,
                why: None,
            };
            log.add(style, &ended);
        }
        black_box(record);
    }
}

// Fetches ---------------------------------------------------------------------------------------

fn fetches() {
    // There may be one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("http://{}/", origin());
    let config = config::Outbound {
        allow: vec![Allow::Net("127.0.0.1/32".parse().expect("a network"))],
        timeout: Duration::from_secs(30),
        max_response: 1 << 20,
        max_held: 1 << 30,
        label: Vec::new(),
    };
    let metrics = Metrics::new(&[]);
    let spool = Spool::new(std::env::temp_dir(), metrics.clone()).expect("a folder");
    let memory = spool.memory().clone();
    let outbound = Outbound::start(&config, Arc::new(metrics), memory).expect("outbound");
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client");
    let count = (PLANS * FAN_OUT) as f64;
    let (mut plans, mut bare) = (f64::MAX, f64::MAX);
    // The bare client's connections live as long as its runtime.
    let (asked, orders) = tokio::sync::mpsc::unbounded_channel();
    let (done, answers) = std::sync::mpsc::channel();
    let bare_url = url.clone();
    let bare_thread = thread::spawn(move || {
        in_thread("bare", async move || {
            let mut orders: tokio::sync::mpsc::UnboundedReceiver<()> = orders;
            while orders.recv().await.is_some() {
                for _ in 0..PLANS {
                    let fetch = || async {
                        let response = client.get(&bare_url).send().await.expect("an answer");
                        assert_eq!(response.status(), StatusCode::OK);
                        response.bytes().await.expect("a body")
                    };
                    black_box(join_all((0..FAN_OUT).map(|_| fetch())).await);
                }
                done.send(()).expect("somebody waits");
            }
        });
    });
    for _ in 0..ROUNDS {
        let before = cpu_of("layby-outbound");
        let (outbound, url) = (outbound.clone(), url.clone());
        let hops = in_thread("caller", async move || {
            let before = cpu_of("caller");
            for _ in 0..PLANS {
                let deadline = Instant::now() + Duration::from_secs(30);
                let outcomes = outbound.run(plan(&url), deadline.into()).await;
                let is_whole = |outcome: &Outcome| matches!(outcome, Outcome::Response(response) if response.status == 200);
                assert!(outcomes.iter().all(is_whole));
            }
            cpu_of("caller") - before
        });
        let spent = cpu_of("layby-outbound") - before + hops;
        plans = plans.min(spent as f64 / count);

        let before = cpu_of("bare");
        asked.send(()).expect("it listens");
        answers.recv().expect("it answers");
        bare = bare.min((cpu_of("bare") - before) as f64 / count);
    }
    drop(asked);
    bare_thread.join().expect("it ends well");
    println!("fetches, fan-out {FAN_OUT}, 1 KiB, CPU ns per fetch");
    println!("  reqwest alone   {bare:7.0}");
    println!("  a plan's fetch  {plans:7.0}   x {:.2}", plans / bare);
}

fn plan(url: &str) -> Plan {
    let fetch = || {
        Thing::Fetch(Fetch {
            method: Method::GET,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            timeout: None,
            follow: false,
            body: None,
            span: None,
        })
    };
    Plan {
        root: Gather {
            things: (0..FAN_OUT).map(|_| fetch()).collect(),
            join: Join::All,
            timeout: None,
        },
        hold: None,
    }
}

/// Answers whatever asks, with a kilobyte.
fn origin() -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        in_thread("origin", async move || {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            tell.send(listener.local_addr().expect("it has one"))
                .expect("somebody waits");
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 1024\r\n\r\n";
            let answer: Arc<[u8]> = [head.as_bytes(), &[b'x'; 1024]].concat().into();
            loop {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    let mut request = Vec::with_capacity(4096);
                    while let Ok(1..) = stream.read_buf(&mut request).await {
                        if request.ends_with(b"\r\n\r\n") {
                            request.clear();
                            if stream.write_all(&answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
    });
    told.recv().expect("the origin starts")
}
