//! The PROXY protocol, versions 1 and 2: whom a balancer passes bytes on for.
//!
//! Read only from peers that `proxy_protocol` names, and then without exception: whether a header is there
//! is never guessed from the bytes, or a client could send its own. A header that is wrong, missing, too
//! large or slow closes the connection. Not one byte after the header is read, so that TLS or HTTP
//! begins where it should.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::forwarded::Peer;
use super::seldom::Seldom;
use super::watch::Watch;

/// A proxy sends its header with its first packet; the time allows for sending that again, and again.
const IN_TIME: Duration = Duration::from_secs(5);

/// Headers of version 1, with their line ends: the longest, and `PROXY UNKNOWN`.
const LONGEST_LINE: usize = 107;
const SHORTEST_LINE: usize = 15;

/// The longest of version 2 that is read: addresses take up to 216 bytes, the rest are extensions, of which
/// balancers send a few dozen bytes, or a certificate's name.
const LONGEST: usize = 4096;

/// What version 1 and version 2 begin with.
const LINE: &[u8] = b"PROXY ";
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Of version 2: signature, version and command, family, length of the rest.
const FIXED: usize = 16;

/// The extension with a checksum over the whole header.
const CRC32C: u8 = 0x03;

static REFUSED: Seldom = Seldom::new();

/// The client's and the listener's address, as the proxy has seen them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header that has at least so many bytes more.
    More(usize),
    /// All of it. Without ends, the connection is the proxy's own, or the proxy does not know.
    Header(Option<Ends>),
    Wrong(&'static str),
}

/// Takes the header off the stream and tells whose connection it is. None when it is to be closed.
pub async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    peer: Peer,
    watch: &Watch,
) -> Option<Peer> {
    watch.within(IN_TIME);
    let outcome = tokio::select! {
        biased;
        outcome = header(stream) => outcome,
        () = watch.alarm.rang() => Err("it did not come in time"),
    };
    watch.idle();
    match outcome {
        Ok(Some(Ends { peer, local })) => Some(Peer::Tcp { peer, local }),
        Ok(None) => Some(peer),
        Err(why) => {
            if let Some(unsaid) = REFUSED.says() {
                tracing::warn!(%peer, why, unsaid, "connection closed: no PROXY header");
            }
            None
        }
    }
}

async fn header(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Ends>, &'static str> {
    let mut bytes = Vec::with_capacity(LONGEST_LINE);
    loop {
        let more = match parse(&bytes) {
            Parsed::More(more) => more,
            Parsed::Header(ends) => return Ok(ends),
            Parsed::Wrong(why) => return Err(why),
        };
        let read = (&mut *stream).take(more as u64).read_buf(&mut bytes).await;
        if !matches!(read, Ok(1..)) {
            return Err("the connection ended before it");
        }
    }
}

/// Pure. Never asks for more than the header has.
pub fn parse(bytes: &[u8]) -> Parsed {
    let begins = |with: &[u8]| {
        let both = with.len().min(bytes.len());
        bytes[..both] == with[..both]
    };
    if bytes.is_empty() {
        // The shortest of all is a line for an unknown client.
        Parsed::More(SHORTEST_LINE)
    } else if begins(SIGNATURE) {
        version_2(bytes)
    } else if begins(LINE) {
        version_1(bytes)
    } else {
        Parsed::Wrong("something else is there")
    }
}

fn version_1(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        // The line end is missing, or its second half.
        let more = if bytes.ends_with(b"\r") { 1 } else { 2 };
        return match bytes.len() + more <= LONGEST_LINE {
            true => Parsed::More(more.max(SHORTEST_LINE.saturating_sub(bytes.len()))),
            false => Parsed::Wrong("it is too long"),
        };
    };
    if end >= LONGEST_LINE {
        return Parsed::Wrong("it is too long");
    }
    let line = bytes[..end].strip_suffix(b"\r");
    let line = line.and_then(|line| std::str::from_utf8(&line[LINE.len()..]).ok());
    let fields: Vec<&str> = line.unwrap_or_default().split(' ').collect();
    let ends = match fields[..] {
        // Whatever stands behind it says nothing.
        ["UNKNOWN", ..] => return Parsed::Header(None),
        ["TCP4", from, to, from_port, to_port] => {
            ends::<Ipv4Addr>([from, to], [from_port, to_port])
        }
        ["TCP6", from, to, from_port, to_port] => {
            ends::<Ipv6Addr>([from, to], [from_port, to_port])
        }
        _ => None,
    };
    match ends {
        Some(ends) => Parsed::Header(Some(ends)),
        None => Parsed::Wrong("its line cannot be read"),
    }
}

fn ends<A: std::str::FromStr + Into<IpAddr>>(
    addresses: [&str; 2],
    ports: [&str; 2],
) -> Option<Ends> {
    let end = |number: usize| {
        let (address, port) = (addresses[number], ports[number]);
        let plain = port == "0" || port.starts_with(|first: char| ('1'..='9').contains(&first));
        let port = port.parse().ok().filter(|_| plain)?;
        Some(SocketAddr::new(address.parse::<A>().ok()?.into(), port))
    };
    Some(Ends {
        peer: end(0)?,
        local: end(1)?,
    })
}

fn version_2(bytes: &[u8]) -> Parsed {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else {
        return Parsed::More(FIXED - bytes.len());
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED + length > LONGEST {
        return Parsed::Wrong("it is too long");
    }
    let Some(rest) = rest.get(..length) else {
        return Parsed::More(length - rest.len());
    };
    let (version, command) = (fixed[12] >> 4, fixed[12] & 0x0f);
    let (family, transport) = (fixed[13] >> 4, fixed[13] & 0x0f);
    // Over UDP means that the client speaks QUIC with the proxy; its address is as good.
    if version != 2 || command > 1 || family > 3 || transport > 2 {
        return Parsed::Wrong("its kind is unknown");
    }
    // The proxy's own: a health check.
    if command == 0 {
        return Parsed::Header(None);
    }
    let size = [0, 12, 36, 216][usize::from(family)];
    let Some((addresses, extensions)) = rest.split_at_checked(size) else {
        return Parsed::Wrong("its addresses are cut");
    };
    if let Err(why) = check(&bytes[..FIXED + length], extensions) {
        return Parsed::Wrong(why);
    }
    Parsed::Header(match family {
        1 => Some(packed::<4>(addresses)),
        2 => Some(packed::<16>(addresses)),
        // A path on the proxy's machine, or nothing, is nobody's address.
        _ => None,
    })
}

/// Two addresses of `N` bytes, two ports.
fn packed<const N: usize>(bytes: &[u8]) -> Ends
where
    IpAddr: From<[u8; N]>,
{
    let end = |number: usize| {
        let address: [u8; N] = bytes[number * N..][..N]
            .try_into()
            .expect("it is that long");
        let port = &bytes[2 * N + number * 2..];
        SocketAddr::new(address.into(), u16::from_be_bytes([port[0], port[1]]))
    };
    Ends {
        peer: end(0),
        local: end(1),
    }
}

/// Extensions are not read, but for a checksum; what they say of their lengths is true.
fn check(header: &[u8], mut extensions: &[u8]) -> Result<(), &'static str> {
    while !extensions.is_empty() {
        let [kind, high, low, rest @ ..] = extensions else {
            return Err("its extensions are cut");
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((value, next)) = rest.split_at_checked(length) else {
            return Err("its extensions are cut");
        };
        if *kind == CRC32C {
            let place = header.len() - rest.len();
            let mut zeroed = header.to_vec();
            zeroed[place..place + length].fill(0);
            if value != crc32c(&zeroed).to_be_bytes() {
                return Err("its checksum is wrong");
            }
        }
        extensions = next;
    }
    Ok(())
}

/// The checksum of RFC 3720 (Castagnoli), bit by bit: headers are short, and few have one.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |rest: u32| (rest >> 1) ^ if rest & 1 == 1 { 0x82f6_3b78 } else { 0 };
    let byte = |rest: u32, byte: &u8| (0..8).fold(rest ^ u32::from(*byte), |rest, _| step(rest));
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddrV4, SocketAddrV6};

    use proptest::prelude::*;

    use super::*;

    fn told(peer: &str, local: &str) -> Parsed {
        Parsed::Header(Some(Ends {
            peer: peer.parse().expect("an address"),
            local: local.parse().expect("an address"),
        }))
    }

    fn packed_header(kind: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[kind, family], &length, rest].concat()
    }

    const FOUR: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0x13, 0x88, 0x01, 0xbb];

    /// The checksum goes over the whole header, with zeroes in its own place.
    fn with_checksum(addresses: &[u8]) -> Vec<u8> {
        let rest = [addresses, &[CRC32C, 0, 4, 0, 0, 0, 0]].concat();
        let mut header = packed_header(0x21, 0x11, &rest);
        let sum = crc32c(&header).to_be_bytes();
        let place = header.len() - 4;
        header[place..].copy_from_slice(&sum);
        header
    }

    #[test]
    fn a_line_tells_both_ends() {
        for (line, parsed) in [
            (
                "TCP4 203.0.113.9 10.0.0.1 5000 443",
                told("203.0.113.9:5000", "10.0.0.1:443"),
            ),
            (
                "TCP6 2001:db8::9 ::1 5000 443",
                told("[2001:db8::9]:5000", "[::1]:443"),
            ),
            ("UNKNOWN", Parsed::Header(None)),
            ("UNKNOWN ff:: ff:: 1 2", Parsed::Header(None)),
        ] {
            assert_eq!(
                parse(format!("PROXY {line}\r\n").as_bytes()),
                parsed,
                "{line}"
            );
        }
    }

    #[test]
    fn a_line_that_can_be_read_in_two_ways_is_wrong() {
        for line in [
            "TCP4 203.0.113.9 10.0.0.1 5000",
            "TCP4 203.0.113.9 10.0.0.1 5000 443 1",
            "TCP4  203.0.113.9 10.0.0.1 5000 443",
            "TCP4 203.0.113.009 10.0.0.1 5000 443",
            "TCP4 ::1 ::1 5000 443",
            "TCP6 203.0.113.9 10.0.0.1 5000 443",
            "TCP4 203.0.113.9 10.0.0.1 +500 443",
            "TCP4 203.0.113.9 10.0.0.1 05000 443",
            "TCP4 203.0.113.9 10.0.0.1 65536 443",
            "UDP4 203.0.113.9 10.0.0.1 5000 443",
            "tcp4 203.0.113.9 10.0.0.1 5000 443",
            "",
        ] {
            let parsed = parse(format!("PROXY {line}\r\n").as_bytes());
            assert!(matches!(parsed, Parsed::Wrong(_)), "{line}: {parsed:?}");
        }
        let bare = parse(b"PROXY TCP4 203.0.113.9 10.0.0.1 5000 443\n");
        assert!(matches!(bare, Parsed::Wrong(_)));
        let endless = [LINE, &[b'x'; 200]].concat();
        assert_eq!(parse(&endless[..107]), Parsed::Wrong("it is too long"));
        // Found by fuzzing: it was good when it came in one piece.
        let late = [&endless[..106], b"\r\n"].concat();
        assert_eq!(parse(&late), Parsed::Wrong("it is too long"));
    }

    #[test]
    fn version_2_tells_both_ends_whatever_its_extensions() {
        let plain = packed_header(0x21, 0x11, &FOUR);
        let known = told("203.0.113.9:5000", "10.0.0.1:443");
        assert_eq!(parse(&plain), known);
        // Over QUIC; with an extension of an unknown kind; with one without content.
        assert_eq!(parse(&packed_header(0x21, 0x12, &FOUR)), known);
        let extended = [&FOUR[..], &[0xea, 0, 2, 1, 2, 0x04, 0, 0]].concat();
        assert_eq!(parse(&packed_header(0x21, 0x11, &extended)), known);
        let mut six = [0; 36];
        (six[15], six[31], six[33], six[35]) = (1, 2, 80, 90);
        assert_eq!(
            parse(&packed_header(0x21, 0x21, &six)),
            told("[::1]:80", "[::2]:90")
        );
        for nobody in [
            packed_header(0x20, 0x11, &FOUR),
            packed_header(0x20, 0x00, b""),
            packed_header(0x21, 0x00, b""),
            packed_header(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(parse(&nobody), Parsed::Header(None), "{nobody:?}");
        }
    }

    #[test]
    fn version_2_with_anything_wrong_is_wrong() {
        for header in [
            packed_header(0x11, 0x11, &FOUR),
            packed_header(0x22, 0x11, &FOUR),
            packed_header(0x21, 0x41, &FOUR),
            packed_header(0x21, 0x13, &FOUR),
            packed_header(0x21, 0x11, &FOUR[..11]),
            packed_header(0x21, 0x21, &FOUR),
            packed_header(0x21, 0x11, &[&FOUR[..], &[0xea, 0]].concat()),
            packed_header(0x21, 0x11, &[&FOUR[..], &[0xea, 0, 3, 1, 2]].concat()),
            packed_header(0x21, 0x11, &[0; LONGEST]),
        ] {
            let parsed = parse(&header);
            assert!(matches!(parsed, Parsed::Wrong(_)), "{header:?}: {parsed:?}");
        }
    }

    #[test]
    fn a_checksum_is_checked() {
        // The check value of RFC 3720.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let right = with_checksum(&FOUR);
        assert_eq!(parse(&right), told("203.0.113.9:5000", "10.0.0.1:443"));
        // Of another kind, it would be no checksum.
        let kind = FIXED + FOUR.len();
        for place in (FIXED..right.len()).filter(|place| *place != kind) {
            let mut wrong = right.clone();
            wrong[place] ^= 1;
            assert!(matches!(parse(&wrong), Parsed::Wrong(_)), "byte {place}");
        }
    }

    #[tokio::test]
    async fn no_byte_after_the_header_is_read() {
        let line = b"PROXY TCP4 203.0.113.9 10.0.0.1 5000 443\r\n".to_vec();
        for bytes in [line, with_checksum(&FOUR), b"PROXY UNKNOWN\r\n".to_vec()] {
            let mut stream: &[u8] = &[&bytes[..], b"GET /"].concat();
            header(&mut stream).await.expect("a header");
            assert_eq!(stream, b"GET /");
        }
    }

    proptest! {
        #[test]
        fn every_pair_of_ends_survives(four: [SocketAddrV4; 2], six: [SocketAddrV6; 2]) {
            let bytes = |address: SocketAddr| match address.ip() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            for (family, name, [peer, local]) in [
                (0x11, "TCP4", four.map(SocketAddr::V4)),
                (0x21, "TCP6", six.map(SocketAddr::V6)),
            ] {
                // Neither version knows of scopes.
                let ends = [peer, local].map(|end| SocketAddr::new(end.ip(), end.port()));
                let known = Parsed::Header(Some(Ends { peer: ends[0], local: ends[1] }));
                let ports = [peer.port().to_be_bytes(), local.port().to_be_bytes()].concat();
                let rest = [bytes(peer), bytes(local), ports].concat();
                prop_assert_eq!(parse(&packed_header(0x21, family, &rest)), known);
                let (from, to) = (peer.ip(), local.ip());
                let line = format!("PROXY {name} {from} {to} {} {}\r\n", peer.port(), local.port());
                prop_assert_eq!(parse(line.as_bytes()), known);
            }
        }

        #[test]
        fn a_part_of_a_header_never_asks_for_more_than_its_rest(cut in 0usize..200, version in 0..3) {
            let header = match version {
                0 => b"PROXY TCP6 2001:db8::9 2001:db8::1 65535 65535\r\n".to_vec(),
                1 => b"PROXY UNKNOWN\r\n".to_vec(),
                _ => with_checksum(&FOUR),
            };
            let cut = cut % header.len();
            match parse(&header[..cut]) {
                Parsed::More(more) => prop_assert!((1..=header.len() - cut).contains(&more)),
                other => prop_assert!(false, "{other:?} of the first {cut} bytes"),
            }
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let signed = [&SIGNATURE[..], &bytes].concat();
            let line = [LINE, &bytes].concat();
            for bytes in [bytes, signed, line] {
                if let Parsed::More(more) = parse(&bytes) {
                    prop_assert!(more > 0 && bytes.len() + more <= LONGEST);
                }
            }
        }
    }
}
