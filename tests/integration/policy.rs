//! What fetches may reach, seen through the whole gateway: what is refused connects to nothing.

use serde_json::json;

use crate::support::gateway::{self, Gateway};
use crate::support::origin::{self, Origin};
use crate::support::plan::Plan;
use crate::support::worker::{self, Worker};

async fn telling(gateway: gateway::Builder, plan: Plan) -> (Gateway, Worker) {
    let gateway = gateway.run().await;
    let worker = worker::new(1).tells("/x", plan).run(&gateway).await;
    (gateway, worker)
}

/// Every fetch of these URLs is refused, with a message that is of use, and nothing connects.
async fn refused(gateway: gateway::Builder, origin: &Origin, urls: &[String]) {
    let fetch = |url: &String| json!({ "fetch": { "method": "GET", "url": url } });
    let things: Vec<_> = urls.iter().map(fetch).collect();
    let (gateway, _worker) = telling(gateway, Plan::of(json!(things)).following()).await;
    let results = gateway.get("/x").await.json();
    for (url, result) in urls
        .iter()
        .zip(results["results"].as_array().expect("an array"))
    {
        assert_eq!(result["error"], "refused", "{url}: {result}");
        assert!(
            result["message"]
                .as_str()
                .is_some_and(|text| text.len() > 10),
            "{result}"
        );
    }
    let series = "layby_fetches_total{origin=\"other\",outcome=\"refused\"}";
    assert_eq!(gateway.metric(series).await, urls.len() as f64);
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn loopback_by_any_spelling_is_refused() {
    let origin = origin::answering("secret").await;
    let port = origin.address().port();
    let urls = [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.8.9.10",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "127.0.0.1.",
        "\u{ff11}27.0.0.1",
        "127\u{3002}0\u{3002}0\u{3002}1",
        "user:password@127.0.0.1",
        "%31%32%37.0.0.1",
        "a.localhost",
    ];
    let urls: Vec<_> = urls
        .iter()
        .map(|host| format!("http://{host}:{port}/"))
        .collect();
    refused(gateway::new(1).unset("outbound.allow"), &origin, &urls).await;
}

#[tokio::test]
async fn metadata_and_private_addresses_are_refused() {
    let origin = origin::answering("secret").await;
    let hosts = [
        "169.254.169.254",
        "169.254.170.2",
        "[fd00:ec2::254]",
        "2852039166",
        "0xa9fea9fe",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "[fe80::1]",
        "[fc00::1]",
        "255.255.255.255",
        "224.0.0.1",
        "198.18.0.1",
        "192.0.2.1",
    ];
    let urls: Vec<_> = hosts
        .iter()
        .map(|host| format!("http://{host}/latest/meta-data/"))
        .collect();
    refused(gateway::new(1).unset("outbound.allow"), &origin, &urls).await;
}

#[tokio::test]
async fn an_allowed_address_allows_no_other() {
    let origin = origin::answering("secret").await;
    let port = origin.address().port();
    // A name that resolves to the same place is not the literal that was allowed.
    let urls = [
        "http://169.254.169.254/".to_owned(),
        format!("http://127.0.0.2:{port}/"),
        format!("http://[::1]:{port}/"),
        "http://example.com/".to_owned(),
    ];
    let gateway = gateway::new(1).set("outbound.allow", "127.0.0.1/32");
    refused(gateway, &origin, &urls).await;
}

#[tokio::test]
async fn a_name_is_no_way_to_loopback() {
    let builder = gateway::new(1).set("outbound.allow", "public,localhost");
    let (status, log) = builder.fail().await;
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("write 127.0.0.1"), "{log}");
}

#[tokio::test]
async fn a_redirect_to_where_a_fetch_may_not_go_is_refused() {
    let secret = origin::answering("secret").await;
    let port = secret.address().port();
    for target in [
        format!("http://127.0.0.2:{port}/"),
        format!("http://localhost:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "//169.254.169.254/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let redirect = origin::redirecting(&target).await;
        let plan = Plan::get(&redirect.url("/")).following();
        let (gateway, _worker) = telling(gateway::new(1), plan).await;
        let result = gateway.get("/x").await.json()["results"][0].clone();
        assert!(
            ["refused", "failed"].contains(&result["error"].as_str().unwrap_or_default()),
            "{target}: {result}"
        );
        assert_eq!(result["phase"], "redirect", "{target}: {result}");
        assert_eq!(redirect.requests().len(), 1);
    }
    assert_eq!(secret.connections(), 0);
}

#[tokio::test]
async fn schemes_that_are_not_http_are_refused() {
    let urls = [
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://127.0.0.1:6379/_x",
        "unix:/a",
    ];
    let fetch = |url: &&str| json!({ "fetch": { "method": "GET", "url": url } });
    let things: Vec<_> = urls.iter().map(fetch).collect();
    let (gateway, _worker) = telling(gateway::new(1), Plan::of(json!(things))).await;
    let results = gateway.get("/x").await.json();
    for result in results["results"].as_array().expect("an array") {
        let error = result["error"].as_str().unwrap_or_default();
        assert!(["refused", "failed"].contains(&error), "{result}");
        assert_eq!(result["phase"], "url", "{result}");
    }
}

#[tokio::test]
async fn secrets_in_urls_stay_out_of_results_and_log() {
    let origin = origin::saying(b"nonsense").await;
    let url = format!(
        "http://user:hunter2@{}/?api_key=s3cret&token=t0ken&zip=1",
        origin.address()
    );
    let (gateway, _worker) = telling(gateway::new(1), Plan::get(&url)).await;
    let result = gateway.get("/x").await.json()["results"][0].clone();
    assert_eq!(result["error"], "failed", "{result}");
    let told = result.to_string();
    for secret in ["hunter2", "s3cret", "t0ken"] {
        assert!(!told.contains(secret), "{told}");
        assert!(gateway.log_lines(secret).is_empty());
    }
}
