//! What gossip shows of itself: its counters, its notes, and how far it follows
//! whom.

use homing_common::{host::HostId, session::SessionId};

use super::{claims::Claim, tally::Tally};
use crate::pop::{Stream, counters::counters};

counters! {
    /// What happened to gossip.
    Counters {
        /// Sessions announced as opened here.
        opened_here,
        /// Sessions announced as closed here.
        closed_here,
        /// Sessions closed here that were never announced as open.
        unknown_closed_here,
        /// Batches of new announcements made.
        batches_sent,
        /// Announcements of other hosts applied.
        records_applied,
        /// Batches heard that held nothing new.
        duplicates,
        /// Batches heard before an earlier one, and kept.
        out_of_order,
        /// Batches heard too far ahead, or with too many waiting: dropped, to be repaired.
        pending_dropped,
        /// Messages dropped because their origin is no member in that life.
        not_member,
        /// Messages dropped because they make no sense.
        messages_malformed,
        /// Announcements of other domains passed on in this one, as a relay.
        relay_passed_on,
        /// Announcements passed on as the second relay, because the first had not done so.
        relay_stood_in,
        /// Announcements not passed on because the first relay had done so.
        relay_covered,
        /// Announcements not passed on because too many waited: left to repair.
        relay_dropped,
        /// What relays told of hosts that are no members in that life: dropped.
        relay_unknown,
        /// Repairs not answered because too much waited to be sent.
        answers_refused,
        /// Repairs of missing announcements asked for.
        repairs_asked,
        /// Batches sent again because another host asked.
        repairs_sent,
        /// Heartbeats sent.
        heartbeats_sent,
        /// Heartbeats whose digest differed from what was applied.
        digest_mismatches,
        /// Full syncs begun.
        syncs_begun,
        /// Full syncs completed.
        syncs_done,
        /// Full syncs that failed, to be begun again later.
        syncs_failed,
        /// Snapshots that other hosts asked for.
        snapshots_asked,
        /// Snapshots asked for while as many as may be were being sent, and made to wait.
        snapshots_queued,
        /// Snapshots sent to other hosts as a whole.
        snapshots_sent,
        /// Snapshots of which a part did not arrive in time, or for certain: left to be asked for again.
        snapshots_lost,
        /// Parts of snapshots received that belong to nothing asked for now.
        parts_unasked,
        /// Claims removed because a full sync did not confirm them.
        swept,
        /// Hosts whose claims were voided.
        voided_hosts,
        /// Claims voided with them.
        voided_claims,
        /// Claims of other hosts to sessions that are live here.
        conflicts,
        /// Claims not kept because the table of claims was full.
        claims_full,
        /// Batches to hosts of this domain by unicast, because they do not hear its multicast.
        multicast_unheard,
        /// Batches whose time of opening lies in the future, or long ago: clocks differ.
        clock_differs,
        /// Times that messages waited because a host may send only so many a second.
        send_waits,
        /// Notes not written because there were too many.
        notes_dropped,
    }
}

/// Something an operator may want to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Another host claims a session that is live here.
    Conflict {
        /// The session.
        id: SessionId,
        /// The other host.
        host: HostId,
    },
    /// A host's claims were voided.
    Voided {
        /// The host.
        host: HostId,
        /// How many claims.
        claims: u64,
    },
    /// A host's live set was pulled in full.
    Synced {
        /// The host.
        host: HostId,
        /// Its sessions.
        sessions: u64,
        /// How long it took, in microseconds.
        took_us: u64,
    },
    /// A host's live set could not be pulled; it will be tried again.
    SyncFailed {
        /// The host.
        host: HostId,
    },
}

/// How far another host's log is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A full sync is needed and has not begun.
    Waiting,
    /// A snapshot is being pulled or put into the table.
    Syncing,
    /// Everything known of was applied.
    Following,
    /// Announcements are missing and are being asked for.
    Gap {
        /// How many, as far as is known.
        missing: u64,
    },
}

/// Another host as gossip sees it.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The host.
    pub host: HostId,
    /// The life whose log is followed.
    pub stream: Stream,
    /// How far.
    pub progress: Progress,
    /// The last announcement applied.
    pub applied: u64,
    /// Its claims.
    pub tally: Tally,
    /// Its claims do not all fit into the table.
    pub incomplete: bool,
    /// It hears this host's multicast.
    pub hears_us: bool,
    /// When its claims will be voided, if it does not come back.
    pub void_at: Option<u64>,
    /// They were voided, and it has not come back since.
    pub voided: bool,
    /// Routes to its life before are still being removed.
    pub sweeping: bool,
}

/// Who owns a session, as this host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This host, in this generation of the session.
    Here(u16),
    /// Another host.
    Other(Claim),
}
