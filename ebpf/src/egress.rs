//! Packets that leave this host: a classifier on the egress side of every
//! interface that XDP runs on.
//!
//! It reads the packet once and hands it to the steps that have something to do
//! with it. It sends nothing elsewhere, and drops nothing but what belongs to a session
//! that is moving: whatever else it finds or does not understand goes on its way.

use core::mem::size_of;

use aya_ebpf::programs::TcContext;
use homing_common::{
    net::{Address, Port, TCP, UDP},
    outcome::Hook,
    session::Tuple,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    flow, moving, mss,
    packet::{IPV4, IPV6, MAX_VLAN_TAGS, is_vlan},
    stats,
};

/// Whether a packet may leave.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// It may.
    Yes,
    /// Its session is moving, and this host is not the one to answer.
    No,
}

/// Takes one packet through the steps.
#[inline(always)]
pub fn handle(ctx: &TcContext) -> Leaves {
    let Some(leaving) = Leaving::parse(ctx) else {
        return Leaves::Yes;
    };
    if leaving.tuple.protocol != TCP {
        flow::flow_answered(&raw const leaving.tuple);
    } else if moving::find(&leaving.tuple).is_some() {
        stats::count(Hook::MovingSilenced.index());
        return Leaves::No;
    } else {
        mss::lower(ctx, &leaving);
    }
    Leaves::Yes
}

/// A TCP or UDP packet that leaves this host.
#[derive(Clone, Copy)]
pub struct Leaving {
    /// Its session, if it belongs to one: the packet comes from the service.
    pub tuple: Tuple,
    /// Offset of the TCP or UDP header in the packet.
    pub upper: usize,
}

impl Leaving {
    /// Reads the headers, all of which lie in the linear part of what the local
    /// stack sends. Nothing, if it is no TCP or UDP, or a fragment, or has IPv6
    /// extension headers.
    #[inline(always)]
    fn parse(ctx: &TcContext) -> Option<Self> {
        let eth: *const EthHdr = at(ctx, 0)?;
        // SAFETY: `at` has checked that the header lies within the packet.
        let mut ether_type = u16::from_be(unsafe { (*eth).ether_type });
        let mut start = size_of::<EthHdr>();
        for _ in 0..MAX_VLAN_TAGS {
            if !is_vlan(ether_type) {
                break;
            }
            let tag: *const [u8; 4] = at(ctx, start)?;
            // SAFETY: as above.
            let tag = unsafe { *tag };
            ether_type = u16::from_be_bytes([tag[2], tag[3]]);
            start += 4;
        }
        let (source, destination, protocol, upper) = match ether_type {
            IPV4 => {
                let ip: *const Ipv4Hdr = at(ctx, start)?;
                // SAFETY: as above.
                let ip = unsafe { &*ip };
                let header_len = (ip.vihl as usize & 0xf) * 4;
                let fragment = u16::from_be_bytes(ip.frags) & 0x3fff != 0;
                if header_len < size_of::<Ipv4Hdr>() || fragment {
                    return None;
                }
                let (source, destination) = (Address::v4(ip.src_addr), Address::v4(ip.dst_addr));
                (source, destination, ip.proto, start + header_len)
            }
            IPV6 => {
                let ip: *const Ipv6Hdr = at(ctx, start)?;
                // SAFETY: as above.
                let ip = unsafe { &*ip };
                let (source, destination) = (Address(ip.src_addr), Address(ip.dst_addr));
                let upper = start + size_of::<Ipv6Hdr>();
                (source, destination, ip.next_hdr, upper)
            }
            _ => return None,
        };
        if protocol != TCP && protocol != UDP {
            return None;
        }
        let ports: *const [u8; 4] = at(ctx, upper)?;
        // SAFETY: as above.
        let ports = unsafe { *ports };
        Some(Self {
            tuple: Tuple::new(
                destination,
                Port([ports[2], ports[3]]),
                source,
                Port([ports[0], ports[1]]),
                protocol,
            ),
            upper,
        })
    }
}

/// A `T` at an offset, or nothing where the packet's linear part ends before.
#[inline(always)]
pub fn at<T>(ctx: &TcContext, offset: usize) -> Option<*const T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *const T)
}
