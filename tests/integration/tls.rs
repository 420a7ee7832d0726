//! TLS for clients: what they get, what they may not, and certificates that change.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::gateway::{self, Gateway};
use crate::support::http::{Body, Connection};
use crate::support::tls::{Authority, Client, listens};
use crate::support::worker::{self, Answer};
use crate::support::{takes, within};

/// One request over HTTP/1.1, on a connection of its own.
async fn get(client: &mut Client, gateway: &Gateway, path: &str) -> std::io::Result<String> {
    let stream = client.connect(gateway).await?;
    let mut connection = Connection::over(stream);
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n");
    connection.try_send(request).await?;
    // In TLS 1.3 a client hears that its certificate is not good enough only when it reads.
    match connection.try_response().await {
        Some(response) => Ok(response.ok().to_owned()),
        None => Err(std::io::ErrorKind::ConnectionAborted.into()),
    }
}

fn variable(environ: &str, name: &str) -> String {
    let environ: serde_json::Value = serde_json::from_str(environ).expect("JSON");
    environ[name].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_request_over_tls_is_https_and_everything_else_is_as_without() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(1), &authority).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = authority.client();
    let environ = get(&mut client, &gateway, "/environ")
        .await
        .expect("served");
    let port = gateway.tls().port().to_string();
    for (name, value) in [
        ("wsgi.url_scheme", "https"),
        ("HTTPS", "on"),
        ("SERVER_PORT", port.as_str()),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SSL_CLIENT_VERIFY", ""),
    ] {
        assert_eq!(variable(&environ, name), value, "{name}");
    }
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    let plain = gateway.get("/environ").await;
    assert_eq!(variable(plain.ok(), "wsgi.url_scheme"), "http");

    let stream = client.connect(&gateway).await.expect("a connection");
    let mut kept = Connection::over(stream);
    for size in [0, 1, 100_000, 3_000_000] {
        let body = vec![b'x'; size];
        let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
        kept.send(head).await;
        kept.send(&body).await;
        assert_eq!(kept.response().await.bytes(), body);
    }
    let ok = "layby_tls_handshakes_total{outcome=\"ok\"}";
    assert_eq!(gateway.metric(ok).await, 2.0);
    let ends = gateway.metric("layby_tls_certificate_expiry_seconds").await;
    assert!(ends > 1e10, "{ends}");
}

#[tokio::test]
async fn an_answer_that_is_cut_does_not_end_like_a_whole_one() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(1), &authority).run().await;
    let _worker = worker::new(1)
        .on("/cut", async |job| {
            job.begin(Answer::new(200).body("half")).await;
            job.broken().await
        })
        .run(&gateway)
        .await;
    let stream = authority.client().connect(&gateway).await;
    let mut old = Connection::over(stream.expect("a connection"));
    // Only the end of the connection ends this body.
    old.send("GET /cut HTTP/1.0\r\n\r\n").await;
    let answer = old.response().await;
    assert_eq!(answer.body, Body::Cut(b"half".to_vec()));
}

#[tokio::test]
async fn what_cannot_be_a_handshake_is_refused_and_disturbs_nobody() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(1), &authority).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let silent = TcpStream::connect(gateway.tls()).await.expect("a listener");
    let mut slow = TcpStream::connect(gateway.tls()).await.expect("a listener");
    slow.write_all(&[22, 3, 1]).await.expect("there is room");

    let plain = TcpStream::connect(gateway.tls()).await.expect("a listener");
    let mut plain = Connection::over(plain);
    plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let refusal = plain.response().await;
    assert_eq!(refusal.status(), 400);
    assert!(refusal.text().contains("https://"), "{}", refusal.text());
    assert_eq!(plain.closed().await, b"");

    let garbage = TcpStream::connect(gateway.tls()).await.expect("a listener");
    let mut garbage = Connection::over(garbage);
    garbage.send([0xff; 64]).await;
    garbage.closed().await;

    let mut client = authority.client();
    assert_eq!(
        get(&mut client, &gateway, "/ping").await.expect("served"),
        "pong"
    );
    for (outcome, count) in [("plain", 1.0), ("failed", 1.0), ("ok", 1.0)] {
        let series = format!("layby_tls_handshakes_total{{outcome=\"{outcome}\"}}");
        assert_eq!(gateway.metric(&series).await, count, "{outcome}");
    }
    drop((silent, slow));
}

#[tokio::test]
async fn a_handshake_has_ten_seconds() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(1), &authority).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    takes(Duration::from_secs(10), async || {
        let mut slow = TcpStream::connect(gateway.tls()).await.expect("a listener");
        slow.write_all(&[22, 3, 1]).await.expect("there is room");
        Connection::over(slow).closed().await;
    })
    .await;
    let late = "layby_tls_handshakes_total{outcome=\"timeout\"}";
    assert!(gateway.metric(late).await >= 1.0);
}

#[tokio::test]
async fn clients_without_a_good_certificate_stay_outside_where_one_is_required() {
    let (authority, partners) = (Authority::new("Test CA"), Authority::new("Partners"));
    let builder = listens(gateway::new(1), &authority).beside("partners.pem", &partners.pem());
    let ca = builder.folder().join("partners.pem");
    let gateway = builder.set("tls.client_ca", ca).run().await;
    let worker = worker::new(1).run(&gateway).await;

    for mut stranger in [
        authority.client(),
        authority.client().is(&authority.issue("till.example")),
        authority.client().is(&partners.expired("till.example")),
    ] {
        let refused = get(&mut stranger, &gateway, "/ping").await;
        assert!(refused.is_err(), "{refused:?}");
    }
    assert_eq!(worker.requests(), [""; 0]);

    let till = partners.issue("till.example");
    let mut known = authority.client().is(&till);
    // The second time the session is resumed, and the certificate is known all the same.
    for _ in 0..2 {
        let environ = get(&mut known, &gateway, "/environ").await.expect("let in");
        let fingerprint = ring::digest::digest(&ring::digest::SHA256, &till.der());
        let hex: String = fingerprint
            .as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        for (name, value) in [
            ("SSL_CLIENT_VERIFY", "SUCCESS"),
            ("SSL_CLIENT_S_DN", r"O=Shop\, Ltd,CN=till.example"),
            ("SSL_CLIENT_I_DN", r"O=Shop\, Ltd,CN=Partners"),
            ("SSL_CLIENT_FINGERPRINT", &hex),
        ] {
            assert_eq!(variable(&environ, name), value, "{name}");
        }
    }
}

#[tokio::test]
async fn where_a_certificate_is_optional_the_application_is_told_of_it_and_cannot_be_deceived() {
    let (authority, partners) = (Authority::new("Test CA"), Authority::new("Partners"));
    let builder = listens(gateway::new(1), &authority).beside("partners.pem", &partners.pem());
    let ca = builder.folder().join("partners.pem");
    let gateway = builder
        .set("tls.client_ca", ca)
        .set("tls.client_auth", "optional")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;

    let stream = authority.client().connect(&gateway).await;
    let mut anonymous = Connection::over(stream.expect("a connection"));
    anonymous
        .send(
            "GET /environ HTTP/1.1\r\nHost: a\r\nSSL-Client-Verify: SUCCESS\r\n\
             SSL_CLIENT_VERIFY: SUCCESS\r\nSSL_CLIENT_S_DN: CN=till.example\r\n\r\n",
        )
        .await;
    let environ = anonymous.response().await;
    assert_eq!(variable(environ.ok(), "SSL_CLIENT_VERIFY"), "NONE");
    assert_eq!(variable(environ.ok(), "SSL_CLIENT_S_DN"), "");

    let mut known = authority.client().is(&partners.issue("till.example"));
    let environ = get(&mut known, &gateway, "/environ").await.expect("let in");
    assert_eq!(variable(&environ, "SSL_CLIENT_VERIFY"), "SUCCESS");
    let mut wrong = authority.client().is(&authority.issue("till.example"));
    assert!(get(&mut wrong, &gateway, "/environ").await.is_err());
}

#[tokio::test]
async fn each_client_gets_the_certificate_for_the_name_it_asks_for() {
    let authority = Authority::new("Test CA");
    let builder = gateway::new(1);
    let folder = builder.folder().to_owned();
    let (mut certs, mut keys) = (Vec::new(), Vec::new());
    for (file, name) in [("first", "shop.example"), ("second", "*.pay.example")] {
        let (cert, key) = authority.issue(name).write(&folder, file);
        certs.push(cert.display().to_string());
        keys.push(key.display().to_string());
    }
    let gateway = builder
        .set("tls.listen", "127.0.0.1:0")
        .set("tls.cert", certs.join(","))
        .set("tls.key", keys.join(","))
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = authority.client();
    for name in ["shop.example", "eu.pay.example"] {
        let connected = client.connect_as(name, gateway.tls()).await;
        connected.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // The first, which is not for this one.
    let other = client.connect_as("other.example", gateway.tls()).await;
    assert!(other.is_err());
}

#[tokio::test]
async fn a_reload_brings_a_new_certificate_and_refuses_a_broken_one() {
    let (old, new) = (Authority::new("Old CA"), Authority::new("New CA"));
    let gateway = listens(gateway::new(1), &old).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let (mut of_old, mut of_new) = (old.client(), new.client());
    let stream = of_old.connect(&gateway).await.expect("a connection");
    let mut kept = Connection::over(stream);

    std::fs::write(gateway.folder().join("server.pem"), "nonsense").expect("it is ours");
    gateway.signal(Signal::HUP);
    let refused = gateway.logged("reload refused").await;
    assert!(
        refused.contains("server.pem: holds no certificate"),
        "{refused}"
    );
    assert_eq!(
        get(&mut of_old, &gateway, "/ping").await.expect("served"),
        "pong"
    );

    new.issue("localhost").write(gateway.folder(), "server");
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    assert_eq!(
        get(&mut of_new, &gateway, "/ping").await.expect("served"),
        "pong"
    );
    // The session of before is not resumed: the client sees the certificate, and does not trust it.
    assert!(get(&mut of_old, &gateway, "/ping").await.is_err());
    kept.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(kept.response().await.ok(), "pong");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_told_with_its_file_at_the_start() {
    let authority = Authority::new("Test CA");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (good, key) = authority.issue("localhost").write(folder.path(), "good");
    let (expired, its_key) = authority
        .expired("localhost")
        .write(folder.path(), "expired");
    let (_, other_key) = authority.issue("localhost").write(folder.path(), "other");
    std::fs::write(path("empty.pem"), "").expect("it is ours");
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(path("encrypted.key"), encrypted).expect("it is ours");
    for (cert, key, ca, why) in [
        (
            path("none.pem"),
            &key,
            None,
            "none.pem: cannot be read: No such file",
        ),
        (
            path("empty.pem"),
            &key,
            None,
            "empty.pem: holds no certificate",
        ),
        (good.clone(), &good, None, "good.pem: holds no private key"),
        (
            good.clone(),
            &path("encrypted.key"),
            None,
            "encrypted.key: is encrypted",
        ),
        (
            good.clone(),
            &other_key,
            None,
            "other.key: is not the key of the first certificate in",
        ),
        (
            expired,
            &its_key,
            None,
            "expired.pem: ended on Wed, 01 Jan 2020",
        ),
        (
            good.clone(),
            &key,
            Some(path("empty.pem")),
            "tls.client_ca ",
        ),
    ] {
        let mut builder = gateway::new(1)
            .set("tls.listen", "127.0.0.1:0")
            .set("tls.cert", cert)
            .set("tls.key", key);
        if let Some(ca) = ca {
            builder = builder.set("tls.client_ca", ca);
        }
        let (status, log) = builder.fail().await;
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(why), "{why}: {log}");
        assert!(log.contains("cannot offer TLS: tls."), "{log}");
    }
}

#[tokio::test]
async fn a_drain_finishes_requests_over_tls() {
    let authority = Authority::new("Test CA");
    let gate = crate::support::gate::Gate::new();
    let mut gateway = listens(gateway::new(1), &authority).run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let mut client = authority.client();
    let idle = client.connect(&gateway).await.expect("a connection");
    let stream = client.connect(&gateway).await.expect("a connection");
    let mut busy = Connection::over(stream);
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    gate.reached(1).await;
    gateway.signal(Signal::TERM);
    assert_eq!(Connection::over(idle).closed().await, b"");
    gate.open();
    let answer = busy.response().await;
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(answer.ok(), "done");
    assert_eq!(gateway.ended().await.code(), Some(0));
}

/// What `openssl s_client` says of a handshake with these options.
async fn openssl(gateway: &Gateway, options: &[&str]) -> String {
    let address = gateway.tls().to_string();
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    let asking = tokio::task::spawn_blocking(move || {
        Command::new("openssl")
            .args(["s_client", "-connect", &address, "-servername", "localhost"])
            .args(options)
            .stdin(Stdio::null())
            .output()
            .expect("openssl is installed")
    });
    let output = within("openssl", asking).await.expect("nothing panics");
    [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat()
}

#[tokio::test]
async fn openssl_finds_nothing_weak() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(1), &authority).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    for options in [
        &["-tls1_3"][..],
        &["-tls1_2"],
        &["-tls1_2", "-cipher", "ECDHE+AESGCM"],
    ] {
        let said = openssl(&gateway, options).await;
        assert!(said.contains("Compression: NONE"), "{said}");
        assert!(!said.contains("Cipher is (NONE)"), "{options:?}: {said}");
        if options[0] == "-tls1_2" {
            assert!(said.contains("Secure Renegotiation IS supported"), "{said}");
            assert!(said.contains("Extended master secret: yes"), "{said}");
        }
    }
    // Security level 0 lets openssl itself try them.
    for options in [
        &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        &[
            "-tls1_2",
            "-cipher",
            "AES128-SHA:AES256-GCM-SHA384:@SECLEVEL=0",
        ],
        &["-tls1_2", "-cipher", "DHE:@SECLEVEL=0"],
        &[
            "-tls1_2",
            "-cipher",
            "CBC:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0",
        ],
        &["-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"],
    ] {
        let said = openssl(&gateway, options).await;
        let refused = said.contains("Cipher is (NONE)") && said.contains("alert");
        let unknown = said.contains("no cipher match") || said.contains("no ciphers available");
        assert!(refused || unknown, "{options:?}: {said}");
    }
    let said = openssl(&gateway, &["-alpn", "h2,http/1.1"]).await;
    assert!(said.contains("ALPN protocol: h2"), "{said}");
    let said = openssl(&gateway, &["-alpn", "spdy/3"]).await;
    assert!(said.contains("no application protocol"), "{said}");
}

#[tokio::test]
async fn the_oldest_version_can_be_raised_and_http_2_left_out() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(1), &authority)
        .set("tls.min_version", "1.3")
        .set("http2", "false")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    let said = openssl(&gateway, &["-tls1_2"]).await;
    assert!(said.contains("alert protocol version"), "{said}");
    let mut client = authority.client().offers(&["h2", "http/1.1"]);
    let stream = client.connect(&gateway).await.expect("a connection");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}
