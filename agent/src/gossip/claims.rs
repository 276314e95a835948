//! Claims: which hosts say that they own which session, and who is right.
//!
//! A session's owner is the claim with the greatest generation, and among equal
//! generations that of the greatest host id: every host that holds the same
//! claims names the same owner.
//!
//! Nearly every session has one claim, so the table holds one per session in 16
//! bytes; further claims to the same session stand aside.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
};

use homing_common::{host::HostId, session::SessionId};

use super::wire::GENERATION_MAX;

/// Session ids are keyed hashes: their bits are as good as any hash of them.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

/// A hash map by session id.
pub(super) type IdMap<V> = HashMap<SessionId, V, BuildHasherDefault<IdHasher>>;

/// A claim in 32 bits. Greater means stronger, once the marks are masked off.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Packed(u32);

impl Packed {
    const HOST_BITS: u32 = 12;
    const EPOCH: u32 = 1 << 31;
    const MORE: u32 = 1 << 30;
    const MARKS: u32 = Self::EPOCH | Self::MORE;

    fn new(host: HostId, generation: u16, epoch: bool) -> Self {
        let epoch = if epoch { Self::EPOCH } else { 0 };
        let generation = u32::from(generation.min(GENERATION_MAX));
        Self(epoch | generation << Self::HOST_BITS | u32::from(host.0))
    }

    fn strength(self) -> u32 {
        self.0 & !Self::MARKS
    }

    fn claim(self) -> Claim {
        Claim {
            host: HostId((self.0 & ((1 << Self::HOST_BITS) - 1)) as u16),
            generation: (self.strength() >> Self::HOST_BITS) as u16,
        }
    }

    fn epoch(self) -> bool {
        self.0 & Self::EPOCH != 0
    }

    fn more(self) -> bool {
        self.0 & Self::MORE != 0
    }
}

const _: () = assert!(homing_common::host::MAX_HOSTS == 1 << Packed::HOST_BITS);
const _: () = assert!((GENERATION_MAX as u32) < 1 << (30 - Packed::HOST_BITS));

/// One host's claim to a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Whose.
    pub host: HostId,
    /// The session's generation.
    pub generation: u16,
}

/// What inserting a claim did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Inserted {
    /// The generation and epoch of the origin's claim that was there before.
    pub previous: Option<(u16, bool)>,
    /// Another host owns the session now.
    pub owner_changed: bool,
}

/// What removing a claim did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Removed {
    /// The claim's generation.
    pub generation: u16,
    /// Another host, or none, owns the session now.
    pub owner_changed: bool,
}

/// The table has no room for another session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Full;

/// All claims of all origins.
pub(super) struct Claims {
    /// The strongest claim of each session.
    first: IdMap<Packed>,
    /// The others, of sessions marked with `MORE`.
    others: IdMap<Vec<Packed>>,
    limit: usize,
}

impl Claims {
    /// An empty table for at most so many sessions.
    pub fn new(limit: usize) -> Self {
        Self {
            first: IdMap::default(),
            others: IdMap::default(),
            limit,
        }
    }

    /// Sessions with a claim.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Whether a good part of the table is free again.
    pub fn has_room(&self) -> bool {
        self.len() < self.limit - self.limit / 16
    }

    /// The session's owner by the claims.
    pub fn owner(&self, id: SessionId) -> Option<Claim> {
        self.first.get(&id).map(|packed| packed.claim())
    }

    /// All claims to a session, the strongest first.
    pub fn of(&self, id: SessionId) -> Vec<Claim> {
        let first = self.first.get(&id).copied();
        let others = self.others.get(&id).into_iter().flatten().copied();
        let mut all: Vec<_> = first.into_iter().chain(others).collect();
        all.sort_unstable_by_key(|packed| std::cmp::Reverse(packed.strength()));
        all.into_iter().map(Packed::claim).collect()
    }

    /// Whether the two strongest claims to a session are equally strong but for
    /// their hosts: what no order of events explains.
    pub fn is_doubled(&self, id: SessionId) -> bool {
        let claims = self.of(id);
        claims.len() > 1 && claims[0].generation == claims[1].generation
    }

    /// Some sessions with more than one claim.
    pub fn shared(&self) -> impl Iterator<Item = SessionId> {
        self.others.keys().copied()
    }

    /// Sets a host's claim to a session.
    pub fn insert(
        &mut self,
        id: SessionId,
        host: HostId,
        generation: u16,
        epoch: bool,
    ) -> Result<Inserted, Full> {
        let new = Packed::new(host, generation, epoch);
        let full = self.first.len() >= self.limit;
        match self.first.entry(id) {
            Entry::Vacant(entry) => {
                if full {
                    return Err(Full);
                }
                entry.insert(new);
                Ok(Inserted {
                    previous: None,
                    owner_changed: true,
                })
            }
            Entry::Occupied(mut entry) => {
                let first = *entry.get();
                if !first.more() && first.claim().host == host {
                    entry.insert(new);
                    return Ok(Inserted {
                        previous: Some((first.claim().generation, first.epoch())),
                        owner_changed: false,
                    });
                }
                if !first.more() && self.others.len() >= self.limit {
                    return Err(Full);
                }
                let all = self.others.entry(id).or_default();
                all.push(first);
                let previous = match all.iter_mut().find(|c| c.claim().host == host) {
                    Some(claim) => Some(std::mem::replace(claim, new)),
                    None => {
                        all.push(new);
                        None
                    }
                };
                let strongest = take_strongest(all);
                entry.insert(Packed(strongest.0 | Packed::MORE));
                Ok(Inserted {
                    previous: previous.map(|p| (p.claim().generation, p.epoch())),
                    owner_changed: strongest.claim().host != first.claim().host,
                })
            }
        }
    }

    /// Removes a host's claim to a session, if there is one.
    pub fn remove(&mut self, id: SessionId, host: HostId) -> Option<Removed> {
        let Entry::Occupied(mut entry) = self.first.entry(id) else {
            return None;
        };
        let first = *entry.get();
        if !first.more() {
            if first.claim().host != host {
                return None;
            }
            entry.remove();
            return Some(Removed {
                generation: first.claim().generation,
                owner_changed: true,
            });
        }
        let all = self.others.entry(id).or_default();
        all.push(first);
        let found = all.iter().position(|c| c.claim().host == host);
        let removed = found.map(|at| all.swap_remove(at));
        let strongest = take_strongest(all);
        if all.is_empty() {
            self.others.remove(&id);
            entry.insert(strongest);
        } else {
            entry.insert(Packed(strongest.0 | Packed::MORE));
        }
        removed.map(|removed| Removed {
            generation: removed.claim().generation,
            owner_changed: strongest.claim().host != first.claim().host,
        })
    }

    /// Removes all claims of a host, or only those of one epoch, and names the
    /// sessions whose owner changed. Walks the whole table: about 10 ns a session.
    pub fn sweep(&mut self, host: HostId, epoch: Option<bool>, mut changed: impl FnMut(SessionId)) {
        let is_meant =
            |c: &Packed| c.claim().host == host && epoch.is_none_or(|epoch| c.epoch() == epoch);
        self.first.retain(|&id, claim| {
            let goes = !claim.more() && is_meant(claim);
            if goes {
                changed(id);
            }
            !goes
        });
        let shared: Vec<SessionId> = self
            .others
            .iter()
            .filter(|(id, others)| {
                others.iter().any(is_meant) || self.first.get(id).is_some_and(is_meant)
            })
            .map(|(&id, _)| id)
            .collect();
        for id in shared {
            if self.remove(id, host).is_some_and(|r| r.owner_changed) {
                changed(id);
            }
        }
    }
}

/// Takes the strongest claim out of a list that is not empty; no mark of further
/// claims is left on any.
fn take_strongest(all: &mut Vec<Packed>) -> Packed {
    let mut at = 0;
    for i in 0..all.len() {
        all[i].0 &= !Packed::MORE;
        if all[i].strength() > all[at].strength() {
            at = i;
        }
    }
    all.swap_remove(at)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u16, u16, bool),
        Remove(u64, u16),
        Sweep(u16, Option<bool>),
    }

    fn ops() -> impl Strategy<Value = Op> {
        let insert = (0u64..6, 1u16..5, 0u16..4, any::<bool>());
        prop_oneof![
            8 => insert.prop_map(|(i, h, g, e)| Op::Insert(i, h, g, e)),
            4 => (0u64..6, 1u16..5).prop_map(|(i, h)| Op::Remove(i, h)),
            1 => (1u16..5, any::<Option<bool>>()).prop_map(|(h, e)| Op::Sweep(h, e)),
        ]
    }

    type Model = BTreeMap<(u64, u16), (u16, bool)>;

    fn owner(model: &Model, id: u64) -> Option<u16> {
        let claims = model.range((id, 0)..=(id, u16::MAX));
        claims
            .map(|((_, h), (g, _))| (*g, *h))
            .max()
            .map(|(_, h)| h)
    }

    proptest! {
        /// Against a plain map of all claims.
        #[test]
        fn claims_agree_with_a_plain_map(ops in prop::collection::vec(ops(), 1..60)) {
            let mut claims = Claims::new(5);
            let mut model = Model::new();
            for op in ops {
                let before: Vec<_> = (0..6).map(|id| owner(&model, id)).collect();
                let mut reported = Vec::new();
                match op {
                    Op::Insert(id, h, g, e) => {
                        match claims.insert(SessionId(id), HostId(h), g, e) {
                            Err(Full) => prop_assert!(owner(&model, id).is_none()),
                            Ok(inserted) => {
                                prop_assert_eq!(inserted.previous, model.insert((id, h), (g, e)));
                                if inserted.owner_changed { reported.push(id); }
                            }
                        }
                    }
                    Op::Remove(id, h) => {
                        let removed = claims.remove(SessionId(id), HostId(h));
                        prop_assert_eq!(removed.map(|r| r.generation), model.remove(&(id, h)).map(|c| c.0));
                        if removed.is_some_and(|r| r.owner_changed) { reported.push(id); }
                    }
                    Op::Sweep(h, e) => {
                        model.retain(|(_, host), (_, epoch)| *host != h || e.is_some_and(|e| *epoch != e));
                        claims.sweep(HostId(h), e, |id| reported.push(id.0));
                    }
                }
                let changed: Vec<_> = (0..6u64).filter(|&id| owner(&model, id) != before[id as usize]).collect();
                reported.sort_unstable();
                prop_assert_eq!(reported, changed);
                let mut ids = 0;
                for id in 0..6 {
                    prop_assert_eq!(claims.owner(SessionId(id)).map(|c| c.host.0), owner(&model, id));
                    let all = claims.of(SessionId(id));
                    prop_assert_eq!(all.len(), model.range((id, 0)..=(id, u16::MAX)).count());
                    ids += usize::from(!all.is_empty());
                }
                prop_assert_eq!(claims.len(), ids);
                prop_assert!(ids <= 5);
            }
        }
    }
}
