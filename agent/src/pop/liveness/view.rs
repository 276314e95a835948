//! What goes into liveness and comes out of it.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use bytes::Bytes;
use homing_common::{echo::Echo, host::HostId, session::SessionKey};

use crate::pop::{Domain, counters::counters};

/// How one host listens for the kernels of others.
#[derive(Clone)]
pub struct Settings {
    /// This host.
    pub host: HostId,
    /// Its fabric address, which echoes are bound to.
    pub address: SocketAddr,
    /// Its domain.
    pub domain: Domain,
    /// The keys of echoes: questions are signed with the first, answers may be
    /// signed with either.
    pub keys: [SessionKey; 2],
    /// Within this time of a kernel's end all hosts void its claims. All
    /// intervals follow from it.
    pub dead_after: Duration,
}

/// The intervals, in microseconds: what becomes of `dead_after`.
///
/// The worst case adds up to three quarters of it at most: a question's interval
/// and three more of silence, a round of confirmation and a half, and the spread
/// over a thousand hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Between two questions to a kernel that is watched.
    pub interval: u64,
    /// How long kernels are listened for before a voice is given.
    pub window: u64,
    /// Between two tries of one question or message in that time.
    pub retry: u64,
    /// How long one round of confirmation waits for voices.
    pub round: u64,
    /// Between two rounds of spreading a judgement.
    pub spread: u64,
    /// Between two exchanges of judgements with a host picked at random.
    pub exchange: u64,
    /// How long an answered poll counts: longer than it takes to the end of the next.
    pub stale: u64,
    /// How long a judgement stands confirmed before it is acted on: longer than
    /// `stale`, also by another host's clock.
    pub settle: u64,
    /// After so long without a flap the next one counts as the first.
    pub forget_flaps: u64,
    /// The first hold of a host that came back twice, and the longest.
    pub hold: u64,
    pub hold_max: u64,
}

impl Timing {
    pub fn of(dead_after: Duration) -> Self {
        let whole = dead_after.as_micros() as u64;
        Self {
            interval: whole / 12,
            window: whole / 10,
            retry: whole / 30,
            round: whole / 10 + whole / 20,
            spread: whole / 30,
            exchange: whole * 2 / 3,
            stale: whole / 5,
            settle: whole / 5 + whole / 50,
            forget_flaps: whole * 200,
            hold: whole / 2,
            hold_max: whole * 10,
        }
    }

    /// How long a host that has flapped so often must wait for its claims.
    pub fn hold_after(&self, flaps: u32) -> u64 {
        match flaps.checked_sub(2) {
            None => 0,
            Some(doublings) => (self.hold << doublings.min(16)).min(self.hold_max),
        }
    }
}

/// What a host knows of another host's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// It was never heard in its present life: it cannot be asked from here.
    Unheard,
    /// It answers.
    Alive {
        /// When it was last heard.
        heard_at: u64,
    },
    /// It has stopped answering this host; it is not, or not yet, confirmed dead.
    Silent {
        /// When it was last heard, if it ever was.
        heard_at: Option<u64>,
    },
    /// It is dead by the POP's judgement.
    Dead {
        /// Since when.
        since: u64,
        /// When this host last heard it, if it ever did.
        heard_at: Option<u64>,
    },
}

impl Kernel {
    /// When it was last heard.
    pub fn heard_at(self) -> Option<u64> {
        match self {
            Self::Unheard => None,
            Self::Alive { heard_at } => Some(heard_at),
            Self::Silent { heard_at } | Self::Dead { heard_at, .. } => heard_at,
        }
    }
}

/// What whoever moves sessions needs to know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Minded {
    /// How this host stands itself.
    pub reach: bool,
    /// When the first of the sessions was frozen that it is to stand for, if any is:
    /// below zero if that was before the time began.
    pub frozen_at: Option<i64>,
    /// Whether these hosts are void.
    pub kernels: BTreeSet<HostId>,
}

/// How a host stands in the POP itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OwnStanding {
    /// It reaches at least half of the POP. None also where nobody minds.
    pub reached: Option<Reached>,
    /// How often the POP has held its kernel for dead in its present life, as far as it
    /// has heard.
    pub judged: u16,
}

/// At least half of the POP's agents, this host's included, have answered it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reached {
    /// Since then, without a break.
    pub since: u64,
    /// Until then that counts, unless it is renewed.
    pub until: u64,
}

/// A question to a kernel: sent as it is, without a seal.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The host's fabric address.
    pub to: SocketAddr,
    /// The echo.
    pub bytes: [u8; Echo::LEN],
}

/// A message for an agent, to be sealed.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The host.
    pub to: HostId,
    /// Its body.
    pub body: Bytes,
}

/// What liveness has found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A kernel was heard for the first time in its life: it can be asked.
    Answers {
        /// The host.
        host: HostId,
    },
    /// A kernel is dead: its claims are void.
    Dead {
        /// The host.
        host: HostId,
        /// Who said so: this host, where it judged itself.
        by: HostId,
    },
    /// A kernel that is minded is dead, and more than half of the POP knows.
    Void {
        /// The host.
        host: HostId,
    },
    /// A kernel that was judged dead is alive, in the same life.
    Back {
        /// The host.
        host: HostId,
        /// Who heard it.
        by: HostId,
        /// When its claims may be asked for again.
        from: u64,
        /// How often it has come back of late.
        flaps: u32,
    },
    /// A kernel that stopped answering was heard before it was confirmed dead.
    Recovered {
        /// The host.
        host: HostId,
    },
    /// A kernel has stopped answering this host.
    Silent {
        /// The host.
        host: HostId,
    },
    /// Another host heard what this one does not: nothing is voided.
    Refuted {
        /// The host that is silent here.
        host: HostId,
        /// Who hears it.
        by: HostId,
    },
    /// Another host's judgement is not carried out: this one hears the kernel.
    Vetoed {
        /// The host that was judged.
        host: HostId,
        /// Who judged.
        by: HostId,
    },
    /// Others do not hear this host's own kernel.
    Unheard {
        /// Who says so.
        by: HostId,
    },
    /// This host reaches under half of the POP, and voids nothing.
    Minority {
        /// How many of those asked it heard, with itself.
        reached: u32,
        /// How many that was out of, with itself.
        of: u32,
    },
}

counters! {
    /// What happened to liveness.
    Counters {
        /// Echoes asked of other hosts' kernels.
        echoes_asked,
        /// Answers of kernels heard.
        echoes_heard,
        /// Echoes refused: a wrong tag, nonce, address, host or incarnation.
        echoes_refused,
        /// Questions to this host that its kernel side let through to the agent.
        echoes_unanswered_here,
        /// Kernels that stopped answering this host.
        kernels_silent,
        /// Kernels that this host asked others to confirm the silence of.
        kernels_suspected,
        /// Suspicions that ended because the kernel, or its agent, was heard after all.
        suspicions_refuted,
        /// Suspicions that ended without enough voices.
        suspicions_unconfirmed,
        /// Suspicions that ended because this host reached under half of the POP.
        suspicions_in_minority,
        /// Voices given to others that this host does not hear a kernel either.
        voices_given,
        /// Kernels that this host judged dead, with others confirming it.
        kernels_judged_dead,
        /// Kernels dead by another host's judgement.
        kernels_told_dead,
        /// Judgements not carried out because this host hears the kernel.
        judgements_vetoed,
        /// Judgements on this very host, which it took back.
        judgements_on_this_host,
        /// Kernels judged dead that were heard again in the same life.
        kernels_back,
        /// Kernels that had to wait for their claims because they come and go.
        flaps_held,
        /// Times this host counted how many of the POP it reaches.
        censuses,
        /// Polls of what the POP holds of this host's own kernel, while sessions move.
        polls,
        /// Such polls that under half of the POP answered.
        polls_failed,
        /// Answers that did not count, because that agent had begun after a session was frozen here.
        polls_answered_young,
        /// Kernels that more than half of the POP has confirmed to be dead, while sessions move.
        kernels_void,
        /// Liveness messages sent.
        liveness_sent,
        /// Liveness messages heard and understood.
        liveness_heard,
        /// Liveness messages refused: malformed, or of no member.
        liveness_refused,
    }
}
