//! `homing-movable`: a server whose connections can move to another host. The lab runs it
//! on its hosts.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;
use clap::Parser;
use homing_tests::{
    lab::plan,
    movable::{HTTP_PORT, PORT, ServerOptions, raise_file_limit, server},
};

#[derive(Parser)]
#[command(
    name = "homing-movable",
    about = "Echo, checked bulk data and HTTP, on connections that can move to another host",
    max_term_width = 100
)]
struct Cli {
    /// The socket of the host's agent for applications
    #[arg(long, env = "HOMING_APPS_SOCKET")]
    agent: PathBuf,
    /// The addresses to listen on (default: the lab's service addresses)
    #[arg(long)]
    listen: Vec<SocketAddr>,
    #[command(flatten)]
    options: ServerOptions,
}

fn main() -> Result<()> {
    let mut cli = Cli::parse();
    if cli.listen.is_empty() {
        for port in [PORT, HTTP_PORT] {
            cli.listen.push((plan::SERVICE_V4, port).into());
            cli.listen.push((plan::SERVICE_V6, port).into());
        }
    }
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(server::serve(cli.agent, cli.listen, cli.options))
}
