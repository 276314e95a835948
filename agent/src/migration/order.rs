//! What the machines ask of the application and the datapath, what they are
//! answered, and what comes out of a move.

use homing_client::Blob;
use homing_common::{host::HostId, session::Tuple};

use super::{MoveId, Phase};

/// Something to be done on this host for a move.
///
/// Orders of one move are carried out in the order they come, and each that
/// [`Order::is_answered`] is answered once, with the ticket it came with. The
/// application may be slow or gone: those orders have a bound. The datapath is the
/// kernel: its orders have none, and are always answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Source, application: stop every reader and writer of the connection, give its
    /// descriptor and state. Answered [`Answer::Exported`].
    Export,
    /// Source, datapath: can this connection be carried? Nothing is changed.
    Check,
    /// Datapath: write an entry into the journal, the map `MOVING`. From then on
    /// packets of the session are parked (target) or diverted (source), egress is
    /// dropped, and whatever `OWNERS` says of the session does not count.
    Journal {
        /// How far the move is.
        phase: Phase,
        /// The session's generation before the move.
        generation: u32,
        /// The other host.
        peer: HostId,
    },
    /// Source, datapath: put the connection into repair mode and read its state.
    /// Answered [`Answer::Read`].
    Read,
    /// Source, datapath: are the sequence numbers what they were when the state was
    /// read? Answered [`Answer::Done`] or [`Answer::Changed`].
    Recheck,
    /// Source, datapath: destroy the socket for every holder of it, without a packet,
    /// and remove it from `SESSIONS` without a record in `CLOSED`. Of a socket that is
    /// gone it is done.
    Destroy,
    /// Source, datapath: leave repair mode, then delete the journal's entry.
    Resume,
    /// Source, application: the session is yours again; here is what you exported,
    /// unless it was given to an agent that is no more.
    GiveBack {
        /// The application's state.
        blob: Blob,
    },
    /// Source, application: the session has moved; forget it. Not answered.
    Committed,
    /// Source, datapath: close this host's own claim to the session, with its own
    /// generation, then delete the journal's entry. Not answered.
    Settle,
    /// Datapath and application: an agent that has died left this in the journal. Have
    /// the descriptor (and, at the target, the state) again from the application,
    /// which kept it.
    Recover,
    /// Target, application: make a fresh socket and hand over its descriptor.
    Open,
    /// Target, datapath: restore the connection on that socket, staying in repair mode.
    Restore {
        /// What the source's datapath read.
        tcp: Vec<u8>,
    },
    /// Target, application: take this state in, and keep socket and state until
    /// told [`Order::HandOver`] or [`Order::Drop`].
    Import {
        /// What the source's application exported.
        blob: Blob,
    },
    /// Target, datapath: leave repair mode. Of a connection that has left it, done.
    Activate,
    /// Target, application: the connection is yours. It answers that it is there, and
    /// reads and writes from [`Order::Serve`] on.
    HandOver {
        /// What it was given with [`Order::Import`], if it has started anew since;
        /// empty if an agent that is no more had it.
        blob: Blob,
    },
    /// Target, datapath: write `SESSIONS`, announce `Opened` (which takes the session's
    /// entry out of `OWNERS`), delete the journal's entry, and feed what was parked to the
    /// stack, in order.
    Adopt {
        /// The session's generation from now on.
        generation: u32,
    },
    /// Target, application: read and write. Not answered.
    Serve,
    /// Target, datapath and application: destroy the copy, without a packet, then
    /// drop what was parked (its client sends it again) and delete the journal's entry. Of a
    /// copy that is gone it is done.
    Drop,
}

impl Order {
    /// Whether the order must be answered.
    pub fn is_answered(&self) -> bool {
        !matches!(self, Self::Committed | Self::Settle | Self::Serve)
    }
}

/// The answer to an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was carried out.
    Done,
    /// The connection was quiesced, and this is the application's state.
    Exported {
        /// That.
        blob: Blob,
    },
    /// The connection's state.
    Read {
        /// That.
        tcp: Vec<u8>,
    },
    /// Sequence numbers have changed since the state was read.
    Changed,
    /// It could not be carried out.
    Cannot(Reason),
}

/// Why something was refused or could not be done.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Reason {
    /// The target does not have the service.
    NoService = 1,
    /// There is no room for another move.
    Full = 2,
    /// The target drains itself, or leaves.
    Draining = 3,
    /// No application has registered for the service.
    NoApplication = 4,
    /// The application speaks another protocol, or another version of it.
    OtherVersion = 5,
    /// The target has a session of this tuple.
    Live = 6,
    /// The session is in a move already.
    Moving = 7,
    /// The connection's and the application's state are too large.
    TooLarge = 8,
    /// The application said no.
    Application = 9,
    /// The application is gone.
    ApplicationGone = 10,
    /// The session is gone.
    Gone = 11,
    /// The connection has something that cannot be carried.
    NotCarried = 12,
    /// The kernel refused.
    Kernel = 13,
    /// Sequence numbers changed in spite of the freeze.
    Changed = 14,
    /// There was no answer within the step's bound.
    Timeout = 15,
    /// The command's deadline has passed.
    Deadline = 16,
    /// The agent was killed in the middle.
    Restarted = 17,
    /// The target knows nothing of the move, or no longer has its copy.
    Over = 18,
    /// The target is no member that is up, or is the source itself.
    NoMember = 19,
    /// The other host's kernel is dead.
    Voided = 20,
    /// The move was called off.
    CalledOff = 21,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 21] = [
        Self::NoService,
        Self::Full,
        Self::Draining,
        Self::NoApplication,
        Self::OtherVersion,
        Self::Live,
        Self::Moving,
        Self::TooLarge,
        Self::Application,
        Self::ApplicationGone,
        Self::Gone,
        Self::NotCarried,
        Self::Kernel,
        Self::Changed,
        Self::Timeout,
        Self::Deadline,
        Self::Restarted,
        Self::Over,
        Self::NoMember,
        Self::Voided,
        Self::CalledOff,
    ];

    /// What a person reads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoService => "the target does not have the service",
            Self::Full => "there is no room for another move",
            Self::Draining => "the target drains",
            Self::NoApplication => "no application has registered for the service",
            Self::OtherVersion => "the target's application speaks another version",
            Self::Live => "the target has a session of this tuple",
            Self::Moving => "the session is in a move already",
            Self::TooLarge => "the state is too large",
            Self::Application => "the application refused",
            Self::ApplicationGone => "the application is gone",
            Self::Gone => "the session is gone",
            Self::NotCarried => "the connection has something that cannot be carried",
            Self::Kernel => "the kernel refused",
            Self::Changed => "sequence numbers changed in spite of the freeze",
            Self::Timeout => "there was no answer in time",
            Self::Deadline => "the deadline has passed",
            Self::Restarted => "the agent was killed in the middle",
            Self::Over => "the target no longer has its copy",
            Self::NoMember => "the target is no other member that is up",
            Self::Voided => "the other host's kernel is dead",
            Self::CalledOff => "the move was called off",
        }
    }
}

/// How far a move came at its source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Step {
    /// The target is asked.
    Asking,
    /// The application quiesces.
    Exporting,
    /// The datapath checks what there is to carry.
    Checking,
    /// *Frozen* is written into the journal.
    Freezing,
    /// The connection's state is read.
    Reading,
    /// The state is on its way, and the target restores it.
    Sending,
    /// Sequence numbers are read again.
    Rechecking,
    /// *Released* is written into the journal.
    Releasing,
    /// The socket is destroyed.
    Destroying,
    /// The target is told until it confirms.
    Released,
    /// Confirmed: stragglers are diverted until the target's claim has spread.
    Settling,
    /// Given up before the release: the target is told, until it is certain that it
    /// will never serve its copy.
    Withdrawing,
    /// The application that outlived its agent gives its descriptor again.
    Recovering,
    /// The datapath resumes.
    Resuming,
    /// The application gets its session back.
    GivingBack,
    /// Given up for good: the socket is destroyed.
    Discarding,
}

/// What came of a move, at its source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The session goes on at the target.
    Moved,
    /// It was not begun; the session was not touched.
    Refused(Reason),
    /// It was given up at this step, and the session goes on at the source.
    Aborted(Step, Reason),
    /// It was given up, and the session's application or the session itself has gone
    /// meanwhile.
    Gone(Step, Reason),
    /// It was released, and the target never said that it has taken over, or said that
    /// it has not; or neither host could be sure that the other would not serve.
    Lost(Reason),
}

/// A move is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The session.
    pub tuple: Tuple,
    /// Where it was to go.
    pub target: HostId,
    /// The move's number; none if it was refused before it got one.
    pub number: Option<u64>,
    /// What came of it.
    pub outcome: Outcome,
    /// How long packets of the session were diverted or parked before it went on, or
    /// was given up, as the source sees it.
    pub frozen_us: u64,
}

/// What comes out of the machines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send these bytes to a host.
    Send {
        /// Whom to.
        to: HostId,
        /// A message, or one that is to be passed on. It may hold an application's state.
        bytes: Blob,
    },
    /// Carry this out, and answer it.
    Order {
        /// The move.
        id: MoveId,
        /// The session.
        tuple: Tuple,
        /// What the answer must name.
        ticket: u64,
        /// What to do.
        order: Order,
    },
    /// A move from this host is over.
    Ended(Ended),
}
