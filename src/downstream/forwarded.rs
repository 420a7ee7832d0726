//! Who the client is, as far as trusted proxies tell.
//!
//! A peer that is not trusted is the client, and what it says of forwarding is removed. From a
//! trusted peer, `X-Forwarded-For` or `Forwarded` (RFC 7239) is read from the right, past every trusted
//! address. A proxy that writes the one lets the other pass as its client has sent it: so where both are
//! there, each must lead to the same by itself, or the request is refused, unless the operator has said
//! which of them the proxies write.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::REQUEST_ID;
use super::head::Refusal;
use super::seldom::Seldom;
use super::way::Way;
use crate::config::{ForwardingHeaders, Trusted};
use crate::message::{Client, Scheme};
use crate::record::Id;

static FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

static CONTRADICTIONS: Seldom = Seldom::new();

/// The two ends of the connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    Tcp { peer: SocketAddr, local: SocketAddr },
    Unix,
}

/// Whom to believe, and what they write.
#[derive(Debug, Clone, Copy)]
pub struct Trust<'a> {
    pub proxies: &'a [Trusted],
    pub headers: ForwardingHeaders,
}

/// An address with or without its port; nothing, if it is not known.
type Node = (Option<IpAddr>, Option<u16>);

/// What proxies say of a request.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Claims<'a> {
    client: Option<Node>,
    scheme: Option<Scheme>,
    host: Option<Cow<'a, str>>,
    port: Option<u16>,
}

impl Peer {
    /// Whether these name it.
    pub fn among(&self, named: &[Trusted]) -> bool {
        match self {
            Self::Tcp { peer, .. } => trusts(named, peer.ip()),
            Self::Unix => named.contains(&Trusted::Unix),
        }
    }

    fn hop(&self) -> Node {
        match self {
            Self::Tcp { peer, .. } => (Some(peer.ip().to_canonical()), Some(peer.port())),
            Self::Unix => (None, None),
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { peer, .. } => peer.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Tells the client, and removes forwarding headers that nobody trusted has set. A request that is to be
/// refused, because a trusted proxy's headers cannot be read in one way, is the peer's own.
pub fn client(
    way: &Way,
    trust: Trust<'_>,
    headers: &mut HeaderMap,
) -> (Client, Result<(), Refusal>) {
    if !headers.keys().any(tells) {
        return (claimed(way, Claims::default(), headers), Ok(()));
    }
    let peer = way.peer;
    if !peer.among(trust.proxies) {
        remove_x_forwarded(headers);
        headers.remove(FORWARDED);
    }
    match trust.headers {
        ForwardingHeaders::Any => {}
        ForwardingHeaders::XForwarded => drop(headers.remove(FORWARDED)),
        ForwardingHeaders::Forwarded => remove_x_forwarded(headers),
    }
    match claims(way, trust.proxies, headers) {
        Ok(claims) => (claimed(way, claims, headers), Ok(())),
        Err(refusal) => (claimed(way, Claims::default(), headers), Err(refusal)),
    }
}

/// Whether a header of this name says anything of forwarding.
fn tells(name: &HeaderName) -> bool {
    *name == FORWARDED || *name == REAL_IP || is_x_forwarded(name)
}

fn is_x_forwarded(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-")
}

/// The client, if these claims are true.
fn claimed(way: &Way, claims: Claims<'_>, headers: &HeaderMap) -> Client {
    let peer = way.peer;
    let scheme = claims.scheme.unwrap_or(way.scheme);
    let host = claims
        .host
        .as_deref()
        .or_else(|| headers.get(HOST)?.to_str().ok());
    let (name, host_port) = host.map_or((None, None), split_host);
    let server_port = claims.port.or(host_port).unwrap_or_else(|| match peer {
        Peer::Tcp { local, .. } if claims.scheme.is_none() => local.port(),
        _ => scheme.default_port(),
    });
    let server_name = name.map(str::to_owned).unwrap_or_else(|| match peer {
        Peer::Tcp { local, .. } => local.ip().to_string(),
        Peer::Unix => "localhost".to_owned(),
    });
    let (address, port) = claims.client.unwrap_or_else(|| peer.hop());
    let peer = match peer {
        Peer::Tcp { peer, .. } => Some(peer.ip().to_canonical()),
        Peer::Unix => None,
    };
    Client {
        address,
        port,
        peer,
        scheme,
        host: claims.host.map(Cow::into_owned),
        server_name,
        server_port,
        credential: way.credential.clone(),
    }
}

/// What the request is called: as a trusted proxy says, else a new name.
pub fn request_id(peer: Peer, trusted: &[Trusted], headers: &HeaderMap) -> Id {
    let mut given = headers.get_all(REQUEST_ID).iter();
    match (given.next(), given.next()) {
        (Some(id), None) if peer.among(trusted) => Id::given(id).unwrap_or_default(),
        _ => Id::new(),
    }
}

fn trusts(trusted: &[Trusted], address: IpAddr) -> bool {
    // An IPv4 client of a dual-stack listener is still that IPv4 client.
    let address = address.to_canonical();
    trusted
        .iter()
        .any(|entry| matches!(entry, Trusted::Net(net) if net.contains(&address)))
}

fn remove_x_forwarded(headers: &mut HeaderMap) {
    let claimed = headers.keys().filter(|name| is_x_forwarded(name));
    let claimed: Vec<HeaderName> = claimed.cloned().collect();
    for name in claimed.iter().chain([&REAL_IP]) {
        headers.remove(name);
    }
}

/// What is to be believed of the headers that are left.
fn claims<'a>(
    way: &Way,
    trusted: &[Trusted],
    headers: &'a HeaderMap,
) -> Result<Claims<'a>, Refusal> {
    let old = x_forwarded(way.peer, trusted, headers);
    let Some(new) = forwarded(way.peer, trusted, headers)? else {
        return Ok(old);
    };
    if old == Claims::default() {
        return Ok(new);
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = Cow::Borrowed(host.unwrap_or_default());
    let agreed = Claims {
        client: both(old.client, new.client, way.peer.hop(), |old, new| {
            old.0 == new.0
        })?,
        scheme: both(old.scheme, new.scheme, way.scheme, |old, new| old == new)?,
        host: both(old.host, new.host, host, |old, new| {
            old.eq_ignore_ascii_case(new)
        })?,
        port: None,
    };
    Ok(agreed)
}

/// What both kinds of headers say. One that says nothing leaves the thing as we see it ourselves, which the
/// other may then not deny: else a client could take back with the one what its proxy says with the other.
fn both<T>(
    old: Option<T>,
    new: Option<T>,
    seen: T,
    agree: impl Fn(&T, &T) -> bool,
) -> Result<Option<T>, Refusal> {
    if agree(old.as_ref().unwrap_or(&seen), new.as_ref().unwrap_or(&seen)) {
        return Ok(new.and(old));
    }
    if let Some(unsaid) = CONTRADICTIONS.says() {
        tracing::warn!(
            unsaid,
            "request refused: Forwarded and X-Forwarded-* of a trusted proxy contradict each other; \
             forwarding_headers can say which of them it writes"
        );
    }
    Err(bad("Forwarded and X-Forwarded-* contradict each other"))
}

fn bad(why: &'static str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why)
}

/// Some proxies name a WebSocket's scheme as browsers do.
fn scheme(proto: &str) -> Scheme {
    match proto.to_ascii_lowercase().as_str() {
        "https" | "wss" => Scheme::Https,
        _ => Scheme::Http,
    }
}

// X-Forwarded-* ------------------------------------------------------------------------

fn x_forwarded<'a>(peer: Peer, trusted: &[Trusted], headers: &'a HeaderMap) -> Claims<'a> {
    Claims {
        client: headers
            .contains_key(&FOR)
            .then(|| origin(peer.hop(), trusted, headers)),
        scheme: last(headers, &PROTO).map(scheme),
        host: last(headers, &FORWARDED_HOST).map(Cow::Borrowed),
        port: last(headers, &PORT).and_then(|port| port.parse().ok()),
    }
}

/// The rightmost address of the chain that is not a trusted proxy's; the leftmost if all are.
fn origin(mut nearest: Node, trusted: &[Trusted], headers: &HeaderMap) -> Node {
    for hop in headers.get_all(&FOR).iter().rev().flat_map(from_right) {
        if nearest.0.is_some_and(|address| !trusts(trusted, address)) {
            break;
        }
        // What is no address was not written by a proxy that we can follow further.
        let Some(hop) = hop.and_then(parse_hop) else {
            break;
        };
        nearest = hop;
    }
    nearest
}

/// The elements of a line; None where one is not ASCII. It spoils no other: the proxy's own may stand beside it.
fn from_right(line: &HeaderValue) -> impl Iterator<Item = Option<&str>> {
    line.as_bytes().rsplit(|byte| *byte == b',').map(|element| {
        let text = std::str::from_utf8(element.trim_ascii()).ok();
        text.filter(|text| text.is_ascii())
    })
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn parse_hop(hop: &str) -> Option<Node> {
    if let Ok(address) = hop.parse::<SocketAddr>() {
        return Some((Some(address.ip().to_canonical()), Some(address.port())));
    }
    let bare = hop
        .strip_prefix('[')
        .and_then(|hop| hop.strip_suffix(']'))
        .unwrap_or(hop);
    let address: IpAddr = bare.parse().ok()?;
    Some((Some(address.to_canonical()), None))
}

/// The value that the nearest proxy added.
fn last<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let line = headers.get_all(name).iter().next_back()?;
    let value = from_right(line).next().flatten();
    value.filter(|value| !value.is_empty())
}

// Forwarded ----------------------------------------------------------------------------

/// What one proxy has written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Element<'a> {
    client: Option<Cow<'a, str>>,
    proto: Option<Cow<'a, str>>,
    host: Option<Cow<'a, str>>,
}

/// None if the header is not there.
fn forwarded<'a>(
    peer: Peer,
    trusted: &[Trusted],
    headers: &'a HeaderMap,
) -> Result<Option<Claims<'a>>, Refusal> {
    let mut elements = Vec::new();
    for line in headers.get_all(FORWARDED) {
        // Each line by itself: an open quote in the one must not swallow the next.
        let line = line.to_str().ok().and_then(parse_forwarded);
        elements.extend(line.ok_or(bad("Forwarded cannot be read"))?);
    }
    if elements.is_empty() {
        return Ok(None);
    }
    let mut nearest = peer.hop();
    let mut claims = Claims::default();
    for element in elements.into_iter().rev() {
        if nearest.0.is_some_and(|address| !trusts(trusted, address)) {
            break;
        }
        // The outermost trusted proxy has seen what the client asked for.
        claims.scheme = element.proto.as_deref().map(scheme).or(claims.scheme);
        claims.host = element.host.or(claims.host);
        // A hidden client (`unknown`, `_name`) ends the chain at the proxy that hides it.
        let Some(hop) = element.client.as_deref().and_then(parse_node) else {
            break;
        };
        nearest = hop;
    }
    claims.client = Some(nearest);
    Ok(Some(claims))
}

/// As `X-Forwarded-For` has it, or with a port that hides (`192.0.2.1:_p`).
fn parse_node(node: &str) -> Option<Node> {
    parse_hop(node).or_else(|| {
        let (address, _) = node.split_once(":_").or_else(|| node.split_once("]:_"))?;
        parse_hop(address)
    })
}

/// The elements of one line, from left to right; None if it is not what RFC 7239 says. Values that should
/// be quoted and are not (an address with its port) are taken as they are meant.
fn parse_forwarded(line: &str) -> Option<Vec<Element<'_>>> {
    let mut elements = Vec::new();
    let mut element = Element::default();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with([',', ';']) {
            let (name, after) = rest.split_once('=')?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => plain(after)?,
            };
            let place = match name {
                _ if name.eq_ignore_ascii_case("for") => &mut element.client,
                _ if name.eq_ignore_ascii_case("proto") => &mut element.proto,
                _ if name.eq_ignore_ascii_case("host") => &mut element.host,
                _ if is_token(name) => &mut None,
                _ => return None,
            };
            // Twice in one element is none too many to choose from.
            if place.replace(value).is_some() {
                return None;
            }
            rest = after.trim_start_matches([' ', '\t']);
        }
        if let Some(after) = rest.strip_prefix(';') {
            rest = after;
            continue;
        }
        elements.push(std::mem::take(&mut element));
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => break,
            None => return None,
        }
    }
    // Empty elements are allowed in lists, and say nothing.
    elements.retain(|element| *element != Element::default());
    Some(elements)
}

/// A value without quotes, and what follows.
fn plain(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = text.find([',', ';', '"', '=', '\\', ' ', '\t']);
    let (value, after) = text.split_at(end.unwrap_or(text.len()));
    (!value.is_empty()).then_some((Cow::Borrowed(value), after))
}

/// A quoted value, from behind its first quote, and what follows its last.
fn unquote(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = text.find(['"', '\\'])?;
    if text[end..].starts_with('"') {
        return Some((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((place, char)) = chars.next() {
        match char {
            '"' => return Some((Cow::Owned(value), &text[place + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

fn is_token(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(token)
}

/// Host and port of a Host value that is known to be valid, or of a proxy's claim.
fn split_host(host: &str) -> (Option<&str>, Option<u16>) {
    let end_of_name = host.rfind(']').map_or(0, |end| end + 1);
    match host[end_of_name..].rfind(':') {
        Some(colon) => {
            let colon = end_of_name + colon;
            (Some(&host[..colon]), host[colon + 1..].parse().ok())
        }
        None => (Some(host), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(
        peer: &str,
        trusted: &[&str],
        headers: &[(&'static str, &'static str)],
    ) -> (Client, HeaderMap) {
        let (client, headers) = told(ForwardingHeaders::Any, peer, trusted, headers);
        (client.expect("one way to read it"), headers)
    }

    fn told(
        read: ForwardingHeaders,
        peer: &str,
        trusted: &[&str],
        headers: &[(&'static str, impl AsRef<[u8]>)],
    ) -> (Result<Client, Refusal>, HeaderMap) {
        let trusted: Vec<_> = trusted
            .iter()
            .map(|net| Trusted::Net(net.parse().expect("a network")))
            .collect();
        let mut map = HeaderMap::new();
        map.insert(HOST, "shop.example".parse().expect("a value"));
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_ref());
            map.append(*name, value.expect("a value"));
        }
        let peer = Peer::Tcp {
            peer: peer.parse().expect("an address"),
            local: "10.0.0.1:8000".parse().expect("an address"),
        };
        let trust = Trust {
            proxies: &trusted,
            headers: read,
        };
        let (client, told) = client(&Way::plain(peer), trust, &mut map);
        (told.map(|()| client), map)
    }

    fn address(client: &Client) -> String {
        client
            .address
            .map(|address| address.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_claims() {
        let (client, headers) = seen(
            "203.0.113.9:5000",
            &["10.0.0.0/8"],
            &[
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "admin.example"),
                ("x-forwarded-anything", "1"),
                ("forwarded", "for=127.0.0.1"),
                ("x-real-ip", "127.0.0.1"),
            ],
        );
        assert_eq!(address(&client), "203.0.113.9");
        assert_eq!((client.scheme, client.server_port), (Scheme::Http, 8000));
        assert_eq!(client.server_name, "shop.example");
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn the_scheme_of_a_websocket_is_that_of_its_connection() {
        for (said, scheme) in [
            ("wss", Scheme::Https),
            ("WSS", Scheme::Https),
            ("ws", Scheme::Http),
            ("ftp", Scheme::Http),
        ] {
            assert_eq!(super::scheme(said), scheme, "{said}");
        }
    }

    #[test]
    fn behind_a_tls_balancer_the_client_and_the_scheme_are_the_outside_ones() {
        let (client, headers) = seen(
            "10.0.0.7:5000",
            &["10.0.0.0/8"],
            &[
                ("x-forwarded-for", "6.6.6.6, 203.0.113.9, 10.0.0.8"),
                ("x-forwarded-proto", "https"),
            ],
        );
        assert_eq!(address(&client), "203.0.113.9");
        assert_eq!((client.scheme, client.server_port), (Scheme::Https, 443));
        assert!(headers.contains_key("x-forwarded-for"));
    }

    #[test]
    fn ports_and_ipv6_are_understood_and_nonsense_ends_the_chain() {
        for (chain, client_address) in [
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("192.0.2.1:99", "192.0.2.1"),
            ("192.0.2.1, unknown", "10.0.0.7"),
            ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
            ("", "10.0.0.7"),
        ] {
            let (client, _) = seen(
                "10.0.0.7:5000",
                &["10.0.0.0/8"],
                &[("x-forwarded-for", chain)],
            );
            assert_eq!(address(&client), client_address, "{chain}");
        }
    }

    #[test]
    fn bytes_that_are_no_ascii_spoil_only_what_they_stand_in() {
        let headers: [(_, &[u8]); 3] = [
            ("x-forwarded-for", b"\xff, 203.0.113.9"),
            ("x-forwarded-proto", b"\xff, https"),
            ("x-forwarded-host", b"\xff, outside.example"),
        ];
        let read = |headers: &[(&'static str, &[u8])]| {
            let any = ForwardingHeaders::Any;
            let (client, _) = told(any, "10.0.0.7:5000", &["10.0.0.0/8"], headers);
            client.expect("one way to read it")
        };
        let client = read(&headers);
        assert_eq!(address(&client), "203.0.113.9");
        assert_eq!(client.scheme, Scheme::Https);
        assert_eq!(client.server_name, "outside.example");
        assert_eq!(client.host.as_deref(), Some("outside.example"));
        let client = read(&[("x-forwarded-for", b"203.0.113.9, \xff, 10.0.0.8")]);
        assert_eq!(address(&client), "10.0.0.8");
        let client = read(&[("x-forwarded-host", "outside.example, \u{e9}".as_bytes())]);
        assert_eq!(client.server_name, "shop.example");
    }

    #[test]
    fn forwarded_is_read_as_x_forwarded_for_is() {
        for (chain, client_address) in [
            ("for=203.0.113.9", "203.0.113.9"),
            ("For=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]\"", "2001:db8::1"),
            ("for=\"203.0.113.9:4711\";by=10.0.0.7", "203.0.113.9"),
            ("for=203.0.113.9:4711", "203.0.113.9"),
            ("for=\"203.0.113.9:_p\"", "203.0.113.9"),
            ("for=\"\\203.0.113.9\"", "203.0.113.9"),
            ("for=6.6.6.6, for=203.0.113.9, for=10.0.0.8", "203.0.113.9"),
            ("for=6.6.6.6, for=unknown", "10.0.0.7"),
            ("for=6.6.6.6, for=_hidden", "10.0.0.7"),
            ("for=6.6.6.6, proto=https", "10.0.0.7"),
            (", ,for=203.0.113.9 ; proto=http ,", "203.0.113.9"),
            ("", "10.0.0.7"),
        ] {
            let headers = [("forwarded", chain)];
            let (client, _) = seen("10.0.0.7:5000", &["10.0.0.0/8"], &headers);
            assert_eq!(address(&client), client_address, "{chain}");
        }
    }

    #[test]
    fn the_outermost_trusted_proxy_says_what_was_asked_for() {
        let chain =
            "for=203.0.113.9;proto=https;host=shop.example, for=10.0.0.8;proto=http;host=inside";
        let headers = [
            ("forwarded", "for=1.1.1.1;proto=http;host=evil"),
            ("forwarded", chain),
        ];
        let (client, _) = seen("10.0.0.7:5000", &["10.0.0.0/8"], &headers);
        assert_eq!(address(&client), "203.0.113.9");
        assert_eq!((client.scheme, client.server_port), (Scheme::Https, 443));
        assert_eq!(client.server_name, "shop.example");
    }

    #[test]
    fn forwarded_that_cannot_be_read_is_refused() {
        for chain in [
            "for",
            "for=",
            "for=\"203.0.113.9",
            "for=1.1.1.1 for=2.2.2.2",
            "for=1.1.1.1;for=2.2.2.2",
            "for=\"1.1.1.1\"x",
            "f\u{e9}r=1.1.1.1",
            "a b=1",
        ] {
            let headers = [("forwarded", chain)];
            let (client, _) = told(
                ForwardingHeaders::Any,
                "10.0.0.7:5000",
                &["10.0.0.0/8"],
                &headers,
            );
            assert_eq!(client.expect_err(chain).0, 400);
        }
    }

    #[test]
    fn both_kinds_must_lead_to_the_same() {
        let told = |headers: &[(&'static str, &str)]| {
            let any = ForwardingHeaders::Any;
            told(any, "10.0.0.7:5000", &["10.0.0.0/8"], headers).0
        };
        let both = |old, new| {
            told(&[
                ("x-forwarded-for", old),
                ("x-forwarded-proto", "https"),
                ("forwarded", new),
            ])
        };
        let agreed = both("203.0.113.9", "for=\"203.0.113.9:80\";proto=https").expect("they agree");
        assert_eq!(address(&agreed), "203.0.113.9");
        assert_eq!(agreed.scheme, Scheme::Https);
        assert_eq!(agreed.server_name, "shop.example");
        both(
            "203.0.113.9",
            "for=203.0.113.9;proto=https;host=Shop.example",
        )
        .expect("the host is the one that was asked for");
        for new in [
            "for=6.6.6.6;proto=https",
            "for=203.0.113.9;proto=http",
            "for=203.0.113.9",
            "for=203.0.113.9;proto=https;host=other.example",
            "for=unknown",
            "proto=https",
        ] {
            assert_eq!(both("203.0.113.9", new).expect_err(new).0, 400);
        }
        // A client that adds the kind that its proxy does not write.
        for added in [
            ("x-forwarded-for", "10.0.0.8"),
            ("x-forwarded-for", ""),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "x"),
            ("x-forwarded-port", "1"),
        ] {
            let refused = told(&[("forwarded", "for=203.0.113.9;proto=https"), added]);
            assert_eq!(refused.expect_err(added.0).0, 400);
        }
        let hidden = told(&[
            ("forwarded", "for=unknown;proto=http"),
            ("x-forwarded-port", "1"),
        ]);
        assert_eq!(address(&hidden.expect("nothing to deny")), "10.0.0.7");
    }

    #[test]
    fn the_kind_that_the_proxies_do_not_write_is_removed() {
        let headers = [
            ("x-forwarded-for", "203.0.113.9"),
            ("forwarded", "for=198.51.100.1"),
        ];
        for (read, client_address, left) in [
            (
                ForwardingHeaders::XForwarded,
                "203.0.113.9",
                "x-forwarded-for",
            ),
            (ForwardingHeaders::Forwarded, "198.51.100.1", "forwarded"),
        ] {
            let (client, map) = told(read, "10.0.0.7:5000", &["10.0.0.0/8"], &headers);
            assert_eq!(address(&client.expect("one way")), client_address);
            assert_eq!(map.len(), 2);
            assert!(map.contains_key(left));
        }
    }

    /// A byte that a header's value may have.
    fn legal() -> impl Strategy<Value = u8> {
        prop_oneof![Just(b'\t'), b' '..=b'~', 0x80..=0xff_u8, Just(b',')]
    }

    type Line = (&'static str, &'static str);

    /// As a proxy writes it that knows this kind only.
    fn a_forwarded() -> impl Strategy<Value = Vec<Line>> {
        let line = prop_oneof![
            Just("for=203.0.113.9"),
            Just("for=203.0.113.9;proto=https"),
            Just("for=203.0.113.9;proto=https;host=outside.example"),
        ];
        line.prop_map(|line| vec![("forwarded", line)])
    }

    /// The same of the other kind.
    fn some_x_forwarded() -> impl Strategy<Value = Vec<Line>> {
        let lines = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outside.example"),
        ];
        (1..=lines.len()).prop_map(move |count| lines[..count].to_vec())
    }

    fn an_x_forwarded() -> impl Strategy<Value = Line> {
        proptest::sample::select(vec![
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "10.0.0.8"),
            ("x-forwarded-for", "unknown"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-host", "outside.example"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-port", "1"),
        ])
    }

    fn a_forwarded_element() -> impl Strategy<Value = Line> {
        proptest::sample::select(vec![
            ("forwarded", ""),
            ("forwarded", "for=203.0.113.9"),
            ("forwarded", "for=203.0.113.9;proto=http"),
            ("forwarded", "for=203.0.113.9;proto=https"),
            ("forwarded", "for=203.0.113.9;proto=https;host=shop.example"),
            (
                "forwarded",
                "for=203.0.113.9;proto=https;host=outside.example",
            ),
            ("forwarded", "for=unknown;proto=https"),
            ("forwarded", "host=evil.example"),
        ])
    }

    proptest! {
        /// Whatever a client sends, it is the one that the proxy has seen, or it is refused.
        #[test]
        fn a_client_cannot_hide_behind_what_it_sends(
            sent in prop_oneof![
                "[ -~]{0,40}|(for=|\"|\\\\|,|;|=|1\\.1\\.1\\.1| ){0,12}".prop_map(String::into_bytes),
                proptest::collection::vec(legal(), 0..40),
            ],
            (name, appended) in prop_oneof![
                Just(("forwarded", "for=203.0.113.9")),
                Just(("forwarded", "for=\"203.0.113.9:80\";proto=https")),
                Just(("x-forwarded-for", "203.0.113.9")),
                Just(("x-forwarded-for", "203.0.113.9:80, 10.0.0.8")),
            ],
            own_line: bool,
        ) {
            let appended = appended.as_bytes();
            let joined = [&sent, &b", "[..], appended].concat();
            let headers: &[(&'static str, &[u8])] = match own_line {
                true => &[(name, &sent), (name, appended)],
                false => &[(name, &joined)],
            };
            let (client, _) = told(ForwardingHeaders::Any, "10.0.0.7:5000", &["10.0.0.0/8"], headers);
            match client {
                Ok(client) => prop_assert_eq!(address(&client), "203.0.113.9"),
                Err(_) => prop_assert_eq!(name, "forwarded"),
            }
        }

        /// Whatever it sends of the kind that the proxy does not write.
        #[test]
        fn a_client_cannot_take_back_what_its_proxy_says(
            (written, sent) in prop_oneof![
                (a_forwarded(), proptest::collection::vec(an_x_forwarded(), 0..4)),
                (some_x_forwarded(), proptest::collection::vec(a_forwarded_element(), 0..3)),
            ],
        ) {
            let any = ForwardingHeaders::Any;
            let read = |headers: &[_]| told(any, "10.0.0.7:5000", &["10.0.0.0/8"], headers).0;
            let alone = read(&written).expect("one way to read it");
            prop_assert_eq!(address(&alone), "203.0.113.9");
            if let Ok(client) = read(&[written, sent].concat()) {
                prop_assert_eq!(client.address, alone.address);
                prop_assert_eq!(client.scheme, alone.scheme);
                prop_assert_eq!(client.server_name, alone.server_name);
            }
        }

        #[test]
        fn what_is_quoted_is_read_back(value in "[ -~]{0,30}") {
            let quoted: String = value.chars().flat_map(|char| ['\\', char]).collect();
            let line = format!("by=x;for=\"{quoted}\" ;proto=https");
            let element = Element {
                client: Some(value.into()),
                proto: Some("https".into()),
                host: None,
            };
            prop_assert_eq!(parse_forwarded(&line), Some(vec![element]));
        }
    }

    #[test]
    fn the_host_names_server_and_port() {
        assert_eq!(
            split_host("shop.example:81"),
            (Some("shop.example"), Some(81))
        );
        assert_eq!(split_host("[::1]:81"), (Some("[::1]"), Some(81)));
        assert_eq!(split_host("[::1]"), (Some("[::1]"), None));
    }
}
