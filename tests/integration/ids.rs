//! What a request is called, and whose trace it is part of: to workers, clients and origins.

use serde_json::{Value, json};

use crate::support::plan::Plan;
use crate::support::worker::Answer;
use crate::support::{gateway, origin, worker};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn environ(response: &crate::support::http::Response) -> Value {
    serde_json::from_str(response.ok()).expect("JSON")
}

fn is_made(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

#[tokio::test]
async fn the_application_and_the_client_know_a_request_by_the_same_id() {
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    // Nobody vouches for this client.
    let request = gateway.get("/environ").header("X-Request-ID", "mine");
    let response = request.await;
    let id = response.header("x-request-id").expect("an id").to_owned();
    assert!(is_made(&id), "{id}");
    assert_eq!(environ(&response)["HTTP_X_REQUEST_ID"], id);
    let other = gateway.get("/environ").await;
    assert_ne!(other.header("x-request-id"), Some(&*id));
}

#[tokio::test]
async fn a_trusted_proxy_names_requests_if_it_does_it_well() {
    let gateway = gateway::new(1).set("trusted_proxies", "127.0.0.1");
    let gateway = gateway.run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let named = gateway.get("/environ").header("X-Request-ID", "edge-7:1");
    let named = named.await;
    assert_eq!(named.header("x-request-id"), Some("edge-7:1"));
    assert_eq!(environ(&named)["HTTP_X_REQUEST_ID"], "edge-7:1");
    let forged = gateway.get("/environ").header("X-Request-ID", "a\" b");
    let forged = forged.await;
    assert!(is_made(forged.header("x-request-id").expect("an id")));
}

#[tokio::test]
async fn an_application_that_names_its_answers_keeps_its_names() {
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1)
        .on("/own", async |job| {
            let answer = Answer::new(200).header("X-Request-ID", "own");
            job.respond(answer).await
        })
        .run(&gateway)
        .await;
    assert_eq!(
        gateway.get("/own").await.header("x-request-id"),
        Some("own")
    );
}

#[tokio::test]
async fn what_the_gateway_answers_itself_says_which_request_it_is_about() {
    let gateway = gateway::new(1).set("slots.queue", "0").run().await;
    let shed = gateway.get("/ping").header("Accept", "application/json");
    let shed = shed.await;
    assert_eq!(shed.status(), 503);
    let id = shed.header("x-request-id").expect("an id");
    assert!(is_made(id));
    assert_eq!(
        shed.json(),
        json!({"status": 503, "error": "the server is busy; try again later", "request_id": id})
    );
}

#[tokio::test]
async fn fetches_belong_to_the_trace_of_their_request() {
    let origin = origin::answering("12").await;
    let gateway = gateway::new(1).run().await;
    let own = "00-11111111111111111111111111111111-2222222222222222-00";
    let fetch = json!({ "method": "GET", "url": origin.url("/") });
    let mut marked = fetch.clone();
    marked["headers"] = json!([["traceparent", own]]);
    let both = Plan::of(json!([{ "fetch": fetch }, { "gather": [{ "fetch": marked }] }]));
    let worker = worker::new(1)
        .on("/quote", move |mut job| {
            let plan = both.clone();
            async move {
                let parent = job.environ("HTTP_TRACEPARENT").to_owned();
                job.park(&plan).await?;
                job.answer(200, parent).await
            }
        })
        .run(&gateway)
        .await;
    let quote = || gateway.get("/quote");
    let known = quote()
        .header("traceparent", PARENT)
        .header("tracestate", "a=1");
    assert_eq!(known.await.ok(), PARENT);
    let requests = origin.requests();
    let is_child = |request: &&String| {
        request.contains("traceparent: 00-0af7651916cd43dd8448eb211c80319c-")
            && !request.contains("b7ad6b7169203331")
            && request.contains("tracestate: a=1\r\n")
    };
    let is_own = |request: &&String| {
        request.contains(&format!("traceparent: {own}\r\n")) && !request.contains("tracestate")
    };
    assert_eq!(requests.iter().filter(is_child).count(), 1, "{requests:?}");
    assert_eq!(requests.iter().filter(is_own).count(), 1, "{requests:?}");

    // Without a trace, and with something that only looks like one, there is none.
    for parent in ["", "00-nonsense"] {
        let unknown = quote().header("traceparent", parent);
        assert_eq!(unknown.await.ok(), "");
    }
    let marks = origin.requests().join("").matches("traceparent").count();
    assert_eq!(marks, 2 + 2, "{:?}", origin.requests());
    drop(worker);
}
