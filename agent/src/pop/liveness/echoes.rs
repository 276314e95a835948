//! Questions to kernels, and their answers.

use std::net::{IpAddr, SocketAddr};

use homing_common::{echo::Echo, host::HostId};
use rand::RngExt as _;

use super::{Event, Liveness, Question};

impl Liveness {
    /// Asks a host's kernel.
    pub(super) fn ask(&mut self, host: HostId) {
        let nonce: u64 = self.rng.random();
        let Some(peer) = self.peers.get_mut(host) else {
            return;
        };
        peer.asked(nonce);
        let mut echo = Echo {
            magic: Echo::MAGIC,
            from: self.settings.host.0.to_be_bytes(),
            to: host.0.to_be_bytes(),
            nonce: nonce.to_be_bytes(),
            incarnation: [0; 8],
            tag: [0; 8],
        };
        echo.tag = echo.tag(&self.settings.address.ip().into(), &self.settings.keys[0]);
        self.questions.push_back(Question {
            to: peer.address,
            bytes: to_bytes(&echo),
        });
        self.counters.echoes_asked += 1;
    }

    /// Hears a datagram that begins like an echo, from an address.
    pub fn echo(&mut self, now: u64, from: SocketAddr, datagram: &[u8]) {
        let Some(echo) = read(datagram) else {
            self.counters.echoes_refused += 1;
            return;
        };
        if echo.incarnation == [0; 8] && self.is_signed(&echo, from.ip()) {
            // A question that XDP should have answered: it is not on the interface
            // that this came in by. The agent must not answer for the kernel.
            self.counters.echoes_unanswered_here += 1;
            return;
        }
        let host = HostId(u16::from_be_bytes(echo.to));
        let is_signed = self.is_signed(&echo, self.settings.address.ip());
        let is_for_us = echo.from == self.settings.host.0.to_be_bytes();
        let incarnation = u64::from_be_bytes(echo.incarnation);
        let nonce = u64::from_be_bytes(echo.nonce);
        let answers = self.peers.get_mut(host).is_some_and(|peer| {
            let is_from_it = peer.address.ip() == from.ip() && peer.address.port() == from.port();
            is_signed
                && is_for_us
                && is_from_it
                && peer.incarnation == incarnation
                && peer.answers(nonce)
        });
        if !answers {
            self.counters.echoes_refused += 1;
            return;
        }
        self.counters.echoes_heard += 1;
        self.kernel_heard(now, host);
    }

    /// Whether an echo was signed by a member, for the one who asks from an address.
    fn is_signed(&self, echo: &Echo, asker: IpAddr) -> bool {
        let asker = asker.into();
        let mut keys = self.settings.keys.iter().filter(|key| key.0 != [0; 2]);
        keys.any(|key| echo.tag == echo.tag(&asker, key))
    }

    fn kernel_heard(&mut self, now: u64, host: HostId) {
        let Some(peer) = self.peers.get_mut(host) else {
            return;
        };
        let is_first = peer.heard_at.is_none();
        peer.heard_at = Some(now);
        peer.unanswered = false;
        peer.missed = 0;
        let was_silent = peer.silent_since.take().is_some();
        if was_silent && !peer.is_dead() {
            self.event(Event::Recovered { host });
        }
        if is_first {
            self.event(Event::Answers { host });
        }
        self.duty_is_stale |= was_silent;
        self.is_alive(now, host);
    }
}

pub(super) fn to_bytes(echo: &Echo) -> [u8; Echo::LEN] {
    let mut bytes = [0; Echo::LEN];
    bytes[..4].copy_from_slice(&echo.magic);
    bytes[4..6].copy_from_slice(&echo.from);
    bytes[6..8].copy_from_slice(&echo.to);
    bytes[8..16].copy_from_slice(&echo.nonce);
    bytes[16..24].copy_from_slice(&echo.incarnation);
    bytes[24..].copy_from_slice(&echo.tag);
    bytes
}

pub(super) fn read(datagram: &[u8]) -> Option<Echo> {
    let bytes: &[u8; Echo::LEN] = datagram.try_into().ok()?;
    fn cut<const N: usize>(bytes: &[u8; Echo::LEN], at: usize) -> [u8; N] {
        std::array::from_fn(|n| bytes[at + n])
    }
    let echo = Echo {
        magic: cut(bytes, 0),
        from: cut(bytes, 4),
        to: cut(bytes, 6),
        nonce: cut(bytes, 8),
        incarnation: cut(bytes, 16),
        tag: cut(bytes, 24),
    };
    (echo.magic == Echo::MAGIC).then_some(echo)
}

/// What a kernel in its life answers to a question: the stand-in for XDP in
/// simulations.
#[cfg(test)]
pub(crate) fn answer_for_test(
    host: HostId,
    incarnation: u64,
    key: &homing_common::session::SessionKey,
    asker: SocketAddr,
    question: &[u8],
) -> Option<Vec<u8>> {
    let mut echo = read(question)?;
    let asker = asker.ip().into();
    let is_question = echo.incarnation == [0; 8] && echo.tag == echo.tag(&asker, key);
    if !is_question || echo.to != host.0.to_be_bytes() {
        return None;
    }
    echo.incarnation = incarnation.to_be_bytes();
    echo.tag = echo.tag(&asker, key);
    Some(to_bytes(&echo).to_vec())
}
