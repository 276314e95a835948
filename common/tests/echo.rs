//! Tags of echoes, against another implementation of SipHash and byte by byte.

use std::hash::Hasher as _;

use homing_common::{echo::Echo, net::Address, session::SessionKey};
use proptest::prelude::*;
use siphasher::sip::SipHasher13;

fn reference(echo: &Echo, asker: [u8; 16], key: SessionKey) -> [u8; 8] {
    let bytes = [
        &echo.magic[..],
        &echo.from,
        &echo.to,
        &echo.nonce,
        &echo.incarnation,
        &asker,
    ]
    .concat();
    let mut hasher = SipHasher13::new_with_keys(key.0[0], key.0[1]);
    hasher.write(&bytes);
    hasher.finish().to_le_bytes()
}

proptest! {
    #[test]
    fn a_tag_covers_everything(
        from: [u8; 2],
        to: [u8; 2],
        nonce: [u8; 8],
        incarnation: [u8; 8],
        asker: [u8; 16],
        key: [u64; 2],
    ) {
        let echo = Echo { magic: Echo::MAGIC, from, to, nonce, incarnation, tag: [0; 8] };
        let key = SessionKey(key);
        prop_assert_eq!(echo.tag(&Address(asker), &key), reference(&echo, asker, key));
    }
}
