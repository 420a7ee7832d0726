//! Slots from the limits of a real PostgreSQL server, and what is said when that fails.

use std::io::Read;
use std::net::TcpListener;
use std::thread;

use layby::config::Secret;
use layby::database::{Budget, BudgetError, budget};

use crate::support::postgres::{OWNER, PASSWORD, Postgres};

async fn ask(url: String) -> Result<Budget, BudgetError> {
    budget(&Secret(url)).await
}

/// The first line of the sum.
async fn sum(url: String) -> String {
    let budget = ask(url).await.unwrap_or_else(|e| panic!("{e}"));
    let sum = budget.to_string();
    sum.lines().next().expect("it is never empty").to_owned()
}

async fn failure(url: String) -> BudgetError {
    let budget = ask(url).await;
    let error = budget.expect_err("this must fail");
    assert!(!error.to_string().contains(PASSWORD), "{error}");
    error
}

#[tokio::test]
async fn the_least_limit_of_server_role_and_database_counts() {
    let postgres = Postgres::settings()
        .set("max_connections = 40")
        .set("superuser_reserved_connections = 2")
        .start();
    let owner = postgres.owner().await;
    owner.role("plain", "").await;
    owner.role("narrow", "CONNECTION LIMIT 12").await;
    owner.run("CREATE DATABASE small CONNECTION LIMIT 7").await;

    assert_eq!(
        sum(postgres.url("plain", "postgres")).await,
        "max_connections 40 − reserved 2 − head-room 4 = 34"
    );
    assert_eq!(
        sum(postgres.url("narrow", "postgres")).await,
        "max_connections 40 − reserved 2 = 38; role narrow: 12; 12 − head-room 2 = 10"
    );
    assert_eq!(
        sum(postgres.url("narrow", "small")).await,
        "max_connections 40 − reserved 2 = 38; role narrow: 12; database small: 7; \
         7 − head-room 2 = 5"
    );
    assert_eq!(
        sum(postgres.url(OWNER, "small")).await,
        "max_connections 40 − reserved 2 − head-room 4 = 34"
    );
}

#[tokio::test]
async fn a_socket_is_as_good_as_a_port() {
    let postgres = Postgres::settings().set("max_connections = 15").start();
    let budget = ask(postgres.socket_url(OWNER, "postgres"))
        .await
        .expect("it answers");
    assert_eq!(budget.slots().expect("15 − 3 − 2"), 10);
}

#[tokio::test]
async fn connections_of_others_are_seen_even_by_a_plain_role() {
    let postgres = Postgres::settings().set("max_connections = 20").start();
    let owner = postgres.owner().await;
    owner.role("plain", "").await;
    owner.role("other", "").await;
    let mut others = vec![owner];
    while others.len() < 9 {
        others.push(postgres.connect("other", "postgres").await);
    }

    let budget = ask(postgres.url("plain", "postgres"))
        .await
        .expect("it answers");
    let sum = budget.to_string();
    assert!(sum.ends_with("in use by others now: 9"), "{sum}");
    assert_eq!(budget.check_fixed(8), None);
    let warning = budget.check_fixed(9).expect("17 − 9 = 8 are free");
    assert!(warning.contains("only 8 are free"), "{warning}");
    let warning = budget.check_fixed(18).expect("17 are allowed");
    assert!(warning.contains("allows 17 connections"), "{warning}");
}

#[tokio::test]
async fn a_full_database_cannot_even_be_asked() {
    let postgres = Postgres::settings().set("max_connections = 6").start();
    let owner = postgres.owner().await;
    owner.role("plain", "").await;
    let first = postgres.connect("plain", "postgres").await;
    let second = postgres.connect("plain", "postgres").await;

    let error = failure(postgres.url("plain", "postgres")).await;
    assert!(matches!(error, BudgetError::Full { .. }), "{error}");
    assert!(
        error.to_string().contains("give slots.count as a number"),
        "{error}"
    );
    drop((owner, first, second));
}

#[tokio::test]
async fn a_role_of_few_connections_has_none_for_slots() {
    let postgres = Postgres::start();
    let owner = postgres.owner().await;
    owner.role("scarce", "CONNECTION LIMIT 2").await;
    let budget = ask(postgres.url("scarce", "postgres"))
        .await
        .expect("it answers");
    let error = budget.slots().expect_err("2 − head-room 2");
    assert!(
        error
            .to_string()
            .contains("role scarce: 2; 2 − head-room 2 = 0"),
        "{error}"
    );
    // Who asks for a number gets it, with a warning.
    assert!(budget.check_fixed(1).is_some());

    owner.role("lonely", "CONNECTION LIMIT 1").await;
    let alone = postgres.connect("lonely", "postgres").await;
    let error = failure(postgres.url("lonely", "postgres")).await;
    assert!(matches!(error, BudgetError::Full { .. }), "{error}");
    drop(alone);
}

#[tokio::test]
async fn what_is_wrong_with_the_login_is_said() {
    let postgres = Postgres::start();
    let wrong = format!(
        "postgres://{OWNER}:wrong@127.0.0.1:{}/postgres",
        postgres.port()
    );
    let error = failure(wrong).await;
    assert!(
        matches!(error, BudgetError::Authentication { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("password authentication failed"),
        "{error}"
    );
    assert!(
        error.to_string().contains("check user and password"),
        "{error}"
    );

    let error = failure(postgres.url("nobody_knows", "postgres")).await;
    assert!(
        matches!(error, BudgetError::Authentication { .. }),
        "{error}"
    );

    let error = failure(postgres.url(OWNER, "no_such_database")).await;
    assert!(matches!(error, BudgetError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let addr = free.expect("a free port");
    let error = failure(format!("postgres://web@{addr}/shop")).await;
    assert!(matches!(error, BudgetError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("shop at {addr} as web")), "{text}");
    assert!(text.contains("refused"), "{text}");

    let error = failure("postgres:///shop?host=/nowhere/at/all".to_owned()).await;
    assert!(matches!(error, BudgetError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_database_that_says_nothing_is_not_waited_for_long() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    // Reads what it is told until the asker hangs up.
    let silent = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody comes");
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    let error = failure(format!("postgres://web@{addr}/shop")).await;
    assert!(matches!(error, BudgetError::Timeout { .. }), "{error}");
    let hung_up = silent.join().expect("it does not panic");
    hung_up.expect("the connection was closed");
}

#[tokio::test]
async fn tls_is_checked_as_far_as_sslmode_says() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let certificate = certificate.expect("a name is all it takes");
    let pem = certificate.cert.pem();
    let postgres = Postgres::settings()
        .tls(pem.clone(), certificate.signing_key.serialize_pem())
        .hba("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
        .start();
    let roots = postgres.folder().join("roots.pem");
    std::fs::write(&roots, pem).expect("the folder is there");
    let roots = format!("&sslrootcert={}", roots.display());

    let by_address = postgres.url(OWNER, "postgres");
    let by_name = by_address.replace("127.0.0.1", "localhost");
    for url in [
        by_address.clone(),
        format!("{by_address}?sslmode=require"),
        format!("{by_address}?sslmode=verify-ca{roots}"),
        format!("{by_name}?sslmode=verify-full{roots}"),
    ] {
        ask(url.clone())
            .await
            .unwrap_or_else(|e| panic!("{url}: {e}"));
    }

    let plain = failure(format!("{by_address}?sslmode=disable")).await;
    assert!(
        matches!(plain, BudgetError::Authentication { .. }),
        "{plain}"
    );
    for url in [
        // Not the name in the certificate.
        format!("{by_address}?sslmode=verify-full{roots}"),
        // Not a certificate that any system trusts.
        format!("{by_name}?sslmode=verify-full"),
        format!("{by_address}?sslmode=verify-ca"),
    ] {
        let distrust = failure(url).await;
        assert!(
            distrust.to_string().contains("invalid peer certificate"),
            "{distrust}"
        );
    }
}

#[tokio::test]
async fn tls_that_the_server_does_not_have_is_an_error_when_required() {
    let postgres = Postgres::start();
    let url = format!("{}?sslmode=require", postgres.url(OWNER, "postgres"));
    let error = failure(url).await;
    assert!(matches!(error, BudgetError::Unreachable { .. }), "{error}");
    assert!(
        error.to_string().contains("does not support TLS"),
        "{error}"
    );
}

#[tokio::test]
async fn a_dropped_server_leaves_nothing() {
    let postgres = Postgres::start();
    let (folder, port) = (postgres.folder().to_owned(), postgres.port());
    drop(postgres);
    assert!(!folder.exists());
    let error = failure(format!("postgres://web@127.0.0.1:{port}/shop")).await;
    assert!(matches!(error, BudgetError::Unreachable { .. }), "{error}");
}
