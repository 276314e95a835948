//! What an operator should know of and cannot see in any state: it happened a
//! moment ago, and may go on.

use std::{collections::BTreeMap, net::SocketAddr};

use homing_common::{host::HostId, session::SessionId};

use crate::pop::SECOND;

/// How long after it last happened something is worth telling.
const LASTS: u64 = 60 * SECOND;

/// Something that is wrong in the POP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alert {
    /// Datagrams arrive that are sealed with another POP's key, or forged.
    Stranger {
        /// Where the last one came from.
        from: SocketAddr,
    },
    /// Two machines use one host id.
    TwoMachines {
        /// The id.
        host: HostId,
        /// Where one of them is.
        one: SocketAddr,
        /// Where the other is: this host, if it is this host's id.
        other: SocketAddr,
    },
    /// The POP hears this host's id elsewhere, and refuses this host.
    Refused {
        /// Who refuses.
        by: HostId,
    },
    /// Another host does not hear this host's kernel.
    Unheard {
        /// Who says so.
        by: HostId,
    },
    /// This host reaches under half of the POP, and voids nothing.
    Minority {
        /// How many of those asked were heard, with this host.
        reached: u32,
        /// How many that was out of.
        of: u32,
    },
    /// Two hosts claim one session, and neither gives it up.
    DoubleClaim {
        /// The session.
        session: SessionId,
    },
}

/// Kinds of alerts: of each the last one is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Stranger,
    TwoMachines,
    Refused,
    Unheard,
}

/// The alerts of events.
#[derive(Default)]
pub(super) struct Alerts(BTreeMap<Kind, (u64, Alert)>);

impl Alerts {
    /// Something happened. What is found by looking is not kept.
    pub fn raise(&mut self, now: u64, alert: Alert) {
        let kind = match alert {
            Alert::Stranger { .. } => Kind::Stranger,
            Alert::TwoMachines { .. } => Kind::TwoMachines,
            Alert::Refused { .. } => Kind::Refused,
            Alert::Unheard { .. } => Kind::Unheard,
            Alert::Minority { .. } | Alert::DoubleClaim { .. } => return,
        };
        self.0.insert(kind, (now, alert));
    }

    /// What happened of late.
    pub fn recent(&self, now: u64) -> impl Iterator<Item = Alert> {
        let recent = self.0.values().filter(move |(at, _)| now < at + LASTS);
        recent.map(|(_, alert)| *alert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_lasts_a_minute_after_it_last_happened() {
        let mut alerts = Alerts::default();
        let alert = Alert::Unheard { by: HostId(2) };
        alerts.raise(0, alert);
        alerts.raise(30 * SECOND, alert);
        assert_eq!(alerts.recent(89 * SECOND).collect::<Vec<_>>(), [alert]);
        assert_eq!(alerts.recent(90 * SECOND).count(), 0);
    }
}
