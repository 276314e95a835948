//! The order in which a configuration is put in force: all of it, or nothing.
//!
//! What can fail comes first, and what cannot comes last. If a step fails, it and those
//! before it are taken back, the last one first. Pure but for what the steps do.

/// A part of what a reload changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// The group that may use the applications' socket.
    AppsGroup,
    /// The group that may ask for message sockets.
    MuxGroup,
    /// The group that may use the admin socket.
    AdminGroup,
    /// The admin socket for reading, and who may use it.
    Readers,
    /// The services, as the kernel side knows them.
    Services,
    /// What gossip and membership go by: other hosts are told.
    Pop,
    /// What is looked at when it is used. It cannot fail.
    Values,
}

/// Each step, in their order, and the keys of the configuration that it puts in force.
pub(super) const STEPS: [(Step, &[&str]); 7] = [
    (Step::AppsGroup, &["apps.group"]),
    (Step::MuxGroup, &["mux.group"]),
    (Step::AdminGroup, &["admin.group"]),
    (Step::Readers, &["admin.read_socket", "admin.readers"]),
    (Step::Services, &["services"]),
    (
        Step::Pop,
        &["pop.key_file", "pop.seeds", "pop.void_after", "services"],
    ),
    (
        Step::Values,
        &[
            "apps.state_max",
            "drain.on_drain",
            "drain.on_undrain",
            "drain.timeout",
            "migration.memory",
            "migration.moves",
            "mux.memory",
            "mux.sockets",
            "pop.close_linger",
            "pop.leave_hold",
            "services",
            "tunnel.mss",
            "udp.idle_timeout",
        ],
    ),
];

/// Which way a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// What the file says now is put in force.
    Forth,
    /// What was in force before is.
    Back,
}

/// Does steps.
pub(super) trait Put {
    /// Why a step was not done.
    type Error;

    /// Does a step. `Back` must be right, too, after a `Forth` that failed halfway.
    fn put(&mut self, step: Step, way: Way)
    -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Why nothing has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed<E> {
    /// The step that failed.
    pub step: Step,
    /// Why.
    pub error: E,
    /// Steps that could not be taken back, and why.
    pub left: Vec<(Step, E)>,
}

/// The steps that put these keys in force, and the file at `pop.key_file` if that holds
/// something else; in their order.
pub(super) fn steps(changed: &[&str], keys_differ: bool) -> Vec<Step> {
    let wanted = |keys: &[&str]| {
        let file = keys_differ && keys.contains(&"pop.key_file");
        file || keys.iter().any(|key| changed.contains(key))
    };
    let steps = STEPS.iter().filter(|(step, keys)| {
        // All that is told of the configuration is told from there.
        *step == Step::Values || wanted(keys)
    });
    steps.map(|(step, _)| *step).collect()
}

/// Does all steps, or none.
pub(super) async fn all_or_none<P: Put>(
    put: &mut P,
    steps: &[Step],
) -> Result<(), Failed<P::Error>> {
    for (done, &step) in steps.iter().enumerate() {
        let Err(error) = put.put(step, Way::Forth).await else {
            continue;
        };
        let mut left = Vec::new();
        for &step in steps[..=done].iter().rev() {
            if let Err(error) = put.put(step, Way::Back).await {
                left.push((step, error));
            }
        }
        return Err(Failed { step, error, left });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::config::{KEYS, Takes};

    #[test]
    fn every_key_that_a_reload_changes_has_its_step_and_no_other_key_has() {
        let live = KEYS.iter().filter(|key| key.takes == Takes::Reload);
        let live: BTreeSet<_> = live.map(|key| key.name).collect();
        let put: BTreeSet<_> = STEPS.iter().flat_map(|(_, keys)| *keys).copied().collect();
        assert_eq!(put, live);
        assert!(STEPS.is_sorted_by_key(|(step, _)| *step));
    }

    #[test]
    fn what_does_not_change_is_not_touched() {
        assert_eq!(steps(&["pop.leave_hold"], false), [Step::Values]);
        assert_eq!(steps(&[], true), [Step::Pop, Step::Values]);
        let services = [Step::Services, Step::Pop, Step::Values];
        assert_eq!(steps(&["services"], false), services);
        let groups = [Step::AppsGroup, Step::Readers, Step::Values];
        assert_eq!(steps(&["admin.readers", "apps.group"], false), groups);
    }

    /// What is in force, of each step, one part after the other: a step may fail between
    /// any two of them.
    #[derive(Clone, PartialEq, Eq, Debug)]
    struct Fake {
        in_force: BTreeMap<Step, Vec<u8>>,
        from: u8,
        to: u8,
        /// The step that fails, and after how many of its parts.
        fails: Option<(Step, usize)>,
        /// A step that cannot be taken back.
        sticks: Option<Step>,
        done: Vec<(Step, Way)>,
    }

    const PARTS: usize = 3;

    impl Put for Fake {
        type Error = &'static str;

        async fn put(&mut self, step: Step, way: Way) -> Result<(), Self::Error> {
            self.done.push((step, way));
            let parts = self.in_force.get_mut(&step).unwrap();
            match way {
                Way::Forth => {
                    for (n, part) in parts.iter_mut().enumerate() {
                        if self.fails == Some((step, n)) {
                            return Err("it fails");
                        }
                        *part = self.to;
                    }
                    if self.fails == Some((step, PARTS)) {
                        return Err("it fails at its end");
                    }
                }
                Way::Back if self.sticks == Some(step) => return Err("it sticks"),
                Way::Back => parts.fill(self.from),
            }
            Ok(())
        }
    }

    fn all() -> Vec<Step> {
        STEPS.iter().map(|(step, _)| *step).collect()
    }

    fn fake(from: u8, to: u8, fails: Option<(usize, usize)>) -> Fake {
        let in_force = STEPS.iter().map(|(step, _)| (*step, vec![from; PARTS]));
        Fake {
            in_force: in_force.collect(),
            from,
            to,
            fails: fails.map(|(step, part)| (STEPS[step].0, part)),
            sticks: None,
            done: Vec::new(),
        }
    }

    fn holds(fake: &Fake, value: u8) -> bool {
        fake.in_force.values().flatten().all(|part| *part == value)
    }

    #[tokio::test]
    async fn what_cannot_be_taken_back_is_named_and_the_rest_is() {
        let mut put = fake(1, 2, Some((4, 1)));
        put.sticks = Some(Step::MuxGroup);
        let failed = all_or_none(&mut put, &all()).await.unwrap_err();
        assert_eq!(failed.step, Step::Services);
        assert_eq!(failed.left, [(Step::MuxGroup, "it sticks")]);
        put.in_force.remove(&Step::MuxGroup);
        assert!(holds(&put, 1));
    }

    proptest! {
        /// Any number of reloads, each failing at any point of any step or not at all: after
        /// each one all is as the last one that succeeded wanted it.
        #[test]
        fn a_reload_changes_all_or_nothing(
            reloads in prop::collection::vec(
                (any::<u8>(), prop::option::of((0..STEPS.len(), 0..=PARTS))),
                1..8,
            )
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut in_force = 0;
            let mut state = fake(0, 0, None).in_force;
            for (to, fails) in reloads {
                let mut put = Fake { in_force: state, ..fake(in_force, to, fails) };
                let done = runtime.block_on(all_or_none(&mut put, &all()));
                prop_assert_eq!(done.is_err(), fails.is_some());
                if done.is_ok() {
                    in_force = to;
                }
                prop_assert!(holds(&put, in_force), "{:?}", put);
                // Taken back is what was begun, and nothing else, the last step first.
                let forth: Vec<_> = put.done.iter().filter(|(_, way)| *way == Way::Forth).collect();
                let back: Vec<_> = put.done.iter().filter(|(_, way)| *way == Way::Back).collect();
                let expected: Vec<_> = match fails {
                    Some(_) => forth.iter().rev().map(|(step, _)| *step).collect(),
                    None => Vec::new(),
                };
                prop_assert_eq!(back.iter().map(|(step, _)| *step).collect::<Vec<_>>(), expected);
                state = put.in_force;
            }
        }
    }
}
