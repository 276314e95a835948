//! Answers to hosts that ask whether this kernel lives (see
//! [`homing_common::echo`]). No part of it needs the agent to be up.

use core::ptr::read_volatile;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use homing_common::{
    echo::Echo,
    host::HostId,
    limit::Limit,
    net::{Address, UDP},
    outcome::Outcome,
    session::SessionKey,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    checksum, control, hosts, limit,
    maps::CONTROL,
    packet::{Frame, Ip},
    settings,
};

const UDP_LEN: usize = 8;
/// TTL and hop limit of answers.
const TTL: u8 = 64;

/// Decides the way of a UDP packet: a question is answered, all else is none of
/// the fast path's business.
#[inline(always)]
pub fn handle(ctx: &XdpContext, frame: &Frame, ip: &Ip) -> Outcome {
    if ip.destination != settings::fabric() {
        return Outcome::NotService;
    }
    let Some(start) = frame.at::<[u8; UDP_LEN + Echo::MAGIC.len()]>(ip.upper) else {
        return Outcome::NotService;
    };
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let [_, _, p0, p1, l0, l1, _, _, m0, m1, m2, m3] = unsafe { *start };
    let port = u16::from_be_bytes([p0, p1]);
    if port != settings::fabric_port() || [m0, m1, m2, m3] != Echo::MAGIC {
        return Outcome::NotService;
    }
    let header_len = if settings::fabric().is_v4() { 20 } else { 40 };
    let len = UDP_LEN + Echo::LEN;
    if u16::from_be_bytes([l0, l1]) as usize != len
        || ip.len != header_len + len
        || ip.upper != ip.start + header_len
    {
        return Outcome::EchoRefused;
    }
    Outcome::of_index(echo(ctx.ctx, ip.start as u32)).unwrap_or(Outcome::EchoRefused)
}

/// Answers the question whose IP header, without options, begins at `start`, in
/// place. Returns the number of an outcome.
///
/// A function of its own, and global: the verifier looks at it once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn echo(ctx: *mut xdp_md, start: u32) -> u32 {
    let frame = Frame::of(&XdpContext::new(ctx));
    let start = (start & 0xff) as usize;
    let answered = if settings::fabric().is_v4() {
        answer_v4(&frame, start)
    } else {
        answer_v6(&frame, start)
    };
    match answered {
        Ok(()) => Outcome::EchoAnswered as u32,
        Err(outcome) => outcome as u32,
    }
}

/// A question as it lies in a frame, and an answer.
#[repr(C)]
struct Packet<I> {
    ip: I,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    len: [u8; 2],
    checksum: [u8; 2],
    echo: Echo,
}

#[inline(always)]
fn answer_v4(frame: &Frame, start: usize) -> Result<(), Outcome> {
    let packet: *mut Packet<Ipv4Hdr> = frame.at(start).ok_or(Outcome::EchoRefused)?;
    // SAFETY: `at` has checked that it lies within the frame; it is made of bytes
    // alone.
    let packet = unsafe { &mut *packet };
    let asker = Address::v4(packet.ip.src_addr);
    answer(&mut packet.echo, &asker)?;
    turn_round(frame)?;
    swap::<4, 2>(&mut packet.ip.src_addr, &mut packet.ip.dst_addr);
    packet.ip.ttl = TTL;
    packet.ip.check = [0; 2];
    // SAFETY: an IPv4 header without options is five words long.
    let words = unsafe { (&raw const packet.ip).cast::<[u32; 5]>().read_unaligned() };
    packet.ip.check = checksum::ipv4_header(words).to_ne_bytes();
    packet.turn_round();
    // SAFETY: source address, destination address, UDP header and echo are 48
    // bytes that follow each other.
    let sum = unsafe { sum::<12>((&raw const packet.ip.src_addr).cast()) };
    packet.checksum = udp_checksum(sum);
    Ok(())
}

#[inline(always)]
fn answer_v6(frame: &Frame, start: usize) -> Result<(), Outcome> {
    let packet: *mut Packet<Ipv6Hdr> = frame.at(start).ok_or(Outcome::EchoRefused)?;
    // SAFETY: as in `answer_v4`.
    let packet = unsafe { &mut *packet };
    let asker = Address(packet.ip.src_addr);
    answer(&mut packet.echo, &asker)?;
    turn_round(frame)?;
    swap::<16, 8>(&mut packet.ip.src_addr, &mut packet.ip.dst_addr);
    packet.ip.hop_limit = TTL;
    packet.turn_round();
    // SAFETY: source address, destination address, UDP header and echo are 72
    // bytes that follow each other.
    let sum = unsafe { sum::<18>((&raw const packet.ip.src_addr).cast()) };
    packet.checksum = udp_checksum(sum);
    Ok(())
}

impl<I> Packet<I> {
    /// Makes the UDP part that of the answer, but for its checksum.
    #[inline(always)]
    fn turn_round(&mut self) {
        swap::<2, 1>(&mut self.source_port, &mut self.destination_port);
        self.checksum = [0; 2];
    }
}

/// Makes a question its answer, if it deserves one.
#[inline(always)]
fn answer(question: &mut Echo, asker: &Address) -> Result<(), Outcome> {
    if question.incarnation != [0; 8] {
        // An answer, which the agent waits for.
        return Err(Outcome::NotService);
    }
    let (me, from) = (settings::host(), HostId(u16::from_be_bytes(question.from)));
    if question.to != me.0.to_be_bytes() || from == me || !is_member(from) {
        return Err(Outcome::EchoRefused);
    }
    let key = key_of(question, asker).ok_or(Outcome::EchoRefused)?;
    let incarnation = control::incarnation();
    if incarnation == 0 {
        return Err(Outcome::EchoRefused);
    }
    if !limit::take(Limit::Echo(from), control::now_ns()) {
        return Err(Outcome::EchoLimited);
    }
    // In place: a copy would go over the stack, in pieces that do not lie where
    // their size asks for, and the verifier refuses that.
    question.incarnation = incarnation.to_be_bytes();
    question.tag = question.tag(asker, &key);
    Ok(())
}

#[inline(always)]
fn is_member(host: HostId) -> bool {
    host.0 != 0 && hosts::member(host).is_some()
}

/// The key that a question was signed with.
#[inline(always)]
fn key_of(question: &Echo, asker: &Address) -> Option<SessionKey> {
    let control = CONTROL.get_ptr(0)?;
    let mut n = 0;
    while n < 2 {
        // SAFETY: the pointer is to the map's one value. A key that the agent
        // changes meanwhile does not fit, and the question is asked again.
        let key = unsafe { read_volatile(&raw const (*control).echo_keys[n]) };
        if key != SessionKey([0; 2]) && question.tag(asker, &key) == question.tag {
            return Some(key);
        }
        n += 1;
    }
    None
}

/// Sends the frame back to where it came from.
#[inline(always)]
fn turn_round(frame: &Frame) -> Result<(), Outcome> {
    let addresses: *mut [[u8; 6]; 2] = frame.at(0).ok_or(Outcome::EchoRefused)?;
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let [destination, source] = unsafe { &mut *addresses };
    swap::<6, 3>(destination, source);
    Ok(())
}

/// Swaps `N` bytes, which are `WORDS` words of two. Not [`core::mem::swap`], which
/// goes over the stack: see [`answer`].
#[inline(always)]
fn swap<const N: usize, const WORDS: usize>(a: &mut [u8; N], b: &mut [u8; N]) {
    const { assert!(N == WORDS * 2) };
    let (a, b) = (a.as_mut_ptr().cast::<u16>(), b.as_mut_ptr().cast::<u16>());
    let mut n = 0;
    while n < WORDS {
        // SAFETY: both arrays hold that many words.
        unsafe {
            let (from_a, from_b) = (a.add(n).read_unaligned(), b.add(n).read_unaligned());
            a.add(n).write_unaligned(from_b);
            b.add(n).write_unaligned(from_a);
        }
        n += 1;
    }
}

/// Sums words as they lie in memory.
///
/// # Safety
///
/// `words` must point to `N` words.
#[inline(always)]
unsafe fn sum<const N: usize>(words: *const [u8; 4]) -> u64 {
    let mut sum = 0;
    let mut n = 0;
    while n < N {
        // SAFETY: the caller's promise.
        sum += u32::from_ne_bytes(unsafe { *words.add(n) }) as u64;
        n += 1;
    }
    sum
}

/// The checksum over the pseudo-header, of whose addresses and the rest of the
/// packet the sum is given (RFC 768, RFC 8200).
#[inline(always)]
fn udp_checksum(sum: u64) -> [u8; 2] {
    let rest = (UDP as u32).to_be() as u64 + ((UDP_LEN + Echo::LEN) as u32).to_be() as u64;
    match checksum::of_sum(sum + rest) {
        // Zero would say that there is none.
        0 => [0xff; 2],
        checksum => checksum.to_ne_bytes(),
    }
}
