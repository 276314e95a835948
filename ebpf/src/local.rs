//! What this host's own kernel knows of a session.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple},
    helpers::{
        bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_raw_check_syncookie_ipv4,
        bpf_tcp_raw_check_syncookie_ipv6,
    },
    programs::XdpContext,
};
use homing_common::{net::TCP, session::Tuple};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::packet::{Frame, Segment};

/// What the kernel has for a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// A socket of the session, in any state but LISTEN and TIME_WAIT.
    Socket,
    /// The session's socket in TIME_WAIT: it has closed.
    TimeWait,
    /// A listener, and the segment completes a handshake by SYN cookie.
    Cookie,
    /// Neither.
    Nothing,
}

/// The state of a listener (`include/net/tcp_states.h`).
pub const TCP_LISTEN: u32 = 10;
/// The state of a socket that has been closed and stays for stragglers.
pub const TCP_TIME_WAIT: u32 = 6;

/// Addresses and ports in the layout of `struct bpf_sock_tuple`.
#[repr(C)]
struct SockTuple<A> {
    source: A,
    destination: A,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// Asks the kernel for the socket that a segment would reach.
#[inline(always)]
pub fn find<const V4: bool>(ctx: &XdpContext, frame: &Frame, segment: &Segment) -> Local {
    match state::<V4>(ctx, &segment.tuple) {
        None => Local::Nothing,
        Some(TCP_LISTEN) => {
            if segment.flags.may_belong() && cookie_is_valid::<V4>(frame, segment) {
                Local::Cookie
            } else {
                Local::Nothing
            }
        }
        Some(TCP_TIME_WAIT) => Local::TimeWait,
        Some(_) => Local::Socket,
    }
}

/// Whether this host has a socket of the session, in any state but LISTEN.
#[inline(always)]
pub fn is_open<const V4: bool>(ctx: &XdpContext, tuple: &Tuple) -> bool {
    match state::<V4>(ctx, tuple) {
        None | Some(TCP_LISTEN) => false,
        Some(_) => tuple.protocol == TCP,
    }
}

/// The TCP state of the socket that serves a tuple. Handshakes in progress and
/// TIME_WAIT count.
#[inline(always)]
pub fn state<const V4: bool>(ctx: &XdpContext, tuple: &Tuple) -> Option<u32> {
    if V4 {
        let (client, service) = (&tuple.client.0, &tuple.service.0);
        state_of(
            ctx,
            &mut SockTuple {
                source: [client[12], client[13], client[14], client[15]],
                destination: [service[12], service[13], service[14], service[15]],
                source_port: tuple.client_port.0,
                destination_port: tuple.service_port.0,
            },
        )
    } else {
        state_of(
            ctx,
            &mut SockTuple {
                source: tuple.client.0,
                destination: tuple.service.0,
                source_port: tuple.client_port.0,
                destination_port: tuple.service_port.0,
            },
        )
    }
}

#[inline(always)]
fn state_of<A>(ctx: &XdpContext, tuple: &mut SockTuple<A>) -> Option<u32> {
    // SAFETY: `SockTuple` has the layout of the IPv4 or IPv6 arm of
    // `bpf_sock_tuple`, and its size tells the helper which. The reference that a
    // found socket carries is given back before the function ends.
    unsafe {
        let socket = bpf_skc_lookup_tcp(
            ctx.as_ptr(),
            (&raw mut *tuple).cast::<bpf_sock_tuple>(),
            size_of::<SockTuple<A>>() as u32,
            BPF_F_CURRENT_NETNS as u64,
            0,
        );
        if socket.is_null() {
            return None;
        }
        let state = core::ptr::read_volatile(&raw const (*socket).state);
        bpf_sk_release(socket.cast());
        Some(state)
    }
}

/// Whether a segment acknowledges a SYN cookie of this kernel.
#[inline(always)]
fn cookie_is_valid<const V4: bool>(frame: &Frame, segment: &Segment) -> bool {
    let Some(tcp) = frame.at::<TcpHdr>(segment.upper) else {
        return false;
    };
    // SAFETY: `at` has checked that both headers lie within the frame.
    unsafe {
        if V4 {
            let Some(ip) = frame.at::<Ipv4Hdr>(segment.start) else {
                return false;
            };
            bpf_tcp_raw_check_syncookie_ipv4(ip.cast(), tcp.cast()) == 0
        } else {
            let Some(ip) = frame.at::<Ipv6Hdr>(segment.start) else {
                return false;
            };
            bpf_tcp_raw_check_syncookie_ipv6(ip.cast(), tcp.cast()) == 0
        }
    }
}
