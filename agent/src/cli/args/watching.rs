//! `homing stats` and `homing top`.

use std::time::Duration;

use clap::Args;

use super::duration;

/// How often the agent may be asked.
const SHORTEST: Duration = Duration::from_millis(100);
/// How rarely.
const LONGEST: Duration = Duration::from_secs(3600);

pub(super) const STATS: &str = "\
How packets' ways through XDP ended, and what the hooks on sockets, gossip, carriers, \
applications, moves and the interfaces' drivers counted.

Each packet is counted in exactly one outcome. Counters that are zero are left out \
unless --all is given.

With --watch it goes on until it is interrupted, and has a column PER S: how often a second \
it was counted since the tables before. A dash means that this cannot be told: of the first \
tables, of a counter that has begun anew, and of what the agent counts once another agent has \
started. On a terminal the tables are shown in place of those before, as far as there is \
room; else there is a block for each time, with an empty line behind it. An agent that does \
not answer is told of once on the standard error, and asked again each time; only if the \
first question is not answered, the command fails.

With --watch and --json there is one line for each time: the document of `homing stats \
--json`, with `over_s`, the seconds since the line before, and `per_s`, the rates by part and \
counter, such as per_s.outcomes.forwarded. Of a counter without a rate there is none; on the \
first line `over_s` is null.

SIGINT and SIGTERM end it with exit code 0, as does a reader that hangs up.";

pub(super) const TOP: &str = "\
Show on a full screen, live, how this host, its agent and its POP are doing: problems, hosts, \
sessions, how packets end, and gossip, with rates.

There are four screens:

  1 Overview   sessions, packets, gossip, asks, moves; the outcomes of most packets; the
               hosts, those first that something is the matter with
  2 Hosts      all hosts by their ids, as `homing hosts` has them
  3 Outcomes   how packets ended: those that passed, were forwarded and were dropped, each
               by falling rate
  4 Counters   all other counters of `homing stats`, with their rates

Keys:

  Tab, Shift-Tab, 1 to 4     another screen
  Up, Down, PgUp, PgDn,
  Home, End                  move through a list that is longer than the screen
  Space                      hold the picture, and go on
  + and -                    ask less often, and more often
  z                          show counters that are zero too, or hide them
  ? or h                     the keys
  q, Esc, Ctrl-C             quit

A rate is that of the time between the last two answers, by the clock of the agent's host. A \
dash means that it cannot be told: of the first picture, of a counter that has begun anew, and \
of what the agent counts once another agent has started.

The agent is asked one question at a time, and waited for at most 3 seconds. When it does not \
answer, the screen says so, keeps the last picture with its age, and goes on as soon as the \
agent is back. If already the first question is not answered, the command fails with exit code \
3.

One question costs the agent no more than a request for /metrics does; the answer has some \
40 kB, and half a kilobyte more for each host of the POP. What is drawn is what has room, \
however many hosts there are.

The standard output must be a terminal; it is left as it was, also when the command is \
terminated. Without one use `homing stats --watch`, for scripts with --json.

Exits with 0 when it is quit, and upon SIGINT, SIGTERM and SIGHUP.";

#[derive(Debug, Args)]
pub(in crate::cli) struct StatsArgs {
    /// Show counters that are zero too
    #[arg(long)]
    pub all: bool,

    /// Go on, with rates, every second or so often: from 100ms to 1h
    #[arg(
        long,
        value_name = "INTERVAL",
        num_args = 0..=1,
        default_missing_value = "1s",
        value_parser = interval
    )]
    pub watch: Option<Duration>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TopArgs {
    /// Ask the agent so often: from 100ms to 1h
    #[arg(long, value_name = "INTERVAL", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    match (SHORTEST..=LONGEST).contains(&interval) {
        true => Ok(interval),
        false => Err("not from 100ms to 1h".to_owned()),
    }
}
