//! Numbers and addresses as text, as their `Display` has them.
//!
//! That can pad and align, which takes ten times as long, and every request is told several of them.

use std::io::Write as _;
use std::net::IpAddr;

use bytes::{BufMut, BytesMut};

pub fn number(out: &mut BytesMut, number: u64) {
    out.put_slice(itoa::Buffer::new().format(number).as_bytes());
}

pub fn address(out: &mut BytesMut, address: IpAddr) {
    let IpAddr::V4(address) = address else {
        return write!(out.writer(), "{address}").expect("memory takes all that is written");
    };
    let [first, others @ ..] = address.octets();
    number(out, first.into());
    for octet in others {
        out.put_u8(b'.');
        number(out, octet.into());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).expect("text")
    }

    proptest! {
        #[test]
        fn text_is_as_display_has_it(value: u64, peer: IpAddr) {
            prop_assert_eq!(text(|out| number(out, value)), value.to_string());
            prop_assert_eq!(text(|out| address(out, peer)), peer.to_string());
        }
    }
}
