//! Redirects that are followed, one checked hop at a time.

use super::origin::{Step, ok, redirect};
use super::*;
use crate::plan::{FailureKind, Phase};

#[tokio::test]
async fn redirects_are_followed_when_asked() {
    let origin = Origin::start(|request| match request.target() {
        "/a" => redirect(302, "/b"),
        "/b" => redirect(307, "c?d#e"),
        _ => ok("there"),
    })
    .await;
    let harness = Harness::new();

    let stays = harness.response(get(origin.url("/a"))).await;
    assert_eq!(stays.status, 302);
    assert_eq!(stays.headers["location"], "/b");

    let follows = harness.response(get(origin.url("/a")).following()).await;
    assert_eq!(follows.status, 200);
    assert_eq!(follows.body, "there");
    assert_eq!(follows.redirects, 2);
    assert!(
        follows.url.starts_with(&origin.url("/c?d")),
        "{}",
        follows.url
    );
    assert_eq!(harness.ended(2).await, [FetchOutcome::Ok; 2]);
}

#[tokio::test]
async fn a_redirect_without_location_is_an_answer() {
    let origin = Origin::start(|_| super::origin::answer("302 Found", &[], "x")).await;
    let response = Harness::new()
        .response(get(origin.url("/")).following())
        .await;
    assert_eq!((response.status.as_u16(), response.redirects), (302, 0));
}

#[tokio::test]
async fn a_post_is_repeated_only_where_the_status_says_so() {
    let origin = Origin::start(|request| match request.target() {
        "/303" => redirect(303, "/end"),
        "/308" => redirect(308, "/end"),
        _ => ok(""),
    })
    .await;
    let harness = Harness::new();
    for (path, method, body) in [("/303", "GET", ""), ("/308", "POST", "1 EUR")] {
        harness
            .response(post(origin.url(path), "1 EUR").following())
            .await;
        origin.request().await;
        let last = origin.request().await;
        assert_eq!((last.method(), &*last.body), (method, body.as_bytes()));
    }
}

#[tokio::test]
async fn a_loop_ends() {
    let origin = Origin::start(|_| redirect(302, "/again")).await;
    let failure = Harness::new()
        .failure(get(origin.url("/")).following())
        .await;
    assert_eq!(
        (failure.kind, failure.phase),
        (FailureKind::Failed, Phase::Redirect)
    );
    assert!(failure.message.contains("20"), "{failure:?}");
    assert_eq!(origin.unread().await.len(), 21);
}

#[tokio::test]
async fn all_hops_share_one_timeout() {
    let origin = Origin::start(|request| match request.target() {
        "/" => redirect(302, "/stall"),
        _ => vec![Step::Stall],
    })
    .await;
    let fetch = get(origin.url("/")).following();
    let failure = Harness::new()
        .failure(fetch.within(Duration::from_millis(300)))
        .await;
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert_eq!(failure.url, origin.url("/stall"));
    origin.gone().await;
}

#[tokio::test]
async fn credentials_do_not_follow_to_another_origin() {
    let other = Origin::saying("").await;
    let away = other.url("/?from=a");
    let origin = Origin::start(move |_| redirect(307, &away)).await;
    let url = origin.url("/").replace("//", "//me:pw@");
    let fetch = post(url, "hello")
        .header("cookie", "session=1")
        .header("x-api-key", "1")
        .header("content-type", "text/plain")
        .following();

    Harness::new().response(fetch).await;

    let here = origin.request().await;
    let there = other.request().await;
    for name in ["authorization", "cookie", "x-api-key"] {
        assert!(here.header(name).is_some(), "{name}");
        assert!(there.header(name).is_none(), "{name}");
    }
    assert_eq!(there.header("content-type"), Some("text/plain"));
    assert_eq!(there.header("host"), Some(&*other.address.to_string()));
    assert_eq!(there.body, b"hello");
}

#[tokio::test]
async fn a_location_that_cannot_be_followed_is_a_failure() {
    let origin = Origin::start(|_| redirect(302, "http://[")).await;
    let failure = Harness::new()
        .failure(get(origin.url("/")).following())
        .await;
    assert_eq!(
        (failure.kind, failure.phase),
        (FailureKind::Failed, Phase::Redirect)
    );

    let origin = Origin::start(|_| redirect(302, "file:///etc/passwd")).await;
    let failure = Harness::new()
        .failure(get(origin.url("/")).following())
        .await;
    assert_eq!(
        (failure.kind, failure.phase),
        (FailureKind::Refused, Phase::Redirect)
    );
}
