//! Draining, and moves of single sessions.

use serde::{Deserialize, Serialize};

use super::{Latency, SessionName};

/// `GET /drain`, `POST /drain` and `POST /undrain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// Whether this host takes no new sessions.
    pub draining: bool,
    /// This host's open sessions.
    pub sessions: u64,
    /// Other hosts that are up and take new sessions. Without any, new sessions
    /// are opened here all the same.
    pub takers: u32,
    /// The command of the operator's that was run last since the agent's start.
    pub command: Option<DrainCommand>,
    /// The moving of sessions to other hosts that was begun last since the agent's start.
    pub run: Option<DrainRun>,
}

impl Drain {
    /// Whether something goes on that will come to an end.
    pub fn is_busy(&self) -> bool {
        let command = self.command.as_ref();
        command.is_some_and(|command| command.state == CommandState::Running)
            || self.run.as_ref().is_some_and(|run| run.end.is_none())
    }
}

/// A command of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainCommand {
    /// `on_drain` or `on_undrain`.
    pub name: String,
    /// What came of it.
    pub state: CommandState,
    /// Why it failed; null if it has not.
    pub error: Option<String>,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// It runs.
    Running,
    /// It has ended well.
    Done,
    /// It could not be started, failed, or took too long.
    Failed,
    /// It was killed because the opposite was asked for.
    Cancelled,
}

/// Sessions being moved to other hosts. Each that was `seen` is in exactly one of `moved`,
/// `ended`, `gone`, `lost`, `queued`, `moving` and `left`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrainRun {
    /// How it ended; null while it goes on.
    pub end: Option<DrainEnd>,
    /// Only to these hosts; to any if empty.
    pub to: Vec<u16>,
    /// Moves begun in a second at most; null without such a limit.
    pub rate: Option<u32>,
    /// Whether it goes on while sessions are left that cannot be moved.
    pub wait: bool,
    /// How long it has taken, in seconds.
    pub elapsed_s: f64,
    /// Until its deadline, in seconds; null without one.
    pub remaining_s: Option<f64>,
    /// Sessions moved in a second, of late.
    pub per_s: f64,
    /// How long the rest takes at that, in seconds; null while that cannot be told.
    pub rest_s: Option<f64>,
    /// Sessions that were seen here.
    pub seen: u64,
    /// Sessions that go on elsewhere.
    pub moved: u64,
    /// Sessions that came to their end here.
    pub ended: u64,
    /// Sessions that were gone, or whose application was, in the middle of their move.
    pub gone: Vec<Why>,
    /// Sessions that were released and that no host is known to have.
    pub lost: Vec<Why>,
    /// Sessions whose move is to be begun.
    pub queued: u64,
    /// Sessions whose move is under way.
    pub moving: u64,
    /// Sessions that do not move as it stands; once it has ended, those that stay.
    pub left: Vec<Why>,
    /// Moves that failed; most of them are tried again.
    pub failed: Vec<Why>,
    /// Sessions on their way here that were agreed to before.
    pub arriving: u64,
    /// Connections that are closed and that the kernel still answers for (TIME_WAIT).
    pub time_wait: u64,
    /// How long the sessions that moved were frozen.
    pub frozen_us: Latency,
}

impl DrainRun {
    /// Sessions that stay as it stands.
    pub fn left(&self) -> u64 {
        self.left.iter().map(|why| why.sessions).sum()
    }
}

/// How many sessions, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// A name for scripts, such as `no_application`.
    pub reason: String,
    /// What it means.
    pub meaning: String,
    /// How many.
    pub sessions: u64,
}

/// How the moving of all sessions ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainEnd {
    /// No session is left here.
    Drained,
    /// Some are left.
    Left,
    /// It was stopped: by `homing undrain`, or `homing drain --no-move`.
    Stopped,
}

impl DrainEnd {
    /// The name in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Left => "left",
            Self::Stopped => "stopped",
        }
    }
}

/// `POST /move`: status 200, whatever came of the move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Which session.
    #[serde(flatten)]
    pub name: SessionName,
    /// Where it was to go.
    pub target: u16,
    /// What came of it.
    pub outcome: MoveOutcome,
    /// At which step it was given up; null if it was not.
    pub step: Option<String>,
    /// Why, as a name for scripts; null if it moved.
    pub reason: Option<String>,
    /// What that means.
    pub meaning: Option<String>,
    /// More of it, as this host's kernel or application has said; null if there is no more.
    pub detail: Option<String>,
    /// How long packets of the session were held back, in microseconds.
    pub frozen_us: u64,
    /// How long all of it took, in microseconds.
    pub took_us: u64,
}

/// What came of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveOutcome {
    /// The session goes on at the target.
    Moved,
    /// It was not begun; the session was not touched.
    Refused,
    /// It was given up, and the session goes on here.
    Aborted,
    /// It was given up, and the session or its application has gone meanwhile.
    Gone,
    /// It was released, and no host is known to have it.
    Lost,
}
