//! `homing move`, `homing drain` and `homing undrain`.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use clap::Args;
use homing_common::host::HostId;

use super::{duration, endpoint};

pub(super) const MOVE: &str = "\
Move one session of this host to another host of the POP, while its client notices nothing, \
and say what came of it and for how long the session stood still.

The session is named as for `homing owner`. Both hosts need an application that has \
registered the service; what cannot be moved, and what is done about it, is in \
docs/operating.md, \"Draining a host\".

A move that is not past the point of no return at its deadline is given up, and the session \
goes on here. A command that is interrupted leaves the move to the agent.

Exits with 0 if the session has moved, 1 if it has not, with the reason, and 4 if it is not \
here; then it says which host has it, if that is known.";

pub(super) const DRAIN: &str = "\
Take this host out of service: run the operator's command drain.on_drain, take no new \
sessions, and move those that there are to other hosts. What would open a new session is \
sent, in the kernel, to another host that takes them; when no host does, sessions are opened \
where they arrive.

Each session goes to the host that its hash chooses among those that are up and do not drain. \
It ends when no session is left, when none that is left can be moved, or at its deadline. \
What is left is told by its reason, and stays open and served: nothing is cut off. \
Connections that their application has closed already are waited for.

The agent does it. A command that is interrupted leaves it going on; the same command again \
shows how it goes, and options that are given take the place of those in force. The host \
drains until `homing undrain`, also when its agent is restarted meanwhile; then `homing \
drain` begins to move again what is left.

A failure of drain.on_drain ends it before anything has changed, unless --force is given. \
The command is run each time that a drain begins, also on a host that drains already.

Exits with 0 if no session is left (or with --no-move, without --wait, once new sessions go \
elsewhere), and with 1 if some are left, if one was lost, or if it was stopped.";

pub(super) const UNDRAIN: &str = "\
Take new sessions again, after `homing drain`, and run the operator's command \
drain.on_undrain. Moves that are under way are called off, if they are not past the point of \
no return; sessions that have moved stay where they are.

Exits with 1 if the command failed; new sessions are taken all the same.";

#[derive(Debug, Args)]
pub(in crate::cli) struct MoveArgs {
    /// The client's address and port, such as 198.51.100.7:40312
    #[arg(value_parser = endpoint)]
    pub client: SocketAddr,

    /// The service's address and port, such as 203.0.113.10:443 or [2001:db8:113::10]:443
    #[arg(value_parser = endpoint)]
    pub service: SocketAddr,

    /// The host to move it to, by its id
    #[arg(value_parser = host)]
    pub host: HostId,

    /// Give up if it is not past the point of no return by then: up to 60s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = move_deadline)]
    pub deadline: Duration,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DrainArgs {
    /// Move sessions to these hosts only, by their ids
    #[arg(long, value_name = "HOST", num_args = 1.., value_delimiter = ',', value_parser = host)]
    pub to: Vec<HostId>,

    /// Leave what has not moved by then, such as 90s, 10m or 2h [default: 60s; with --wait,
    /// none]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub deadline: Option<Duration>,

    /// Begin so many moves in a second at most
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,

    /// Also wait for sessions to end that cannot be moved
    #[arg(long)]
    pub wait: bool,

    /// Move no session: only new ones go elsewhere
    #[arg(long, conflicts_with_all = ["to", "rate"])]
    pub no_move: bool,

    /// Go on although drain.on_drain fails
    #[arg(long)]
    pub force: bool,

    /// Change nothing: show how it goes, or went
    #[arg(long, conflicts_with_all = ["to", "deadline", "rate", "wait", "no_move", "force"])]
    pub status: bool,
}

fn host(text: &str) -> Result<HostId, String> {
    let number: Option<u16> = text.parse().ok();
    number
        .and_then(|number| HostId::try_from(number).ok())
        .ok_or_else(|| "not a host's id, such as 3; `homing hosts` lists them".to_owned())
}

fn move_deadline(text: &str) -> Result<Duration, String> {
    let deadline = duration(text)?;
    match deadline.is_zero() || deadline > Duration::from_secs(60) {
        true => Err("not from 1ms to 60s".to_owned()),
        false => Ok(deadline),
    }
}
