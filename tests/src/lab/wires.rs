//! The hosts' wires: the router's ports, and wires that are pulled out.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Lab, Node, net, port};

/// Where the program of the router's ports is pinned, on the router.
const PORT_PROGRAM: &str = "/sys/fs/bpf/port";

impl Lab {
    /// Gives the router's ports what they need to take frames from hosts' XDP.
    pub(super) fn open_ports(&self) -> Result<()> {
        let Some(keeper) = self.state.keepers.get(&Node::Router.to_string()) else {
            bail!("the lab has no router");
        };
        let root = format!("/proc/{}/root{PORT_PROGRAM}", keeper.pid);
        port::pin(Path::new(&root))?;
        for host in 1..=self.state.plan.hosts {
            self.open_port(&format!("h{host}"))?;
        }
        Ok(())
    }

    /// Gives a port of the router what it needs to take frames from hosts' XDP.
    pub fn open_port(&self, port: &str) -> Result<()> {
        let args = ["link", "set", "dev", port, "xdpdrv", "pinned", PORT_PROGRAM];
        self.exec(Node::Router, "ip", &args).map(drop)
    }

    /// Destroys a host's wire, and its interface with it.
    pub fn unplug(&mut self, host: u16) -> Result<()> {
        net::unplug(&self.state.plan, host)
    }

    /// Gives a host whose wire was destroyed a new one.
    pub fn plug(&mut self, host: u16) -> Result<()> {
        net::plug(&self.state.plan, host)?;
        self.open_port(&format!("h{host}"))
    }
}
