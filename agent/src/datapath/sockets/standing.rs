//! Whether somebody has a descriptor of a socket: what drains a host must tell apart.

use std::io;

use homing_common::session::Tuple;

use super::diag::{
    Diag, ID_LEN, NLM_F_DUMP, STATES, TIMER_TIME_WAIT, WHOLE_MESSAGE_LEN, ends, u32_at,
};

/// A TCP socket of this network namespace, or what is left of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Its ends, seen from its own side as the service.
    pub tuple: Tuple,
    /// The kernel's cookie.
    pub cookie: u64,
    /// Who has it.
    pub stands: Stands,
}

/// Who has a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stands {
    /// A process has a descriptor of it.
    Held,
    /// It is connected, and waits in its listener's queue.
    NotAccepted,
    /// All have closed it; the kernel brings it to its end: what was written is to be
    /// acknowledged, or the other side to close.
    Closing,
    /// It is gone; the kernel answers for it a while (TIME_WAIT, or FIN_WAIT2 without a
    /// socket).
    TimeWait,
}

/// From `include/net/tcp_states.h`.
const ESTABLISHED: u8 = 1;
const TIME_WAIT: u8 = 6;
const CLOSE_WAIT: u8 = 8;

/// Where the inode of `struct inet_diag_msg` stands: zero if no process has the socket.
const INODE: usize = WHOLE_MESSAGE_LEN - 4;

impl Diag {
    /// Calls `each` with every connected TCP socket, and every one that has been. What
    /// comes or goes meanwhile may be left out.
    pub fn standings(&mut self, mut each: impl FnMut(Standing)) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let states = STATES | 1 << TIME_WAIT;
            self.ask(family as u8, (NLM_F_DUMP, 0), states, &[0; ID_LEN])?;
            match self.bodies(&mut |body| parse(body).into_iter().for_each(&mut each)) {
                // A kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                result => result?,
            }
        }
        Ok(())
    }
}

fn parse(body: &[u8]) -> Option<Standing> {
    let body = body.get(..WHOLE_MESSAGE_LEN)?;
    let (state, timer) = (body[1], body[2]);
    let stands = if state == TIME_WAIT || timer == TIMER_TIME_WAIT {
        Stands::TimeWait
    } else if u32_at(body, INODE) != 0 {
        Stands::Held
    } else if matches!(state, ESTABLISHED | CLOSE_WAIT) {
        // Who closes a socket leaves these states.
        Stands::NotAccepted
    } else {
        Stands::Closing
    };
    let socket = ends(body);
    Some(Standing {
        tuple: socket.tuple,
        cookie: socket.cookie,
        stands,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{Shutdown, TcpListener, TcpStream},
        time::{Duration, Instant},
    };

    use homing_common::net::TCP;

    use super::*;

    /// Waits until the service's end of a connection stands as is wanted.
    fn wait_for(tuple: &Tuple, wanted: Option<Stands>) {
        let mut diag = Diag::open().unwrap();
        let begun = Instant::now();
        loop {
            let mut found = None;
            diag.standings(|standing| {
                if standing.tuple == *tuple {
                    found = Some(standing.stands);
                }
            })
            .unwrap();
            if found == wanted {
                return;
            }
            let late = begun.elapsed() > Duration::from_secs(10);
            assert!(!late, "it stands as {found:?}, not as {wanted:?}");
        }
    }

    #[test]
    fn who_has_a_socket_is_told_in_every_state() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap();
        let connect = || {
            let client = TcpStream::connect(service).unwrap();
            let tuple = Tuple::between(client.local_addr().unwrap(), service, TCP);
            (client, tuple)
        };
        let (_client, tuple) = connect();
        wait_for(&tuple, Some(Stands::NotAccepted));
        let (server, _) = listener.accept().unwrap();
        wait_for(&tuple, Some(Stands::Held));
        // Half-closed by either side, it still has a descriptor.
        server.shutdown(Shutdown::Write).unwrap();
        wait_for(&tuple, Some(Stands::Held));
        drop(server);
        wait_for(&tuple, Some(Stands::TimeWait));

        // Closed with data that the client does not take.
        let (_client, tuple) = connect();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        while (&server).write(&[0; 65_536]).is_ok() {}
        drop(server);
        wait_for(&tuple, Some(Stands::Closing));

        // The client has closed, and nobody has accepted yet.
        let (client, tuple) = connect();
        client.shutdown(Shutdown::Write).unwrap();
        wait_for(&tuple, Some(Stands::NotAccepted));
        let (server, _) = listener.accept().unwrap();
        wait_for(&tuple, Some(Stands::Held));
        drop((server, listener));
        wait_for(&tuple, None);
    }
}
