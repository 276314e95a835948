//! Connections that are there and say nothing, as most of a POP's do most of the time.
//!
//! They are held by processes of their own, because the number of files of one process
//! is limited.

use std::{
    io::{BufRead, BufReader, Read as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::lab::{Lab, Node, own_program};

/// Idle connections from a machine of the lab.
pub struct Idle(Vec<Child>);

impl Idle {
    /// Opens `count` connections to each of `targets`, to all of them at once.
    pub fn open(lab: &Lab, machine: Node, targets: &[SocketAddr], count: usize) -> Result<Self> {
        let mut holders = Self(Vec::new());
        for target in targets {
            let mut command = Command::new(own_program()?);
            command
                .args(["hold", "--target", &target.to_string()])
                .args(["--count", &count.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            holders.0.push(lab.spawn(machine, &mut command)?);
        }
        for holder in &mut holders.0 {
            let stdout = holder.stdout.take().context("no output")?;
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line)?;
            ensure!(line.trim() == "open", "not all connections could be opened");
        }
        Ok(holders)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        for holder in &mut self.0 {
            // The end of its standard input is what it waits for.
            drop(holder.stdin.take());
        }
        for holder in &mut self.0 {
            holder.wait().ok();
        }
    }
}

/// Holds connections in this process until its standard input ends.
pub fn hold(target: SocketAddr, count: usize) -> Result<()> {
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        let stream = TcpStream::connect(target)
            .with_context(|| format!("connection {number} to {target}"))?;
        // They end with a reset, and leave no TIME_WAIT.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        streams.push(stream);
    }
    println!("open");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
