//! What this host's own kernel knows of a session.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple, tcphdr},
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie},
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
    let found = with_socket::<V4, _>(ctx, &segment.tuple, |socket| match socket.state() {
        TCP_LISTEN => {
            if segment.flags.may_belong() && cookie_is_valid::<V4>(&socket, frame, segment) {
                Local::Cookie
            } else {
                Local::Nothing
            }
        }
        TCP_TIME_WAIT => Local::TimeWait,
        _ => Local::Socket,
    });
    found.unwrap_or(Local::Nothing)
}

/// A socket, held for as long as it is looked at.
pub struct Socket(*mut bpf_sock);

impl Socket {
    /// Its TCP state.
    #[inline(always)]
    pub fn state(&self) -> u32 {
        // SAFETY: the socket is held.
        unsafe { core::ptr::read_volatile(&raw const (*self.0).state) }
    }

    /// Whether this listener takes headers for the end of a handshake by SYN
    /// cookie, by the very test of the stack: cookies are in use, the listener has
    /// sent some lately, and this is one.
    ///
    /// # Safety
    ///
    /// `ip` must lead to `ip_len` bytes, and `tcp` to a TCP header.
    #[inline(always)]
    pub unsafe fn takes_cookie(&self, ip: *mut c_void, ip_len: usize, tcp: *mut tcphdr) -> bool {
        let tcp_len = size_of::<TcpHdr>() as u32;
        // SAFETY: the socket is held, and the caller answers for the headers.
        unsafe { bpf_tcp_check_syncookie(self.0.cast(), ip, ip_len as u32, tcp, tcp_len) == 0 }
    }
}

/// Whether this host has a socket of the session, in any state but LISTEN.
#[inline(always)]
pub fn is_open<const V4: bool>(ctx: &XdpContext, tuple: &Tuple) -> bool {
    let open = with_socket::<V4, _>(ctx, tuple, |socket| socket.state() != TCP_LISTEN);
    tuple.protocol == TCP && open.unwrap_or(false)
}

/// Looks at the socket that serves a tuple, if there is one. Handshakes in
/// progress and TIME_WAIT count.
#[inline(always)]
pub fn with_socket<const V4: bool, R>(
    ctx: &XdpContext,
    tuple: &Tuple,
    look: impl FnOnce(Socket) -> R,
) -> Option<R> {
    if V4 {
        let (client, service) = (&tuple.client.0, &tuple.service.0);
        let mut tuple = SockTuple {
            source: [client[12], client[13], client[14], client[15]],
            destination: [service[12], service[13], service[14], service[15]],
            source_port: tuple.client_port.0,
            destination_port: tuple.service_port.0,
        };
        with_socket_of(ctx, &mut tuple, look)
    } else {
        let mut tuple = SockTuple {
            source: tuple.client.0,
            destination: tuple.service.0,
            source_port: tuple.client_port.0,
            destination_port: tuple.service_port.0,
        };
        with_socket_of(ctx, &mut tuple, look)
    }
}

#[inline(always)]
fn with_socket_of<A, R>(
    ctx: &XdpContext,
    tuple: &mut SockTuple<A>,
    look: impl FnOnce(Socket) -> R,
) -> Option<R> {
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
        let seen = look(Socket(socket));
        bpf_sk_release(socket.cast());
        Some(seen)
    }
}

/// Whether a segment ends a handshake by a SYN cookie of this listener.
#[inline(always)]
fn cookie_is_valid<const V4: bool>(socket: &Socket, frame: &Frame, segment: &Segment) -> bool {
    let Some(tcp) = frame.at::<TcpHdr>(segment.upper) else {
        return false;
    };
    // SAFETY: `at` has checked that both headers lie within the frame.
    unsafe {
        if V4 {
            let Some(ip) = frame.at::<Ipv4Hdr>(segment.start) else {
                return false;
            };
            socket.takes_cookie(ip.cast(), size_of::<Ipv4Hdr>(), tcp.cast())
        } else {
            let Some(ip) = frame.at::<Ipv6Hdr>(segment.start) else {
                return false;
            };
            socket.takes_cookie(ip.cast(), size_of::<Ipv6Hdr>(), tcp.cast())
        }
    }
}
