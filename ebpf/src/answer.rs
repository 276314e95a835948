//! Answers from this host's kernel to questions that other hosts ask: does it know
//! this session, of which they saw a segment?
//!
//! The agent runs the program `homing_answer` on a row of [`Question`]s, which
//! stand where a packet would; each answer is written into its question. No packet
//! is involved, and the program is attached to nothing.

use core::mem::zeroed;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use homing_common::{
    ask::{Found, QUESTIONS_MAX, Question},
    session::SessionId,
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    control,
    local::{self, Socket, TCP_LISTEN, TCP_TIME_WAIT},
    moving,
    packet::{Flags, Frame},
    unowned,
};

/// Bounds offsets in a way that the verifier understands.
const OFFSET_MASK: usize = 0xfff;

const _: () = assert!(QUESTIONS_MAX * size_of::<Question>() <= OFFSET_MASK);

/// Answers all questions in the frame.
#[inline(always)]
pub fn handle(ctx: &XdpContext) {
    for n in 0..QUESTIONS_MAX {
        if answer(ctx.ctx, (n * size_of::<Question>()) as u32) == 0 {
            return;
        }
    }
}

/// Answers the question at an offset. Returns 0 if there is none.
///
/// A function of its own, and global: the verifier looks at it once, and not once
/// for every question.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn answer(ctx: *mut xdp_md, offset: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::of(&ctx);
    let offset = offset as usize & OFFSET_MASK;
    let Some(question) = frame.at::<Question>(offset) else {
        return 0;
    };
    // SAFETY: `at` has checked that the question lies within the frame.
    let asked = unsafe { *question };
    let found = if asked.tuple.client.is_v4() {
        look::<true>(&ctx, &asked)
    } else {
        look::<false>(&ctx, &asked)
    };
    // Checked anew: the frame may have changed as far as the verifier knows.
    let Some(question) = frame.at::<Question>(offset) else {
        return 0;
    };
    // SAFETY: as above.
    unsafe { (*question).found = found as u8 };
    1
}

#[inline(always)]
fn look<const V4: bool>(ctx: &XdpContext, asked: &Question) -> Found {
    // A session that moves is the source's until the target serves it: the source sends
    // what arrives for it there.
    if let Some(moving) = moving::find_at(&asked.tuple) {
        return if moving.parks() {
            Found::Nothing
        } else {
            Found::Socket
        };
    }
    let found = local::with_socket::<V4, _>(ctx, &asked.tuple, |socket| match socket.state() {
        TCP_LISTEN if Flags(asked.flags).may_belong() && takes_cookie::<V4>(&socket, asked) => {
            Found::Cookie
        }
        TCP_LISTEN => Found::Nothing,
        TCP_TIME_WAIT => Found::Closing,
        _ => Found::Socket,
    });
    match found {
        None | Some(Found::Nothing) => {
            if unowned::closed_lately(SessionId(asked.id), control::now_ns()) {
                Found::Closed
            } else {
                Found::Nothing
            }
        }
        Some(found) => found,
    }
}

/// Whether the segment acknowledges a SYN cookie of this listener, by headers that
/// hold what the check reads.
#[inline(always)]
fn takes_cookie<const V4: bool>(socket: &Socket, asked: &Question) -> bool {
    let tuple = &asked.tuple;
    // SAFETY: all three headers are made of bytes, for which zero is a value; the
    // check reads no further than to their ends.
    unsafe {
        let mut tcp: [u8; size_of::<TcpHdr>()] = zeroed();
        tcp[0] = tuple.client_port.0[0];
        tcp[1] = tuple.client_port.0[1];
        tcp[2] = tuple.service_port.0[0];
        tcp[3] = tuple.service_port.0[1];
        for n in 0..4 {
            tcp[4 + n] = asked.seq[n];
            tcp[8 + n] = asked.ack[n];
        }
        tcp[12] = (size_of::<TcpHdr>() as u8 / 4) << 4;
        tcp[13] = asked.flags;
        let tcp = (&raw mut tcp).cast();
        if V4 {
            let mut ip: Ipv4Hdr = zeroed();
            let (client, service) = (&tuple.client.0, &tuple.service.0);
            ip.vihl = 0x45;
            ip.src_addr = [client[12], client[13], client[14], client[15]];
            ip.dst_addr = [service[12], service[13], service[14], service[15]];
            socket.takes_cookie((&raw mut ip).cast(), size_of::<Ipv4Hdr>(), tcp)
        } else {
            let mut ip: Ipv6Hdr = zeroed();
            ip.vcf[0] = 0x60;
            ip.src_addr = tuple.client.0;
            ip.dst_addr = tuple.service.0;
            socket.takes_cookie((&raw mut ip).cast(), size_of::<Ipv6Hdr>(), tcp)
        }
    }
}
