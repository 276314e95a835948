//! What can stand on the command line, and its help.

mod moving;
mod packets;
mod watching;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::logs;
use crate::{admin::page, config};
pub(super) use moving::{DrainArgs, MoveArgs};
pub(super) use packets::{CaptureArgs, ExplainArgs};
pub(super) use watching::{StatsArgs, TopArgs};

const LONG_ABOUT: &str = "\
Homing keeps every packet going to the host that owns its session. It runs on the \
hosts of a POP: many hosts that answer for the same service addresses behind \
stateless ECMP routing. When the routing changes and packets of an open connection \
reach another host, that host forwards them, in the kernel, to the one that has the \
connection.

`homing agent` is the daemon; there is one on each host. The other commands ask the \
agent of this host; `homing doctor` examines the host itself.";

const AFTER_HELP: &str = "\
Exit codes:
  0  it did what it was told
  1  it failed; of `homing doctor`, that it warns of something
  2  the command line makes no sense
  3  no agent answers
  4  not known: nobody owns the session, it is not here, or there is no such service
  5  the configuration is wrong

Files:
  /etc/homing/homing.toml          the configuration
  /run/homing/<instance>.sock      the agent's socket: HTTP, so that
                                   `curl --unix-socket /run/homing/homing.sock
                                   http://homing/metrics` works too
  /run/homing/<instance>.app.sock  where applications register whose
                                   connections can move
  /sys/fs/bpf/homing/<instance>/   programs, links and maps, pinned

Examples:
  homing agent --check-config
  homing doctor
  homing status
  homing hosts --json
  homing owner 198.51.100.7:40312 203.0.113.10:443
  homing explain 198.51.100.7:40312 203.0.113.10:443
  homing capture -w lost.pcapng --outcome no_way --count 100
  homing stats --all
  homing stats --watch 5s
  homing top
  homing log info,homing_agent::gossip=debug
  homing move 198.51.100.7:40312 203.0.113.10:443 3
  homing drain --deadline 2m && systemctl poweroff";

/// Keeps every packet going to the host that owns its session.
#[derive(Debug, Parser)]
#[command(
    name = "homing",
    version,
    long_about = LONG_ABOUT,
    after_long_help = AFTER_HELP,
    max_term_width = 100,
)]
pub(super) struct Cli {
    /// The agent's socket [default: as configured, else /run/homing/homing.sock]
    #[arg(long, global = true, env = "HOMING_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// The configuration
    #[arg(
        long,
        global = true,
        env = "HOMING_CONFIG",
        value_name = "PATH",
        default_value = config::DEFAULT_PATH
    )]
    pub config: PathBuf,

    /// Print JSON, in the form of the agent's HTTP answers
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the agent
    #[command(long_about = AGENT)]
    Agent(AgentArgs),
    /// How this host, its agent and its POP are doing
    #[command(long_about = STATUS)]
    Status,
    /// What is wrong with this host, why it matters, and how to put it right
    #[command(long_about = DOCTOR)]
    Doctor,
    /// All hosts of the POP: state, way there, claims, gossip
    #[command(long_about = HOSTS)]
    Hosts,
    /// This host's own open sessions
    #[command(long_about = SESSIONS)]
    Sessions(SessionsArgs),
    /// Who owns a session, and how this host knows
    #[command(long_about = OWNER)]
    Owner(OwnerArgs),
    /// What becomes of a packet on this host, and why
    #[command(long_about = packets::EXPLAIN)]
    Explain(ExplainArgs),
    /// Write packets to a file, with what became of each
    #[command(long_about = packets::CAPTURE)]
    Capture(CaptureArgs),
    /// The applications of this host whose connections can move
    #[command(long_about = APPS)]
    Apps,
    /// The connections by which this host's agent and others tell each other of moves
    #[command(long_about = CARRIERS)]
    Carriers,
    /// Message sockets of this host's applications
    Mux(MuxArgs),
    /// How packets ended, and what hooks, gossip and others counted
    #[command(long_about = watching::STATS)]
    Stats(StatsArgs),
    /// Hosts, sessions, packets and gossip on a full screen, live
    #[command(long_about = watching::TOP)]
    Top(TopArgs),
    /// Move one session of this host to another host
    #[command(long_about = moving::MOVE)]
    Move(MoveArgs),
    /// Take no new sessions, and move those that there are to other hosts
    #[command(long_about = moving::DRAIN)]
    Drain(DrainArgs),
    /// Take new sessions again
    #[command(long_about = moving::UNDRAIN)]
    Undrain,
    /// Read the configuration and the key file again, and put all of it in force, or nothing
    #[command(long_about = RELOAD)]
    Reload {
        /// Only check the files, and say what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// What the agent logs, or has it log something else
    #[command(long_about = LOG)]
    Log {
        /// What to log: error, warn, info, debug or trace, or directives such as
        /// info,homing_agent::gossip=debug
        #[arg(value_parser = log_directives)]
        level: Option<String>,
    },
    /// Make the POP's key file, or change its key without downtime
    #[command(long_about = KEY)]
    Key(KeyArgs),
    /// Stop the agent for good and remove everything from the kernel
    #[command(long_about = UNLOAD)]
    Unload(UnloadArgs),
    /// Print a completion script for a shell
    #[command(long_about = COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages
    #[command(hide = true)]
    Man {
        /// The folder that they are written into
        folder: PathBuf,
    },
}

const AGENT: &str = "\
Run the agent: load the kernel programs, join the POP, and keep both in step until it \
is told to stop.

SIGTERM and SIGINT stop it gracefully: it leaves the POP, and the other hosts keep \
forwarding to this one for pop.leave_hold. The kernel programs stay in force, so open \
connections live on; `homing unload` removes them.

It logs to the journal when systemd runs it, else to the standard error, one line per \
event.";

const STATUS: &str = "\
How this host, its agent and its POP are doing.

A line `problem` names something to look at and what to do about it; `problems none` \
means that all is well. Problems are told, not judged: the command exits with 0 all the \
same. For a script, `homing status --json` has them as a list.";

const DOCTOR: &str = "\
Examine this host, explain what is wrong with it, and say how to put it right.

It reads the configuration, the kernel, the interfaces of host.interfaces, and what a \
running agent says; it works without one. It changes nothing, and tries nothing out that \
could be noticed. Run it as root, and in the agent's network namespace.

Each check has a line: its name, how it went, and what was seen. Below, each finding that \
is not `ok` says why it matters and what to do: a command, or what to write into the \
configuration.

  ok       all is well
  note     works, and is worth knowing; or could not be checked
  warning  works worse than it could, or will not work under some load
  error    does not work

Checks:
  privileges         root, who alone can see everything below
  configuration      the file is right, and what the running agent has in force
  kernel_version     Linux 6.1 at least, 6.6 for all that Homing does
  kernel_features    types (BTF), and the kinds of programs and maps that are needed
  jit                programs run as machine code
  clock              the clock is kept right
  bpffs              programs and maps have a file system to be pinned to
  cgroup             host.cgroup is a cgroup of version 2
  key_file           pop.key_file is root's, readable by root alone, and holds a key
  interface          host.interfaces are there and up
  native_xdp         the driver has what host.xdp_mode asks for
  xdp_program        no other XDP program is on them
  mtu                clients' packets and the outer header fit, here and on the way to hosts
  rp_filter          the kernel does not drop packets for the way they came
  vlan_offload       the device leaves VLAN tags where XDP sees them
  checksum_offload   a virtual link hands over whole packets
  lro                segments are not joined by the device
  gro                nor by the kernel before the program, with host.xdp_mode \"skb\"
  fabric_address     pop.address is this host's, on one of host.interfaces
  service_addresses  each service's address is this host's
  multicast          pop.multicast can be joined, and the domain hears this host
  second_instance    nobody else has the pins, the port or the interfaces
  agent              an agent runs, of this version
  problem            what the running agent names in `homing status`

Exits with 0 when all is well or worth a note at most, with 1 when there is a warning or \
an error, with 5 when the configuration is wrong; then what does not depend on it is \
examined all the same. --json prints all findings and the worst level.";

const SESSIONS: &str = "\
This host's own open sessions, in the order of their addresses, by page.

A session is in exactly one page as long as it is open, whatever opens or closes \
meanwhile. MOVES counts how often a session has changed hosts.";

const COMPLETIONS: &str = "\
Print a completion script for a shell, such as

  homing completions bash > /usr/share/bash-completion/completions/homing
  homing completions zsh > /usr/share/zsh/site-functions/_homing
  homing completions fish > /usr/share/fish/vendor_completions.d/homing.fish";

const HOSTS: &str = "\
All hosts of the POP.

STATE says whether a host's agent answers; a host whose agent is down still owns its \
sessions. NEXT HOP is where its tunnel packets go; a host without one cannot be \
forwarded to. CLAIMS counts the sessions that it is known to own. SYNC says whether all \
that it has announced is known here.";

const OWNER: &str = "\
Who owns a session, and how this host knows.

Exits with 4 when nobody is known to own it. A session that was opened within the last \
milliseconds, or that no host has, is not known.";

const APPS: &str = "\
The applications that have registered with this host's agent, so that their connections \
can move to other hosts.

NAME and VERSION are those of what they speak: a connection moves between applications \
that name the same. STATE is `ready` once an application can be asked for moves. ASKED \
counts the moves that wait for its answer, PENDING those that it waits to be told the \
end of. The last line names the last application that was turned away, and why.";

const CARRIERS: &str = "\
The connections between this host's agent and those of other hosts that carry what they \
tell each other of moves, and all sessions of a host at once: one line for what comes from \
a host, and one for each channel that was ever used to it.

A carrier is opened when there is something to tell, and closed when it was idle for a \
minute, or for two seconds on the channel `gossip`: `idle` is well. `failing` means that none could be opened, and why. WAITING \
counts messages that wait for one.";

const MUX: &str = "\
Message sockets: those that offer a service, and those that are connected to one.

SENT counts the messages of its application. HELD is the bytes of them that have no fate \
yet, each message with 96 more; BLOCKED, how many others have no room for them. UNREAD is \
the bytes that wait for the application to read them, beside what the kernel holds for it; \
WAITING, how many others wait for that. A message socket that is `ending` was closed, and \
what it sent is still under way.

The second table has the carriers of messages, as `homing carriers` has them.";

const RELOAD: &str = "\
Read the configuration and the key file (pop.key_file) again, and put in force what they \
hold: all of it, or nothing. No session notices. SIGHUP and `systemctl reload` do the same, \
and the log says how it went.

Nothing changes if the configuration is wrong (each problem is printed with its line and the \
fix; exit code 5), if a key differs that only a restart puts in force (it is named, with both \
values), or if a step fails. operating.md says of each key whether a reload is enough.

With --dry-run nothing changes in any case: it prints what would.";

const LOG: &str = "\
What the agent logs. With a level it logs that from now on, until it is told otherwise or \
started anew: the next start goes by --log and HOMING_LOG again.

At `debug` it tells of each carrier, session and host that comes and goes; at `trace` of \
each message between agents, which is more than a busy host's log should take for long.";

const KEY: &str = "\
Make the POP's key file, or change its key without downtime.

A rotation has three steps. After each one the file must be on every host and every \
agent must have been told to `homing reload`, before the next step begins:

  1. homing key begin     makes a new key, which is accepted from then on
  2. homing key promote   the new key signs, the old one is still accepted
  3. homing key finish    the old key is refused

Run `begin` on one host and copy the file; `promote` and `finish` may be run on each \
host or on one. `homing status` names the keys that a host uses by their public ids, \
`homing hosts --json` the key that each host signs with. Session ids do not change.";

const UNLOAD: &str = "\
Stop the agent for good and remove every program, link and map of it from the kernel.

A running agent is asked to leave the POP first; the other hosts then forget this host's \
sessions at once. Without one, only what it left in the kernel is removed. Either way \
packets are no longer forwarded by this host, and connections that depend on it break. \
It may be repeated.";

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Check the configuration, say what is wrong with it, and exit
    #[arg(long)]
    pub check_config: bool,

    /// What to log: error, warn, info, debug or trace, or directives such as
    /// info,homing_agent::gossip=debug
    #[arg(
        long,
        env = "HOMING_LOG",
        value_name = "LEVEL",
        default_value = "info",
        value_parser = log_directives
    )]
    pub log: String,
}

#[derive(Debug, Args)]
pub(super) struct SessionsArgs {
    /// Sessions on a page
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u16).range(1..=page::MAX_LIMIT as i64)
    )]
    pub limit: u16,

    /// Only sessions behind this one: what the page before named as next
    #[arg(long, value_name = "CURSOR", value_parser = cursor)]
    pub after: Option<String>,

    /// All of them, page by page
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub(super) struct OwnerArgs {
    /// The client's address and port, such as 198.51.100.7:40312
    #[arg(value_parser = endpoint)]
    pub client: SocketAddr,

    /// The service's address and port, such as 203.0.113.10:443 or [2001:db8:113::10]:443
    #[arg(value_parser = endpoint)]
    pub service: SocketAddr,

    /// The protocol
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp"])]
    pub protocol: String,
}

#[derive(Debug, Args)]
pub(super) struct MuxArgs {
    #[command(subcommand)]
    pub what: MuxCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum MuxCommand {
    /// Message sockets, the carriers of their messages, and what waits
    #[command(long_about = MUX)]
    Status {
        /// Show at most this many message sockets
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
}

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    pub step: KeyStep,

    /// The key file [default: the configured pop.key_file]
    #[arg(long, global = true, value_name = "PATH")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyStep {
    /// Make a new key file, where there is none
    New,
    /// Which keys the file holds, by their public ids, and what to do next
    Show,
    /// First step of a rotation: make a new key, to be accepted
    Begin(KeyUse),
    /// Second step: the new key signs
    Promote(KeyUse),
    /// Last step: the old key is refused
    Finish(KeyUse),
}

#[derive(Debug, Args)]
pub(super) struct KeyUse {
    /// Change the key of session ids, not the one that signs
    ///
    /// The steps are the same, but agents are restarted, not reloaded, after each. Until
    /// the last one each session takes two places in the table of owners.
    #[arg(long)]
    pub session: bool,
}

#[derive(Debug, Args)]
pub(super) struct UnloadArgs {
    /// The instance to remove, without reading the configuration
    #[arg(long, value_name = "NAME", value_parser = instance)]
    pub instance: Option<String>,
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let endpoint: SocketAddr = text.parse().map_err(|_| {
        "not an address and port, such as 198.51.100.7:40312 or [2001:db8::7]:40312".to_owned()
    })?;
    Ok(SocketAddr::new(
        endpoint.ip().to_canonical(),
        endpoint.port(),
    ))
}

fn duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text)
        .ok_or_else(|| "not a whole number and its unit (ms, s, m, h), such as 10m".to_owned())
}

fn cursor(text: &str) -> Result<String, String> {
    match page::parse_cursor(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("not what a page named as next".to_owned()),
    }
}

fn instance(text: &str) -> Result<String, String> {
    if config::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("an instance's name has 1 to 32 letters, digits, - or _".to_owned())
    }
}

fn log_directives(text: &str) -> Result<String, String> {
    logs::filter(text).map(|_| text.to_owned())
}
