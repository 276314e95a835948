//! `homing unload`: stop the agent, then remove what it left in the kernel.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Failure,
    args::{Cli, UnloadArgs},
    client::Agent,
};
use crate::{
    config::{self, Config},
    datapath,
};

/// How long an agent may take to leave and exit.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was done.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The folder of the pins.
    pin_dir: PathBuf,
    /// Whether an agent ran and was stopped.
    agent_stopped: bool,
    /// Links that were removed: their programs are detached.
    links: Vec<PathBuf>,
    /// Programs that were removed.
    programs: Vec<PathBuf>,
    /// Maps that were removed.
    maps: Vec<PathBuf>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.agent_stopped {
            writeln!(f, "the agent has left the POP and stopped")?;
        }
        let pin_dir = self.pin_dir.display();
        let counts = [self.links.len(), self.programs.len(), self.maps.len()];
        if counts == [0; 3] {
            return write!(f, "nothing is pinned under {pin_dir}");
        }
        let [links, programs, maps] = counts;
        write!(
            f,
            "removed {links} links, {programs} programs and {maps} maps from {pin_dir}"
        )
    }
}

/// Does it.
pub(super) async fn unload(cli: &Cli, args: &UnloadArgs, agent: &Agent) -> Result<Report, Failure> {
    let (pin_dir, agent) = match &args.instance {
        Some(instance) => {
            let socket = cli.socket.clone();
            let socket = socket.unwrap_or_else(|| config::default_socket(instance));
            (config::pin_dir(instance), &Agent::new(socket, None))
        }
        None => (Config::load(&cli.config)?.pin_dir(), agent),
    };
    let agent_stopped = stop(agent).await?;
    let removed = remove(&pin_dir, agent_stopped).await?;
    Ok(Report {
        pin_dir,
        agent_stopped,
        links: removed.links,
        programs: removed.programs,
        maps: removed.maps,
    })
}

/// Stops the agent if there is one, and says whether there was.
async fn stop(agent: &Agent) -> Result<bool, Failure> {
    if !agent.is_listening().await? {
        return Ok(false);
    }
    agent.leave(Duration::ZERO).await?;
    let gone = async {
        while agent.is_listening().await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    match tokio::time::timeout(STOP_WITHIN, gone).await {
        Ok(gone) => gone.map(|()| true),
        Err(_) => Err(anyhow!(
            "the agent at {} has not stopped within {STOP_WITHIN:?}; stop it (`systemctl stop homing`) and repeat",
            agent.socket().display()
        )
        .into()),
    }
}

/// Removes the pins, once an agent that was stopped has let go of them.
async fn remove(pin_dir: &Path, stopped: bool) -> Result<datapath::unload::Report, Failure> {
    let patience = if stopped { STOP_WITHIN } else { Duration::ZERO };
    let deadline = Instant::now() + patience;
    loop {
        match datapath::unload(pin_dir) {
            Ok(report) => return Ok(report),
            // It closes its socket a little before it exits.
            Err(datapath::Error::Busy { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => return Err(anyhow!(error).context("cannot unload").into()),
        }
    }
}
