//! Gossip's state, handed on to the kernel side and to the parts of the agent.

use tokio::sync::watch;

use crate::{datapath::control::ControlMap, gossip::Vitals};

/// Writes `CONTROL`, and tells whoever watches.
pub(super) struct KernelVitals {
    control: ControlMap,
    synced: watch::Sender<bool>,
}

impl KernelVitals {
    /// The kernel side is told at once that this host is not synced any more: what
    /// an agent before knew is old.
    pub fn new(control: ControlMap) -> (Self, watch::Receiver<bool>) {
        control.set_synced(false);
        control.set_full(false);
        let (synced, watched) = watch::channel(false);
        (Self { control, synced }, watched)
    }
}

impl Vitals for KernelVitals {
    fn beat(&mut self) {
        self.control.beat();
    }

    fn synced(&mut self, synced: bool) {
        self.control.set_synced(synced);
        self.synced.send_replace(synced);
        if synced {
            tracing::info!("the sessions of the whole POP are known");
        } else {
            tracing::warn!(
                fix = "`homing hosts`: whose SYNC is not `in sync`; look at the fabric to those, and at the load of this machine; it ends by itself once all is known",
                "the sessions of the whole POP are not known here, so packets of unknown ones are sent to other hosts"
            );
        }
    }

    fn full(&mut self, full: bool) {
        self.control.set_full(full);
        if full {
            tracing::warn!(
                fix = "raise limits.owners and restart the agent; or, if `homing status` says that OWNERS cannot grow, give it more memory",
                "sessions of other hosts find no room here: their packets are sent to other hosts, which ask where they have none either"
            );
        } else {
            tracing::info!("all sessions of other hosts have found room");
        }
    }
}
