//! `HOSTS`: who is a member, and the way to each, written so that the fast path
//! never copies half of a template.
//!
//! [`Host`] says how: the template that is not in force is written, then made
//! the one in force, and a slot that was in force is not written again before an
//! RCU grace period has passed. A batch of any size costs one grace period (some
//! milliseconds, during which the calling thread sleeps), so [`Hosts::commit`]
//! belongs on a thread that may block. Only that a host is void ([`Voids`]) is written
//! beside it, at once: by who removes its entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{Ordering, fence},
    },
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
pub struct Hosts<S = Kernel>(Shared<S>);

/// Says of hosts that all their entries in the table of owners are void.
pub struct Voids<S = Kernel>(Shared<S>);

/// The entries, for the two that write them.
type Shared<S> = Arc<Mutex<Entries<S>>>;

/// What is written where.
pub struct Entries<S> {
    slots: S,
    /// What the map holds.
    shadow: BTreeMap<HostId, Host>,
}

impl<S: Slots> Entries<S> {
    fn get(&self, id: HostId) -> Host {
        *self.shadow.get(&id).unwrap_or(&Host::NONE)
    }

    fn write(&mut self, id: HostId, host: Host) -> io::Result<()> {
        self.slots.write(id, &host)?;
        self.shadow.insert(id, host);
        Ok(())
    }
}

fn lock<S>(entries: &Mutex<Entries<S>>) -> MutexGuard<'_, Entries<S>> {
    // Each write leaves an entry whole, so a panic elsewhere harms nothing.
    entries.lock().unwrap_or_else(PoisonError::into_inner)
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
        let hosts = Self(Arc::new(Mutex::new(Entries { slots, shadow })));
        // A former agent may have flipped an entry just before it stopped.
        Kernel::grace_period(&hosts.0);
        Ok(hosts)
    }
}

impl<S: Slots> Hosts<S> {
    /// Writes the changes that make a difference. Returns when all of them are
    /// in force and every slot may be written again. Of several failures the
    /// first is reported; the entries that did not fail are written.
    pub fn commit(&mut self, changes: &Changes) -> io::Result<()> {
        let mut entries = lock(&self.0);
        let mut failure = Ok(());
        let mut flips = Vec::new();
        for (&id, change) in changes {
            let old = entries.get(id);
            let mut host = old;
            if let Some(template) = change.template
                && template != in_force(&old)
            {
                host.templates[other(old.active)] = template;
                match entries.write(id, host) {
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
            let before = entries.get(id).active;
            match entries.write(id, host) {
                Ok(()) => retired |= host.active != before,
                Err(error) => failure = failure.and(Err(error)),
            }
        }
        drop(entries);
        if retired {
            S::grace_period(&self.0);
        }
        failure
    }

    /// Makes every host that is not among `known` no member, with no way to it.
    /// For hosts that left while the agent was down; to be called once the
    /// membership has settled after a start, because until then the entries of
    /// the agent's former life are right more often than not.
    pub fn retain(&mut self, known: &BTreeSet<HostId>) -> io::Result<()> {
        let mut gone = self.ids();
        gone.retain(|id| !known.contains(id));
        let changes = gone.into_iter().map(|id| (id, Change::GONE)).collect();
        self.commit(&changes)
    }

    /// The hosts that are members or that there is a way to.
    pub fn ids(&self) -> Vec<HostId> {
        let in_use =
            |host: &Host| host.flags & Host::MEMBER != 0 || in_force(host) != Template::NONE;
        self.those(in_use)
    }

    /// Hosts that an agent before this one has found void, and whose entries it did not
    /// come to remove.
    pub fn void(&self) -> Vec<HostId> {
        self.those(|host| host.flags & Host::VOID != 0)
    }

    fn those(&self, which: impl Fn(&Host) -> bool) -> Vec<HostId> {
        let entries = lock(&self.0);
        let those = entries.shadow.iter().filter(|(_, host)| which(host));
        those.map(|(&id, _)| id).collect()
    }

    /// What the map holds of a host.
    pub fn get(&self, id: HostId) -> Host {
        lock(&self.0).get(id)
    }

    /// What says of these hosts that they are void.
    pub fn voids(&self) -> Voids<S> {
        Voids(self.0.clone())
    }
}

impl<S: Slots> Voids<S> {
    /// Makes all entries of a host void by one write, whatever becomes of its membership
    /// meanwhile, and then has them removed: those that come after that are of another
    /// life. Waits for no grace period. If the write fails, they are removed all the
    /// same.
    pub fn sweep<T>(&self, id: HostId, remove: impl FnOnce() -> T) -> (T, io::Result<()>) {
        let begun = self.put(id, |flags| flags | Host::VOID);
        let removed = remove();
        let ended = self.put(id, |flags| flags & !Host::VOID);
        (removed, begun.and(ended))
    }

    fn put(&self, id: HostId, flags: impl Fn(u32) -> u32) -> io::Result<()> {
        let mut entries = lock(&self.0);
        let mut host = entries.get(id);
        host.flags = flags(host.flags);
        entries.write(id, host)
    }
}

fn in_force(host: &Host) -> Template {
    host.templates[(host.active & 1) as usize]
}

fn other(active: u32) -> usize {
    1 - (active & 1) as usize
}

/// Where entries are written to.
pub trait Slots: Sized {
    /// Replaces an entry.
    fn write(&mut self, id: HostId, host: &Host) -> io::Result<()>;
    /// Returns when every program run that had begun before the call is over. The
    /// entries may be written meanwhile.
    fn grace_period(entries: &Mutex<Entries<Self>>);
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

    fn grace_period(entries: &Mutex<Entries<Self>>) {
        if sys::grace_period() {
            return;
        }
        if !std::mem::replace(&mut lock(entries).slots.no_membarrier, true) {
            tracing::warn!(
                error = %io::Error::last_os_error(),
                fix = "nothing, if next hops may change that slowly; else run without nohz_full",
                "the kernel refuses membarrier: changes of next hops are written at most every {REST:?}",
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

        fn grace_period(entries: &Mutex<Entries<Self>>) {
            // Who finds a host void meanwhile does not wait.
            let slots = &mut entries.try_lock().unwrap().slots;
            slots.graces += 1;
            slots.read.clear();
        }
    }

    fn hosts() -> Hosts<Checked> {
        Hosts(Arc::new(Mutex::new(Entries {
            slots: Checked::default(),
            shadow: BTreeMap::new(),
        })))
    }

    /// How often was written, and how often a grace period was waited for.
    fn counts(hosts: &Hosts<Checked>) -> (usize, usize) {
        let slots = &lock(&hosts.0).slots;
        (slots.writes, slots.graces)
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
        assert_eq!(counts(&hosts), (2, 1));
    }

    #[test]
    fn what_makes_no_difference_is_not_written() {
        let mut hosts = hosts();
        hosts.commit(&one(3, Some(true), Some(1))).unwrap();
        hosts.commit(&one(3, Some(true), Some(1))).unwrap();
        hosts.commit(&one(4, Some(false), None)).unwrap();
        assert_eq!(counts(&hosts), (2, 1));
    }

    #[test]
    fn membership_alone_needs_no_grace_period() {
        let mut hosts = hosts();
        hosts.commit(&one(3, Some(true), None)).unwrap();
        assert_eq!(counts(&hosts), (1, 0));
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
        assert_eq!(counts(&hosts).1, 1);
    }

    #[test]
    fn who_is_not_known_is_dropped() {
        let mut hosts = hosts();
        hosts.commit(&one(3, Some(true), Some(1))).unwrap();
        hosts.commit(&one(4, Some(true), Some(2))).unwrap();
        hosts.retain(&[HostId(4)].into()).unwrap();
        assert_eq!(hosts.ids(), [HostId(4)]);
        assert_eq!(hosts.get(HostId(3)).flags, 0);
        assert!(in_force(&hosts.get(HostId(3))) == Template::NONE);
    }

    #[test]
    fn one_write_makes_a_host_void_before_its_entries_go_and_membership_does_not_undo_it() {
        let mut hosts = hosts();
        let voids = hosts.voids();
        hosts.commit(&one(3, Some(true), Some(1))).unwrap();
        let before = counts(&hosts);
        let (entries, result) = voids.sweep(HostId(3), || {
            assert_eq!(counts(&hosts), (before.0 + 1, before.1));
            for member in [false, true] {
                hosts.commit(&one(3, Some(member), Some(2))).unwrap();
                assert_eq!(hosts.void(), [HostId(3)]);
            }
            7
        });
        result.unwrap();
        assert_eq!(entries, 7);
        assert_eq!(hosts.get(HostId(3)).flags, Host::MEMBER);
        assert!(hosts.void().is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Commit(BTreeMap<u16, (Option<bool>, Option<u8>)>),
        Void(u16, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let change = (any::<Option<bool>>(), prop::option::of(0u8..4));
        prop_oneof![
            3 => prop::collection::btree_map(1u16..4, change, 0..4).prop_map(Step::Commit),
            1 => (1u16..4, any::<bool>()).prop_map(|(id, begins)| Step::Void(id, begins)),
        ]
    }

    proptest! {
        /// `Checked` asserts at every write; this only has to try many.
        #[test]
        fn no_reader_can_see_a_torn_template(steps in prop::collection::vec(step(), 0..30)) {
            let mut hosts = hosts();
            let voids = hosts.voids();
            let mut model = BTreeMap::<HostId, (u32, Template)>::new();
            for step in steps {
                match step {
                    Step::Commit(batch) => {
                        let changes: Changes = batch
                            .into_iter()
                            .map(|(id, (member, way))| {
                                (HostId(id), Change { member, template: way.map(template) })
                            })
                            .collect();
                        hosts.commit(&changes).unwrap();
                        for (id, change) in changes {
                            let entry = model.entry(id).or_insert((0, Template::NONE));
                            if let Some(member) = change.member {
                                entry.0 = entry.0 & Host::VOID | u32::from(member);
                            }
                            entry.1 = change.template.unwrap_or(entry.1);
                        }
                    }
                    Step::Void(id, begins) => {
                        let entry = model.entry(HostId(id)).or_insert((0, Template::NONE));
                        entry.0 = entry.0 & Host::MEMBER | if begins { Host::VOID } else { 0 };
                        let flags = entry.0;
                        voids.put(HostId(id), |_| flags).unwrap();
                    }
                }
                for (&id, &(flags, way)) in &model {
                    let host = lock(&hosts.0).slots.entries.get(&id).copied().unwrap_or(Host::NONE);
                    prop_assert_eq!(host.flags, flags);
                    prop_assert!(in_force(&host) == way);
                }
            }
        }
    }
}
