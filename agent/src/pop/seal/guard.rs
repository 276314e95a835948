//! What keeps the seal's replies few and its challenges without memory.

use std::net::{IpAddr, SocketAddr};

use homing_common::host::HostId;

use crate::pop::SECOND;

/// Replies of all kinds per second, to all hosts together, where they are known; and
/// as many elsewhere.
const REPLIES_PER_SECOND: u64 = 2_000;
/// Replies that may go out at once.
pub(super) const REPLIES_BURST: u64 = 500;
/// A nonce is good for one to two of these.
pub(super) const NONCE_LIFE: u64 = 2 * SECOND;

/// A bucket of tokens: one for each reply.
pub(super) struct Limiter {
    /// In millionths, and as of when.
    tokens: u64,
    at: u64,
}

impl Limiter {
    pub fn new() -> Self {
        Self {
            tokens: REPLIES_BURST * SECOND,
            at: 0,
        }
    }

    /// Whether a reply may go out now; if so, it is charged.
    pub fn take(&mut self, now: u64) -> bool {
        let earned = now
            .saturating_sub(self.at)
            .saturating_mul(REPLIES_PER_SECOND);
        self.at = now;
        self.tokens = self
            .tokens
            .saturating_add(earned)
            .min(REPLIES_BURST * SECOND);
        let Some(left) = self.tokens.checked_sub(SECOND) else {
            return false;
        };
        self.tokens = left;
        true
    }
}

/// Makes nonces that can be recognized without being remembered.
pub(super) struct Nonces {
    /// Known to this process alone.
    secret: [u8; 32],
}

/// What a nonce was made for.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Challenge,
    Answer,
}

impl Nonces {
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret }
    }

    /// The nonce of now, for a host at an address.
    pub fn make(&self, now: u64, purpose: Purpose, peer: HostId, address: SocketAddr) -> u64 {
        self.nonce(now / NONCE_LIFE, purpose, peer, address)
    }

    /// Whether a nonce was made of late, for this host at this address.
    pub fn is_ours(
        &self,
        now: u64,
        purpose: Purpose,
        peer: HostId,
        address: SocketAddr,
        nonce: u64,
    ) -> bool {
        let epoch = now / NONCE_LIFE;
        [Some(epoch), epoch.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|epoch| self.nonce(epoch, purpose, peer, address) == nonce)
    }

    fn nonce(&self, epoch: u64, purpose: Purpose, peer: HostId, address: SocketAddr) -> u64 {
        let mut hash = blake3::Hasher::new_keyed(&self.secret);
        hash.update(&[purpose as u8]);
        hash.update(&epoch.to_be_bytes());
        hash.update(&peer.0.to_be_bytes());
        hash.update(&address.port().to_be_bytes());
        match address.ip() {
            IpAddr::V4(ip) => hash.update(&ip.octets()),
            IpAddr::V6(ip) => hash.update(&ip.octets()),
        };
        let mut nonce = [0; 8];
        hash.finalize_xof().fill(&mut nonce);
        u64::from_be_bytes(nonce)
    }
}
