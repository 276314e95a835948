//! Hosts that lose their power, and come back.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Lab, Node, agent::READY_TIMEOUT, node, state, wait_until};

/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// What the kernel of a host forgets without power: the fast path, and all connections.
const FORGET: &str = "rm -rf /sys/fs/bpf/homing; ss -K -tua >/dev/null";

impl Lab {
    /// Cuts a host's power: its wire goes dead first, so that nothing of its end is heard
    /// by anybody; then everything that runs on it is killed, and its kernel forgets what
    /// it knew. Its files stay. The router goes on sending to it as long as it is in the
    /// ECMP set.
    pub fn cut_power(&mut self, host: u16) -> Result<()> {
        self.unplug(host)?;
        let node = Node::Host(host);
        let keeper = self.state.keepers.get(&node.to_string()).copied();
        let name = self.state.plan.name.clone();
        let others = || -> Result<Vec<i32>> {
            let mut pids = node::processes(&name, node)?;
            pids.retain(|pid| keeper.is_none_or(|keeper| keeper.pid != *pid));
            Ok(pids)
        };
        let children = &mut self.children;
        let gone = wait_until(GONE, || {
            let pids = others()?;
            for pid in &pids {
                // It may have ended by itself meanwhile.
                kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
            }
            children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
            Ok(pids.is_empty())
        })?;
        ensure!(gone, "on h{host} there still run {:?}", others()?);
        self.exec(node, "sh", &["-c", FORGET])?;
        let _lock = state::lock(&self.state.plan.name)?;
        self.state.agents.remove(&host);
        self.state.write()
    }

    /// Gives a host its power back: its wire and its agent. Waits until all agents have
    /// found each other.
    pub fn power_on(&mut self, host: u16) -> Result<()> {
        self.plug(host)?;
        self.launch(host)?;
        self.wait_ready(READY_TIMEOUT)
    }
}
