//! Numbers and addresses as text, as their `Display` has them.
//!
//! That can pad and align, which takes ten times as long, and every request is told several of them.

use std::io::Write as _;
use std::net::IpAddr;

use bytes::{BufMut, BytesMut};

pub fn number(out: &mut BytesMut, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return out.put_slice(&digits[at..]);
        }
    }
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

    #[test]
    fn the_least_and_the_largest_number_are_whole() {
        for value in [0, 9, 10, u64::MAX] {
            assert_eq!(text(|out| number(out, value)), value.to_string());
        }
    }

    proptest! {
        #[test]
        fn text_is_as_display_has_it(value: u64, peer: IpAddr) {
            prop_assert_eq!(text(|out| number(out, value)), value.to_string());
            prop_assert_eq!(text(|out| address(out, peer)), peer.to_string());
        }
    }
}
