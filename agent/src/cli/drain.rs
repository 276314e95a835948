//! `homing drain` and `homing undrain`: the agent does it; this asks for it, follows it,
//! and says how it ended.

mod words;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::anyhow;
use tokio::time::{Instant, sleep};

use super::{Failure, args::DrainArgs, client::Agent};
use crate::admin::api::{CommandState, Drain, DrainEnd};
pub(super) use words::{line, show};

/// How often the agent is asked how it goes.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often that is told where it is not one line that changes.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Drains, and returns how that went: as JSON or in words it says the same.
pub(super) async fn drain(agent: &Agent, args: &DrainArgs, quiet: bool) -> Result<Drain, Failure> {
    if args.status {
        return agent.get("/drain").await;
    }
    let begun: Drain = agent.post(&request(args)).await?;
    let mut teller = Teller::new(quiet);
    let drain = match follow(agent, begun, &mut teller).await? {
        drain if args.no_move && args.wait => {
            wait(agent, drain, args.deadline, &mut teller).await?
        }
        drain => drain,
    };
    teller.end();
    Ok(drain)
}

/// Takes new sessions again, and returns once all that belongs to it is done.
pub(super) async fn undrain(agent: &Agent) -> Result<Drain, Failure> {
    let begun: Drain = agent.post("/undrain").await?;
    follow(agent, begun, &mut Teller::new(true)).await
}

/// What keeps the exit code from being 0, once the answer is printed.
pub(super) fn judge_drain(drain: &Drain, args: &DrainArgs) -> Result<(), Failure> {
    if args.status {
        return Ok(());
    }
    judge_command(drain, "on_drain", args.no_move)?;
    if !drain.draining {
        return Err(anyhow!("somebody ended the draining (`homing undrain`)").into());
    }
    let lost = |run: &crate::admin::api::DrainRun| !run.lost.is_empty();
    match &drain.run {
        _ if args.no_move => Ok(()),
        Some(run) if run.end == Some(DrainEnd::Drained) && !lost(run) => Ok(()),
        _ => Err(Failure::PrintedFailed),
    }
}

/// The same of `homing undrain`.
pub(super) fn judge_undrain(drain: &Drain) -> Result<(), Failure> {
    judge_command(drain, "on_undrain", false)
}

fn judge_command(drain: &Drain, name: &str, no_move: bool) -> Result<(), Failure> {
    let Some(command) = &drain.command else {
        return Ok(());
    };
    let why = command.error.as_deref().unwrap_or("it was cancelled");
    match command.state {
        _ if command.name != name => Ok(()),
        CommandState::Running | CommandState::Done => Ok(()),
        CommandState::Failed | CommandState::Cancelled if name == "on_drain" => {
            let begun = drain.draining && (drain.run.is_some() || no_move);
            if begun {
                // Who forces it is told, too.
                let _ = writeln!(io::stderr(), "homing: drain.{name} failed: {why}");
                return Ok(());
            }
            let stands = match drain.draining {
                true => "this host drains as before, and moves no session",
                false => "this host goes on taking sessions",
            };
            Err(anyhow!(
                "drain.{name} failed, and {stands}: {why}; repeat the command once that is put \
                 right, or drain in spite of it with --force"
            )
            .into())
        }
        CommandState::Failed | CommandState::Cancelled => Err(anyhow!(
            "this host takes new sessions again, but drain.{name} failed: {why}; repeat the \
             command once that is put right"
        )
        .into()),
    }
}

fn request(args: &DrainArgs) -> String {
    let mut query = format!("/drain?move={}", !args.no_move);
    if !args.to.is_empty() {
        let to: Vec<_> = args.to.iter().map(|host| host.0.to_string()).collect();
        query += &format!("&to={}", to.join(","));
    }
    if let Some(rate) = args.rate {
        query += &format!("&rate={rate}");
    }
    if let Some(deadline) = args.deadline {
        query += &format!("&deadline_ms={}", deadline.as_millis());
    }
    if args.wait {
        query += "&wait=true";
    }
    if args.force {
        query += "&force=true";
    }
    query
}

/// Follows what the agent does until nothing goes on.
async fn follow(agent: &Agent, mut drain: Drain, teller: &mut Teller) -> Result<Drain, Failure> {
    while drain.is_busy() {
        teller.tell(&drain);
        sleep(LOOK_EVERY).await;
        drain = agent.get("/drain").await?;
    }
    Ok(drain)
}

/// Waits until no session is left, as those that there are end.
async fn wait(
    agent: &Agent,
    mut drain: Drain,
    deadline: Option<Duration>,
    teller: &mut Teller,
) -> Result<Drain, Failure> {
    let begun = Instant::now();
    while drain.draining && drain.sessions > 0 {
        if deadline.is_some_and(|deadline| begun.elapsed() >= deadline) {
            return Err(anyhow!(
                "{} sessions are still open after {:?}; the host goes on draining: repeat the \
                 command, or see them with `homing sessions`",
                drain.sessions,
                begun.elapsed()
            )
            .into());
        }
        teller.tell(&drain);
        sleep(LOOK_EVERY).await;
        drain = agent.get("/drain").await?;
    }
    Ok(drain)
}

/// Tells how it goes, on the standard error: one line that changes on a terminal, else a
/// line a second when there is something new.
struct Teller {
    quiet: bool,
    terminal: bool,
    told: Option<(Instant, String)>,
}

impl Teller {
    fn new(quiet: bool) -> Self {
        Self {
            quiet,
            terminal: io::stderr().is_terminal(),
            told: None,
        }
    }

    fn tell(&mut self, drain: &Drain) {
        let text = words::progress(drain);
        let is_new = match &self.told {
            None => true,
            Some((at, before)) => *before != text && (self.terminal || at.elapsed() >= TELL_EVERY),
        };
        if self.quiet || !is_new {
            return;
        }
        // That nobody looks is no reason to stop.
        let _ = match self.terminal {
            // The line is cleared behind what is written.
            true => write!(io::stderr(), "\r{text}\x1b[K"),
            false => writeln!(io::stderr(), "{text}"),
        };
        self.told = Some((Instant::now(), text));
    }

    fn end(&self) {
        if self.terminal && self.told.is_some() {
            let _ = writeln!(io::stderr());
        }
    }
}
