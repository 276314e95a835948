//! The process on a host, which does what it is told: `homing-bench mux-end`.
//!
//! An order is a line of JSON on its standard input. A server answers it with the address
//! that it listens on, and once all is over with what has arrived; a client with what it
//! has sent. An error ends the process.

use std::{io, net::IpAddr, time::Duration};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{case::Case, client, server, transport::Transport};

/// How long an order may take, in seconds, until the process is ended by a signal.
const PATIENCE_S: u32 = 60;

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// To be the server.
    Serve {
        transport: Transport,
        case: Case,
        /// An address of this host.
        at: IpAddr,
    },
    /// To be the client.
    Send {
        transport: Transport,
        case: Case,
        /// What the server has said.
        to: String,
        /// For so long.
        seconds: f64,
    },
}

/// Obeys until there are no more orders.
pub fn obey() -> Result<()> {
    for line in io::stdin().lines() {
        let order = serde_json::from_str(&line?)?;
        nix::unistd::alarm::set(PATIENCE_S);
        perform(order)?;
        nix::unistd::alarm::cancel();
    }
    Ok(())
}

fn perform(order: Order) -> Result<()> {
    match order {
        Order::Serve {
            transport,
            case,
            at,
        } => {
            let listener = transport.listen(at, &case)?;
            say(&listener.address())?;
            say(&server::serve(listener, &case, transport.keeps_order())?)
        }
        Order::Send {
            transport,
            case,
            to,
            seconds,
        } => {
            let pipes = transport.connect(&to, &case)?;
            let time = Duration::from_secs_f64(seconds);
            say(&client::run(pipes, &case, time)?)
        }
    }
}

fn say(what: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}
