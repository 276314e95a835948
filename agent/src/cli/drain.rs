//! `homing drain` and `homing undrain`: new sessions go to other hosts, or no
//! longer.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::anyhow;
use tokio::time::{Instant, sleep};

use super::{Failure, args::DrainArgs, client::Agent};
use crate::admin::api::{Draining, Status};

/// How often a drain that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Begins to drain and, if told so, waits until no session is left.
pub(super) async fn drain(
    agent: &Agent,
    args: &DrainArgs,
    quiet: bool,
) -> Result<Draining, Failure> {
    let begun = Instant::now();
    let mut draining: Draining = agent.post("/drain").await?;
    let mut shown = None;
    while args.wait && draining.sessions > 0 {
        if args
            .deadline
            .is_some_and(|deadline| begun.elapsed() >= deadline)
        {
            return Err(anyhow!(
                "{} sessions are still open after {:?}; the host goes on draining: repeat the \
                 command, or see them with `homing sessions`",
                draining.sessions,
                begun.elapsed()
            )
            .into());
        }
        if !quiet && shown != Some(draining.sessions) {
            shown = Some(draining.sessions);
            // That nobody looks is no reason to stop.
            let _ = writeln!(io::stderr(), "{} sessions left", draining.sessions);
        }
        sleep(LOOK_EVERY).await;
        let status: Status = agent.get("/status").await?;
        draining.sessions = status.sessions.count;
        if !status.draining {
            return Err(anyhow!("somebody ended the draining (`homing undrain`)").into());
        }
    }
    Ok(draining)
}

/// What was done, in words.
pub(super) fn show(draining: &Draining) -> String {
    let Draining {
        draining,
        sessions,
        takers,
    } = *draining;
    if !draining {
        return format!("this host takes new sessions; {sessions} are open");
    }
    let open = match sessions {
        0 => "none is open".to_owned(),
        1 => "1 is still open".to_owned(),
        more => format!("{more} are still open"),
    };
    if takers == 0 {
        return format!(
            "this host drains, but no other host takes new sessions: they are opened here all \
             the same; {open}"
        );
    }
    format!("this host takes no new sessions, {takers} others do; {open}")
}
