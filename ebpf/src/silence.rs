//! What sockets of moving sessions send, by whatever interface: nothing. A socket that
//! is frozen, or restored and not served yet, still retransmits, probes and
//! acknowledges.
//!
//! The kernel runs this for what a whole socket sends. What it sends for none, such as
//! a reset, and what a socket in TIME_WAIT answers, meets the classifier on the
//! interfaces ([`egress`](crate::egress)).

use core::ptr::read_volatile;

use aya_ebpf::{helpers::bpf_sk_fullsock, programs::SkBuffContext};
use homing_common::{
    net::{Address, Port, TCP},
    outcome::Hook,
    session::Tuple,
};

use crate::{control, moving, sockops, stats};

/// Let it leave.
const PASS: i32 = 1;
/// Away with it; the socket takes it for not sent.
const DROP: i32 = 0;

/// Decides on what a socket is about to send.
#[inline(always)]
pub fn handle(ctx: &SkBuffContext) -> i32 {
    if !control::moving() {
        return PASS;
    }
    match tuple_of(ctx) {
        Some(tuple) if moving::find(&tuple).is_some() => {
            stats::count(Hook::MovingSilenced.index());
            DROP
        }
        _ => PASS,
    }
}

/// The tuple of the socket that sends, seen from its own side as the service. What the
/// packet says need not be read.
#[inline(always)]
fn tuple_of(ctx: &SkBuffContext) -> Option<Tuple> {
    // SAFETY: the context is valid as long as the program runs, and so is the socket
    // that a packet belongs to, of which the fields below may be read whatever its
    // family. Volatile, and before any branch: see `sockops`.
    unsafe {
        let socket = read_volatile(&raw const (*ctx.skb.skb).__bindgen_anon_2.sk);
        if socket.is_null() {
            return None;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() {
            return None;
        }
        let family = read_volatile(&raw const (*socket).family);
        let protocol = read_volatile(&raw const (*socket).protocol);
        let (local4, remote4) = (
            read_volatile(&raw const (*socket).src_ip4),
            read_volatile(&raw const (*socket).dst_ip4),
        );
        let (local6, remote6) = (
            read_volatile(&raw const (*socket).src_ip6),
            read_volatile(&raw const (*socket).dst_ip6),
        );
        let local_port = read_volatile(&raw const (*socket).src_port);
        let remote_port = read_volatile(&raw const (*socket).dst_port);
        if protocol != TCP as u32 {
            return None;
        }
        let (client, service) = match family {
            sockops::AF_INET => (
                Address::v4(remote4.to_ne_bytes()),
                Address::v4(local4.to_ne_bytes()),
            ),
            sockops::AF_INET6 => (sockops::address_v6(remote6), sockops::address_v6(local6)),
            _ => return None,
        };
        // The kernel gives the remote port in network order, the local one in host order.
        let client_port = Port(remote_port.to_ne_bytes());
        let service_port = Port::new(local_port as u16);
        Some(Tuple::new(client, client_port, service, service_port, TCP))
    }
}
