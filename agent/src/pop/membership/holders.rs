//! Which machine has an id.
//!
//! When two machines are given one id by mistake, the one that the POP knows keeps
//! it. Its address tells it apart from the other, whose incarnation may be the
//! later one, and would win in the library. So nothing that is said of the other
//! machine reaches the library while the first one has the id:
//!
//! - while its agent is up, against every other address;
//! - while its agent is down and its kernel answers, against every other kernel:
//!   its sessions stand. The same kernel may come back at another address.
//!
//! What was kept from the library is remembered for a moment: a host that has moved
//! to another address may have been heard of before the end of its old life was.

use std::net::SocketAddr;

use bytes::Buf as _;
use foca::Codec as _;
use homing_common::host::HostId;

use super::{Membership, codec::Wire};
use crate::pop::{Member, SECOND};

/// For how long an account of another machine is good once the id is free.
const ACCOUNT_LIFE: u64 = 10 * SECOND;

/// The machine that has an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Its fabric address.
    pub address: SocketAddr,
    /// The life of its kernel.
    pub incarnation: u64,
    /// Its agent is up.
    pub is_up: bool,
}

impl Holder {
    /// Whether a life at an address is that of another machine, which must not
    /// have the id now.
    pub fn refuses(&self, address: SocketAddr, incarnation: u64) -> bool {
        let is_elsewhere =
            self.address.ip() != address.ip() || self.address.port() != address.port();
        is_elsewhere && (self.is_up || self.incarnation != incarnation)
    }
}

/// Two machines use one id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contest {
    /// The id.
    pub host: HostId,
    /// Where the machine is that keeps it.
    pub holder: SocketAddr,
    /// Where the other one is.
    pub other: SocketAddr,
}

/// An account of a machine that must not have its id now.
pub(super) struct Withheld {
    at: u64,
    account: foca::Member<Member>,
}

impl Membership {
    /// The machine that has an id, if another one must not take it over.
    pub fn holder(&self, host: HostId) -> Option<Holder> {
        self.holders.get(&host).copied()
    }

    /// Two machines that were found to use one id since this was last asked.
    pub fn take_contest(&mut self) -> Option<Contest> {
        self.contest.take()
    }

    /// A host's agent is up.
    pub(super) fn hold(&mut self, member: &Member) {
        let holder = Holder {
            address: member.address,
            incarnation: member.stream.incarnation,
            is_up: true,
        };
        self.holders.insert(member.host, holder);
        self.withheld.remove(&member.host);
    }

    /// The kernel of a host whose agent is down answers: what it has stands.
    pub fn keep(&mut self, host: HostId) {
        if let Some(entry) = self.entries.get(&host) {
            let holder = Holder {
                address: entry.member.address,
                incarnation: entry.member.stream.incarnation,
                is_up: false,
            };
            self.holders.entry(host).or_insert(holder);
        }
    }

    /// A host's agent is down; what its kernel has stands.
    pub(super) fn hold_kernel(&mut self, now: u64, host: HostId) {
        if let Some(holder) = self.holders.get_mut(&host) {
            holder.is_up = false;
        }
        self.reconsider(now, host);
    }

    /// Nothing of a host stands any more: another machine may have its id.
    pub fn release(&mut self, now: u64, host: HostId) {
        self.holders.remove(&host);
        self.reconsider(now, host);
        self.settle(now);
    }

    /// Whether an account is one of a machine that must not have its id now; it is
    /// noted then.
    pub(super) fn is_contested(&mut self, account: &Member) -> bool {
        let holder = if account.host == self.me.host {
            // Of what was before this life the library disposes.
            account.is_later_than(&self.me).then_some(Holder {
                address: self.me.address,
                incarnation: self.me.stream.incarnation,
                is_up: true,
            })
        } else {
            self.holder(account.host)
        };
        let refuses = |holder: &Holder| holder.refuses(account.address, account.stream.incarnation);
        let Some(holder) = holder.filter(refuses) else {
            return false;
        };
        self.counters.contested += 1;
        self.contest = Some(Contest {
            host: account.host,
            holder: holder.address,
            other: account.address,
        });
        true
    }

    /// A message of the library's without what it says of machines that must not
    /// have their id now; none if it says nothing of such, or is malformed.
    pub(super) fn without_contested(&mut self, now: u64, body: &[u8]) -> Option<Vec<u8>> {
        let mut rest = body;
        Wire.decode_header(&mut rest).ok()?;
        let head = &body[..body.len() - rest.len()];
        let count = rest.try_get_u16().ok()?;
        let mut kept = Vec::new();
        let mut left = count;
        for _ in 0..count {
            let before = rest;
            let account = Wire.decode_member(&mut rest).ok()?;
            if self.is_contested(account.id()) {
                left -= 1;
                self.withhold(now, account);
            } else {
                kept.extend_from_slice(&before[..before.len() - rest.len()]);
            }
        }
        (left < count).then(|| [head, &left.to_be_bytes(), &kept, rest].concat())
    }

    fn withhold(&mut self, now: u64, account: foca::Member<Member>) {
        // That a machine has gone which never had the id is no news.
        if account.state() != foca::State::Down && account.id().host != self.me.host {
            let withheld = Withheld { at: now, account };
            self.withheld.insert(withheld.account.id().host, withheld);
        }
    }

    /// Lets the library know what was kept from it, if that holds by now.
    fn reconsider(&mut self, now: u64, host: HostId) {
        let Some(Withheld { at, account }) = self.withheld.remove(&host) else {
            return;
        };
        let id = account.id();
        let holder = self.holder(host);
        if holder.is_some_and(|h| h.refuses(id.address, id.stream.incarnation)) {
            self.withheld.insert(host, Withheld { at, account });
        } else if now < at + ACCOUNT_LIFE {
            let result = self
                .foca
                .apply_many(std::iter::once(account), true, &mut self.runtime);
            self.note(result);
        }
    }
}
