//! `HOSTS`: who is a member, and the way to each, written so that the fast path
//! never copies half of a template.
//!
//! [`Host`] says how: the template that is not in force is written, then made
//! the one in force, and a slot that was in force is not written again before an
//! RCU grace period has passed. A batch of any size costs one grace period (some
//! milliseconds, during which the calling thread sleeps), so [`Hosts::commit`]
//! belongs on a thread that may block.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::atomic::{Ordering, fence},
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use homing_common::host::{Host, HostId, MAX_HOSTS, Template};

use super::{map_io, sys};

/// What is to change of one host; what is `None` stays.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Whether it is a member: whether its tunnel packets are accepted.
    pub member: Option<bool>,
    /// The way to it; [`Template::NONE`] for none.
    pub template: Option<Template>,
}

impl Change {
    /// The change that makes an entry what it is for a host that is no member.
    pub const GONE: Self = Self {
        member: Some(false),
        template: Some(Template::NONE),
    };

    /// Lays a later change over this one.
    pub fn merge(&mut self, later: Self) {
        self.member = later.member.or(self.member);
        self.template = later.template.or(self.template);
    }
}

/// Changes to `HOSTS`, by host.
pub type Changes = BTreeMap<HostId, Change>;

/// The hosts as the fast path sees them.
pub struct Hosts<S = Kernel> {
    slots: S,
    /// What the map holds.
    shadow: BTreeMap<HostId, Host>,
}

impl Hosts {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        let slots = Kernel {
            map: Array::try_from(map).map_err(map_io)?,
            no_membarrier: false,
        };
        let mut shadow = BTreeMap::new();
        for id in 1..MAX_HOSTS as u16 {
            let host = slots.map.get(&u32::from(id), 0).map_err(map_io)?;
            if host != Host::NONE {
                shadow.insert(HostId(id), host);
            }
        }
        let mut hosts = Self { slots, shadow };
        // A former agent may have flipped an entry just before it stopped.
        hosts.slots.grace_period();
        Ok(hosts)
    }
}

impl<S: Slots> Hosts<S> {
    /// Writes the changes that make a difference. Returns when all of them are
    /// in force and every slot may be written again. Of several failures the
    /// first is reported; the entries that did not fail are written.
    pub fn commit(&mut self, changes: &Changes) -> io::Result<()> {
        let mut failure = Ok(());
        let mut flips = Vec::new();
        for (&id, change) in changes {
            let old = *self.shadow.get(&id).unwrap_or(&Host::NONE);
            let mut host = old;
            if let Some(template) = change.template
                && template != in_force(&old)
            {
                host.templates[other(old.active)] = template;
                match self.write(id, host) {
                    Ok(()) => host.active = other(old.active) as u32,
                    Err(error) => {
                        failure = failure.and(Err(error));
                        continue;
                    }
                }
            }
            if let Some(member) = change.member {
                host.flags = match member {
                    true => host.flags | Host::MEMBER,
                    false => host.flags & !Host::MEMBER,
                };
            }
            if (host.active, host.flags) != (old.active, old.flags) {
                flips.push((id, host));
            }
        }
        // Whoever sees the flips below must see the templates above. The writes
        // are system calls of this thread, so a fence here orders them; a move to
        // another CPU in between orders them by itself.
        fence(Ordering::SeqCst);
        let mut retired = false;
        for (id, host) in flips {
            let before = self.shadow.get(&id).map_or(0, |host| host.active);
            match self.write(id, host) {
                Ok(()) => retired |= host.active != before,
                Err(error) => failure = failure.and(Err(error)),
            }
        }
        if retired {
            self.slots.grace_period();
        }
        failure
    }

    /// Makes every host that is not among `known` no member, with no way to it.
    /// For hosts that left while the agent was down; to be called once the
    /// membership has settled after a start, because until then the entries of
    /// the agent's former life are right more often than not.
    pub fn retain(&mut self, known: &BTreeSet<HostId>) -> io::Result<()> {
        let gone = self.ids().filter(|id| !known.contains(id));
        let changes = gone.map(|id| (id, Change::GONE)).collect();
        self.commit(&changes)
    }

    /// The hosts that are members or that there is a way to.
    pub fn ids(&self) -> impl Iterator<Item = HostId> {
        self.shadow
            .iter()
            .filter(|(_, host)| host.flags != 0 || in_force(host) != Template::NONE)
            .map(|(&id, _)| id)
    }

    /// What the map holds of a host.
    pub fn get(&self, id: HostId) -> Host {
        *self.shadow.get(&id).unwrap_or(&Host::NONE)
    }

    fn write(&mut self, id: HostId, host: Host) -> io::Result<()> {
        self.slots.write(id, &host)?;
        self.shadow.insert(id, host);
        Ok(())
    }
}

fn in_force(host: &Host) -> Template {
    host.templates[(host.active & 1) as usize]
}

fn other(active: u32) -> usize {
    1 - (active & 1) as usize
}

/// Where entries are written to.
pub trait Slots {
    /// Replaces an entry.
    fn write(&mut self, id: HostId, host: &Host) -> io::Result<()>;
    /// Returns when every program run that had begun before the call is over.
    fn grace_period(&mut self);
}

/// The map in the kernel.
pub struct Kernel {
    map: Array<MapData, Host>,
    no_membarrier: bool,
}

/// How long a slot rests where the kernel offers no grace period to user space.
/// A program run takes microseconds.
pub(super) const REST: Duration = Duration::from_secs(2);

impl Slots for Kernel {
    fn write(&mut self, id: HostId, host: &Host) -> io::Result<()> {
        self.map.set(u32::from(id.0), host, 0).map_err(map_io)
    }

    fn grace_period(&mut self) {
        if sys::grace_period() {
            return;
        }
        if !self.no_membarrier {
            self.no_membarrier = true;
            tracing::warn!(
                error = %io::Error::last_os_error(),
                "the kernel refuses membarrier (is it a nohz_full kernel?): changes of next hops \
                 are written at most every {REST:?}",
            );
        }
        thread::sleep(REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Slots that check, at each write, what [`Host`] promises to readers.
    #[derive(Default)]
    struct Checked {
        entries: BTreeMap<HostId, Host>,
        /// Templates that a reader may still be copying: those in force at any
        /// time since the last grace period.
        read: BTreeSet<(HostId, u32)>,
        writes: usize,
        graces: usize,
    }

    impl Slots for Checked {
        fn write(&mut self, id: HostId, new: &Host) -> io::Result<()> {
            let old = *self.entries.get(&id).unwrap_or(&Host::NONE);
            self.read.insert((id, old.active));
            for slot in 0..2u32 {
                let changed = old.templates[slot as usize] != new.templates[slot as usize];
                assert!(
                    !(changed && self.read.contains(&(id, slot))),
                    "wrote a template that may be being read"
                );
                assert!(
                    !(changed && new.active == slot),
                    "wrote a template and put it in force at once"
                );
            }
            self.entries.insert(id, *new);
            self.read.insert((id, new.active));
            self.writes += 1;
            Ok(())
        }

        fn grace_period(&mut self) {
            self.graces += 1;
            self.read.clear();
        }
    }

    fn hosts() -> Hosts<Checked> {
        Hosts {
            slots: Checked::default(),
            shadow: BTreeMap::new(),
        }
    }

    fn template(n: u8) -> Template {
        Template {
            header: [n; 72],
            ifindex: n.into(),
            ..Template::NONE
        }
    }

    fn one(id: u16, member: Option<bool>, way: Option<u8>) -> Changes {
        let template = way.map(template);
        [(HostId(id), Change { member, template })].into()
    }

    #[test]
    fn a_change_comes_into_force() {
        let mut hosts = hosts();
        hosts.commit(&one(3, Some(true), Some(1))).unwrap();
        let host = hosts.get(HostId(3));
        assert_eq!(host.flags, Host::MEMBER);
        assert!(in_force(&host) == template(1));
        assert_eq!((hosts.slots.writes, hosts.slots.graces), (2, 1));
    }

    #[test]
    fn what_makes_no_difference_is_not_written() {
        let mut hosts = hosts();
        hosts.commit(&one(3, Some(true), Some(1))).unwrap();
        hosts.commit(&one(3, Some(true), Some(1))).unwrap();
        hosts.commit(&one(4, Some(false), None)).unwrap();
        assert_eq!(hosts.slots.writes, 2);
    }

    #[test]
    fn membership_alone_needs_no_grace_period() {
        let mut hosts = hosts();
        hosts.commit(&one(3, Some(true), None)).unwrap();
        assert_eq!((hosts.slots.writes, hosts.slots.graces), (1, 0));
    }

    #[test]
    fn a_batch_costs_one_grace_period() {
        let mut hosts = hosts();
        let changes = (1..100)
            .map(|id| {
                let template = Some(template(7));
                (
                    HostId(id),
                    Change {
                        member: Some(true),
                        template,
                    },
                )
            })
            .collect();
        hosts.commit(&changes).unwrap();
        assert_eq!(hosts.slots.graces, 1);
    }

    #[test]
    fn who_is_not_known_is_dropped() {
        let mut hosts = hosts();
        hosts.commit(&one(3, Some(true), Some(1))).unwrap();
        hosts.commit(&one(4, Some(true), Some(2))).unwrap();
        hosts.retain(&[HostId(4)].into()).unwrap();
        assert_eq!(hosts.ids().collect::<Vec<_>>(), [HostId(4)]);
        assert_eq!(hosts.get(HostId(3)).flags, 0);
        assert!(in_force(&hosts.get(HostId(3))) == Template::NONE);
    }

    proptest! {
        /// `Checked` asserts at every write; this only has to try many.
        #[test]
        fn no_reader_can_see_a_torn_template(
            batches in prop::collection::vec(
                prop::collection::btree_map(1u16..4, (any::<Option<bool>>(), prop::option::of(0u8..4)), 0..4),
                0..20,
            )
        ) {
            let mut hosts = hosts();
            let mut model = BTreeMap::<HostId, (bool, Template)>::new();
            for batch in batches {
                let changes: Changes = batch
                    .into_iter()
                    .map(|(id, (member, way))| {
                        (HostId(id), Change { member, template: way.map(template) })
                    })
                    .collect();
                hosts.commit(&changes).unwrap();
                for (id, change) in changes {
                    let entry = model.entry(id).or_insert((false, Template::NONE));
                    entry.0 = change.member.unwrap_or(entry.0);
                    entry.1 = change.template.unwrap_or(entry.1);
                }
                for (&id, &(member, way)) in &model {
                    let host = hosts.slots.entries.get(&id).copied().unwrap_or(Host::NONE);
                    prop_assert_eq!(host.flags == Host::MEMBER, member);
                    prop_assert!(in_force(&host) == way);
                }
            }
        }
    }
}
