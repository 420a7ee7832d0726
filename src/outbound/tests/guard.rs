//! What is not permitted is not connected to: every test here counts the connections
//! that reach a listener nobody may reach.

use std::net::Ipv4Addr;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::origin::redirect;
use super::*;
use crate::outbound::fetch::first_hop;
use crate::outbound::resolve;
use crate::outbound::settings::Settings;
use crate::plan::{FailureKind, Phase};

/// Ways to write 127.0.0.1 and its kind in a URL, before the port.
const LOOPBACK: [&str; 34] = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0X7F.0x0.0x0.0x1",
    "0177.0.0.1",
    "017700000001",
    "0300.0250.0.1",
    "0",
    "0.0.0.0",
    "127.0.0.0x1",
    "%31%32%37.0.0.1",
    "%3127.0.0.1",
    "１２７.0.0.1",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "ⓛocalhost",
    "%6cocalhost",
    "a.localhost",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7f00:1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
];

/// Addresses that no list which does not name them may open.
const ELSEWHERE: [&str; 22] = [
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "10.0.0.1",
    "012.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "3232235521",
    "[fc00::1]",
    "[2001:0:7f00:1::]",
    "[ff02::1]",
    "255.255.255.255",
    "224.0.0.1",
];

#[tokio::test]
async fn no_spelling_of_a_forbidden_address_is_connected_to() {
    let forbidden = Origin::saying("secret").await;
    let port = forbidden.address.port();
    let harness = Harness::with(&settings(&["public"]));
    for host in LOOPBACK.iter().chain(&ELSEWHERE) {
        for authority in [format!("{host}:{port}"), format!("a.example@{host}:{port}")] {
            let url = format!("http://{authority}/");
            let failure = harness.failure(get(&*url)).await;
            assert_eq!(failure.kind, FailureKind::Refused, "{url}: {failure:?}");
        }
    }
    for url in [
        format!("http:127.0.0.1:{port}/"),
        format!("http:/\\127.0.0.1:{port}/"),
        format!("\thttp://127.0.\n0.1:{port}/ "),
        format!("http://a.example\\@127.0.0.1:{port}/"),
        format!("http://127.0.0.1:{port}\\@a.example/"),
        format!("https://127.0.0.1:{port}/"),
    ] {
        let failure = harness.failure(get(&*url)).await;
        assert_ne!(failure.phase, Phase::Head, "{url}: {failure:?}");
    }
    assert_eq!(forbidden.accepts(), 0);
}

#[tokio::test]
async fn no_redirect_leads_to_a_forbidden_address() {
    let forbidden = Origin::saying("secret").await;
    let port = forbidden.address.port();
    let hosts = LOOPBACK.iter().chain(&ELSEWHERE);
    let locations: Vec<String> = hosts.map(|host| format!("//{host}:{port}/")).collect();
    let redirects: Vec<String> = locations.iter().map(|location| ascii(location)).collect();
    let origin = Origin::start_on("127.0.0.2:0", move |request| {
        let n: usize = request.target()[1..].parse().expect("a number");
        redirect(302, &redirects[n])
    })
    .await;
    let harness = Harness::with(&settings(&["127.0.0.2"]));
    for (n, location) in locations.iter().enumerate() {
        let fetch = get(origin.url(&format!("/{n}"))).following();
        let failure = harness.failure(fetch).await;
        let seen = (failure.kind, failure.phase);
        assert_eq!(
            seen,
            (FailureKind::Refused, Phase::Redirect),
            "{location}: {failure:?}"
        );
    }
    assert_eq!(forbidden.accepts(), 0);
}

/// As servers write a `Location`: percent-encoded.
fn ascii(text: &str) -> String {
    let escaped = |byte: u8| match byte.is_ascii() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escaped).collect()
}

#[tokio::test]
async fn a_name_does_not_lead_to_a_forbidden_address() {
    let forbidden = Origin::saying("secret").await;
    let port = forbidden.address.port();
    for found in [
        &["127.0.0.1"][..],
        &["::ffff:127.0.0.1"],
        &["::1", "10.0.0.1"],
        &[],
    ] {
        for allow in ["public", "*.example"] {
            let (lookup, asked) = always(found);
            let harness = Harness::with_lookup(&settings(&[allow, "127.0.0.1"]), lookup);
            let failure = harness
                .failure(get(format!("http://a.example:{port}/")))
                .await;
            let seen = (failure.kind, failure.phase);
            assert_eq!(seen, (FailureKind::Refused, Phase::Dns), "{failure:?}");
            assert_eq!(asked.load(SeqCst), 1);
        }
    }
    assert_eq!(forbidden.accepts(), 0);
}

#[tokio::test]
async fn of_a_names_addresses_only_the_permitted_are_tried() {
    let origin = Origin::saying("hello").await;
    let port = origin.address.port();
    let forbidden = Origin::start_on(&format!("127.0.0.2:{port}"), |_| super::origin::ok("")).await;
    let (lookup, _) = always(&["127.0.0.2", "127.0.0.1"]);
    let harness = Harness::with_lookup(&settings(&["stub.test", "127.0.0.1"]), lookup);

    let response = harness
        .response(get(format!("http://Stub.Test.:{port}/")))
        .await;

    assert_eq!(response.body, "hello");
    let host = format!("stub.test:{port}");
    assert_eq!(origin.request().await.header("host"), Some(&*host));
    assert_eq!(forbidden.accepts(), 0);
}

#[tokio::test]
async fn nobody_is_asked_about_localhost_or_unlisted_names() {
    let (lookup, asked) = always(&["1.1.1.1"]);
    let harness = Harness::with_lookup(&settings(&["public", "localhost"]), Arc::clone(&lookup));
    for name in ["localhost", "x.localhost", "LocalHost."] {
        let failure = harness.failure(get(format!("http://{name}/"))).await;
        assert_eq!(failure.kind, FailureKind::Refused, "{name}");
    }
    let harness = Harness::with_lookup(&settings(&["a.example"]), lookup);
    let failure = harness.failure(get("http://b.example/")).await;
    assert_eq!(
        (failure.kind, failure.phase),
        (FailureKind::Refused, Phase::Url)
    );
    assert_eq!(asked.load(SeqCst), 0);

    let origin = Origin::saying("me").await;
    let harness = Harness::with(&settings(&["localhost", "127.0.0.1"]));
    let url = format!("http://localhost:{}/", origin.address.port());
    assert_eq!(harness.response(get(url)).await.body, "me");
}

#[tokio::test]
async fn new_settings_hold_for_kept_connections_too() {
    let origin = Origin::saying("x").await;
    let harness = Harness::new();
    harness.response(get(origin.url("/"))).await;

    let public = settings(&["public"]);
    let public = harness.outbound.prepare(&public).expect("good settings");
    harness.outbound.apply(public);
    let failure = harness.failure(get(origin.url("/"))).await;
    assert_eq!(failure.kind, FailureKind::Refused);

    let open = settings(&["127.0.0.1"]);
    let open = harness.outbound.prepare(&open).expect("good settings");
    harness.outbound.apply(open);
    harness.response(get(origin.url("/"))).await;
    assert_eq!(origin.accepts(), 2);
}

/// Any way to write an IPv4 address that URLs allow.
fn spelling(address: u32) -> impl Strategy<Value = String> {
    let number = |value: u32, base: u8| match base {
        0 => format!("{value}"),
        1 => format!("0{value:o}"),
        2 => format!("0x{value:x}"),
        _ => format!("0X{value:X}"),
    };
    let parts = move |(count, bases): (usize, [u8; 4])| {
        let octets = address.to_be_bytes().map(u32::from);
        let (alone, rest) = octets.split_at(count - 1);
        let last = rest.iter().fold(0, |sum, octet| sum << 8 | octet);
        let all = alone.iter().copied().chain([last]);
        let spelled = all.zip(bases).map(|(value, base)| number(value, base));
        spelled.collect::<Vec<_>>().join(".")
    };
    let mapped = {
        let (high, low) = (address >> 16, address & 0xffff);
        let dotted = Ipv4Addr::from_bits(address);
        prop_oneof![
            Just(format!("[::ffff:{high:x}:{low:x}]")),
            Just(format!("[0::FFFF:{dotted}]")),
            Just(format!("[64:ff9b::{dotted}]")),
            Just(format!("[2002:{high:X}:{low:x}::1]")),
            Just(format!("[::{dotted}]")),
        ]
    };
    let disguised = |plain: String, disguise: u8| match disguise {
        0 => format!("{plain}."),
        1 => plain.bytes().map(|byte| format!("%{byte:02x}")).collect(),
        2 => plain
            .chars()
            .map(|c| match c {
                '0'..='9' => char::from_u32(c as u32 - '0' as u32 + '０' as u32).unwrap_or(c),
                _ => c,
            })
            .collect(),
        _ => plain,
    };
    prop_oneof![
        4 => (1..=4usize, prop::array::uniform4(0..4u8), 0..6u8)
            .prop_map(move |(count, bases, disguise)| disguised(parts((count, bases)), disguise)),
        1 => mapped,
    ]
}

fn forbidden() -> impl Strategy<Value = u32> {
    let within = |net: u32, bits: u32| (0..=u32::MAX).prop_map(move |any| net | any >> bits);
    prop_oneof![
        within(0x7f00_0000, 8),
        within(0x0a00_0000, 8),
        within(0xac10_0000, 12),
        within(0xc0a8_0000, 16),
        within(0xa9fe_0000, 16),
        within(0x6440_0000, 10),
        within(0xe000_0000, 3),
        within(0, 8),
        Just(0xa9fe_a9fe),
        Just(0x7f00_0001),
    ]
}

fn public_only() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        Settings::new(&settings(&["public"]), resolve::system()).expect("good settings")
    })
}

proptest! {
    #[test]
    fn every_spelling_of_every_forbidden_address_is_refused(
        host in forbidden().prop_flat_map(spelling),
        userinfo in prop_oneof![Just(""), Just("me@"), Just("1.1.1.1:80@")],
        port in prop_oneof![Just(""), Just(":80"), Just(":8080")],
    ) {
        let url = format!("http://{userinfo}{host}{port}/");
        let refused = first_hop(&get(&*url), public_only()).expect_err(&url);
        prop_assert_eq!(refused.kind, FailureKind::Refused, "{}: {:?}", url, refused);
    }

    #[test]
    fn public_addresses_are_not_refused_by_mistake(last in 1..255u8, bases in 0..4u8) {
        let host = match bases {
            0 => format!("1.1.1.{last}"),
            1 => format!("0x0101{:02x}{last:02x}", 1),
            2 => format!("01.0x1.1.{last}"),
            _ => format!("[2606:4700::{last:x}]"),
        };
        let url = format!("http://{host}/");
        prop_assert!(first_hop(&get(&*url), public_only()).is_ok(), "{}", url);
    }
}
