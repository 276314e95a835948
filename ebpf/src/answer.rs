//! Answers from this host's kernel to questions that other hosts ask: does it know
//! this session, of which they saw a segment?
//!
//! The agent runs the program `homing_answer` on a row of [`Question`]s, which
//! stand where a packet would; each answer is written into its question. No packet
//! is involved, and the program is attached to nothing.

use core::mem::zeroed;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6},
    programs::XdpContext,
};
use homing_common::{
    ask::{Found, QUESTIONS_MAX, Question},
    session::SessionId,
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    control::now_ns,
    local::{self, TCP_LISTEN, TCP_TIME_WAIT},
    packet::{Flags, Frame},
    unowned::closed_lately,
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
    match local::state::<V4>(ctx, &asked.tuple) {
        Some(TCP_LISTEN) if Flags(asked.flags).may_belong() && cookie_is_valid::<V4>(asked) => {
            Found::Cookie
        }
        None | Some(TCP_LISTEN) => {
            if closed_lately(SessionId(asked.id), now_ns()) {
                Found::Closed
            } else {
                Found::Nothing
            }
        }
        Some(TCP_TIME_WAIT) => Found::Closing,
        Some(_) => Found::Socket,
    }
}

/// Whether the segment acknowledges a SYN cookie of this kernel, by headers that
/// hold what the check reads.
#[inline(always)]
fn cookie_is_valid<const V4: bool>(asked: &Question) -> bool {
    let tuple = &asked.tuple;
    // SAFETY: all three headers are made of bytes and of integers, for which zero
    // is a value; the helpers read no further than to their ends.
    unsafe {
        let mut tcp: TcpHdr = zeroed();
        tcp.source = tuple.client_port.0;
        tcp.dest = tuple.service_port.0;
        tcp.seq = asked.seq;
        tcp.ack_seq = asked.ack;
        if V4 {
            let mut ip: Ipv4Hdr = zeroed();
            let (client, service) = (&tuple.client.0, &tuple.service.0);
            ip.src_addr = [client[12], client[13], client[14], client[15]];
            ip.dst_addr = [service[12], service[13], service[14], service[15]];
            bpf_tcp_raw_check_syncookie_ipv4((&raw mut ip).cast(), (&raw mut tcp).cast()) == 0
        } else {
            let mut ip: Ipv6Hdr = zeroed();
            ip.src_addr = tuple.client.0;
            ip.dst_addr = tuple.service.0;
            bpf_tcp_raw_check_syncookie_ipv6((&raw mut ip).cast(), (&raw mut tcp).cast()) == 0
        }
    }
}
