//! Reading packets: Ethernet, VLAN tags, IPv4, IPv6 and TCP.
//!
//! Nothing here changes a packet, and nothing is believed that the frame's
//! length or another field contradicts.

use core::ptr::read_volatile;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use homing_common::{
    net::{Address, Port, TCP, UDP},
    outcome::Outcome,
    session::Tuple,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::encap::Inner;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// Whether an EtherType is that of a VLAN tag.
#[inline(always)]
pub const fn is_vlan(ether_type: u16) -> bool {
    ether_type == VLAN || ether_type == SERVICE_VLAN
}

/// At most so many VLAN tags are read.
pub const MAX_VLAN_TAGS: usize = 2;
/// At most so many IPv6 extension headers are read; a packet with more goes up
/// to the local stack.
const MAX_EXTENSIONS: usize = 4;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// The IPv6 fragment header.
pub const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

const UDP_LEN: usize = 8;
const TCP_MIN_LEN: usize = size_of::<TcpHdr>();

/// The bytes of a frame.
#[derive(Clone, Copy)]
pub struct Frame {
    ctx: *mut xdp_md,
    data: usize,
}

impl Frame {
    /// The frame as it is now: changing its head makes this stale.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self {
            ctx: ctx.ctx,
            data: ctx.data(),
        }
    }

    /// The context that it belongs to.
    #[inline(always)]
    pub fn ctx(&self) -> *mut xdp_md {
        self.ctx
    }

    /// Where the frame ends.
    ///
    /// Read anew for every check: from an earlier check the compiler may
    /// conclude that a later one cannot fail and leave it out, which the
    /// verifier, that reasons less far, does not accept.
    #[inline(always)]
    fn end(&self) -> usize {
        data_end(self.ctx)
    }

    /// A `T` at an offset, or nothing where the frame ends before it does.
    #[inline(always)]
    pub fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.data + offset;
        if start + size_of::<T>() > self.end() {
            return None;
        }
        Some(start as *mut T)
    }

    /// Whether the frame holds `len` bytes from `offset` on.
    #[inline(always)]
    fn holds(&self, offset: usize, len: usize) -> bool {
        self.data + offset + len <= self.end()
    }
}

/// Where a context's frame ends.
///
/// One instruction, and no other: left to itself the compiler may keep the field's
/// address in a register, and the verifier reads a context through nothing but the
/// context's own address.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn data_end(ctx: *mut xdp_md) -> usize {
    const OFFSET: usize = core::mem::offset_of!(xdp_md, data_end);
    let end: u64;
    // SAFETY: the context is valid as long as the program runs.
    unsafe {
        core::arch::asm!(
            "{end} = *(u32 *)({ctx} + {offset})",
            end = out(reg) end,
            ctx = in(reg) ctx,
            offset = const OFFSET,
            options(nostack, preserves_flags, readonly),
        );
    }
    end as usize
}

#[cfg(not(target_arch = "bpf"))]
fn data_end(ctx: *mut xdp_md) -> usize {
    // SAFETY: as above.
    unsafe { (*ctx).data_end as usize }
}

/// A frame's link layer.
#[derive(Clone, Copy)]
pub struct Link {
    /// What follows it, in host order.
    pub ether_type: u16,
    /// Its length in bytes, VLAN tags included: 14, 18 or 22.
    pub len: usize,
}

impl Link {
    /// Reads Ethernet and up to two VLAN tags.
    #[inline(always)]
    pub fn parse(frame: &Frame) -> Result<Self, Outcome> {
        let eth: *mut EthHdr = frame.at(0).ok_or(Outcome::NotIp)?;
        // SAFETY: `at` has checked that the header lies within the frame.
        let mut ether_type = u16::from_be(unsafe { (*eth).ether_type });
        let mut len = size_of::<EthHdr>();
        for _ in 0..MAX_VLAN_TAGS {
            if !is_vlan(ether_type) {
                break;
            }
            let tag: *mut [u8; 4] = frame.at(len).ok_or(Outcome::NotIp)?;
            // SAFETY: as above.
            let tag = unsafe { *tag };
            ether_type = u16::from_be_bytes([tag[2], tag[3]]);
            len += 4;
        }
        Ok(Self { ether_type, len })
    }
}

/// An IP header that has been checked against the frame.
#[derive(Clone, Copy)]
pub struct Ip {
    /// The source address.
    pub source: Address,
    /// The destination address.
    pub destination: Address,
    /// The upper protocol, after extension headers.
    pub protocol: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether it is a fragment, the first one included.
    pub fragment: bool,
    /// Offset of the IP header in the frame.
    pub start: usize,
    /// Offset of the upper protocol's header in the frame.
    pub upper: usize,
    /// Length in bytes of the IP packet, header included. The frame may be
    /// longer (Ethernet padding) but not shorter.
    pub len: usize,
}

impl Ip {
    /// Reads the IP header at `start`.
    #[inline(always)]
    pub fn parse<const V4: bool>(frame: &Frame, start: usize) -> Option<Self> {
        if V4 {
            Self::parse_v4(frame, start)
        } else {
            Self::parse_v6(frame, start)
        }
    }

    #[inline(always)]
    fn parse_v4(frame: &Frame, start: usize) -> Option<Self> {
        let header: *mut Ipv4Hdr = frame.at(start)?;
        // SAFETY: `at` has checked that the header lies within the frame; it is
        // made of bytes alone.
        let header = unsafe { &*header };
        let header_len = (header.vihl as usize & 0xf) * 4;
        let len = u16::from_be_bytes(header.tot_len) as usize;
        if header.vihl >> 4 != 4 || header_len < size_of::<Ipv4Hdr>() || len < header_len {
            return None;
        }
        if !frame.holds(start, len) {
            return None;
        }
        // "More fragments", or an offset.
        let fragment = u16::from_be_bytes(header.frags) & 0x3fff != 0;
        Some(Self {
            source: Address::v4(header.src_addr),
            destination: Address::v4(header.dst_addr),
            protocol: header.proto,
            tos: header.tos,
            ttl: header.ttl,
            fragment,
            start,
            upper: start + header_len,
            len,
        })
    }

    #[inline(always)]
    fn parse_v6(frame: &Frame, start: usize) -> Option<Self> {
        let header: *mut Ipv6Hdr = frame.at(start)?;
        // SAFETY: as in `parse_v4`.
        let header = unsafe { &*header };
        if header.vcf[0] >> 4 != 6 {
            return None;
        }
        let len = size_of::<Ipv6Hdr>() + u16::from_be_bytes(header.payload_len) as usize;
        if !frame.holds(start, len) {
            return None;
        }
        // Here `::ffff:a.b.c.d` stands for the IPv4 address, which a packet of IPv6 has
        // no business with (and Linux drops): with it, one tuple would be of no version
        // or of both.
        if is_mapped(&header.src_addr) || is_mapped(&header.dst_addr) {
            return None;
        }
        let mut ip = Self {
            source: Address(header.src_addr),
            destination: Address(header.dst_addr),
            protocol: header.next_hdr,
            tos: header.vcf[0] << 4 | header.vcf[1] >> 4,
            ttl: header.hop_limit,
            fragment: false,
            start,
            upper: start + size_of::<Ipv6Hdr>(),
            len,
        };
        if ip.protocol != TCP {
            ip.skip_extensions(frame)?;
        }
        Some(ip)
    }

    /// Moves `upper` behind the IPv6 extension headers.
    #[inline(always)]
    fn skip_extensions(&mut self, frame: &Frame) -> Option<()> {
        // Unpacked from the bits that `ipv6_upper` says.
        let upper = ipv6_upper(frame.ctx, self.upper as u32, self.protocol as u32);
        if upper & UPPER_VALID == 0 {
            return None;
        }
        self.fragment = upper & UPPER_FRAGMENT != 0;
        self.protocol = (upper >> 16) as u8;
        // The walk only goes forward, but the verifier has not seen it.
        self.upper = self.upper.max((upper & UPPER_MASK) as usize);
        (self.upper <= self.start + self.len).then_some(())
    }
}

/// Whether an address of a packet is an IPv4-mapped one.
///
/// Read apart from the copy of the address, whose words would else be kept in
/// registers, of which there are few, between here and there.
#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    let words = address.as_ptr().cast::<[u8; 4]>();
    // SAFETY: the address is four words long.
    let word = |n| u32::from_ne_bytes(unsafe { read_volatile(words.add(n)) });
    word(2).to_le() == u32::from_le_bytes([0, 0, 0xff, 0xff]) && word(0) | word(1) == 0
}

/// In what [`ipv6_upper`] returns: the upper header's offset.
pub const UPPER_MASK: u32 = 0x1fff;
/// There is a fragment header, and the offset is its own.
pub const UPPER_FRAGMENT: u32 = 1 << 30;
/// The walk stayed within the frame.
pub const UPPER_VALID: u32 = 1 << 31;

/// Walks a packet's IPv6 extension headers (RFC 8200, section 4) from the offset
/// `upper`, where a header of the kind `protocol` begins. Returns the upper
/// header's offset (bits 0 to 12), its protocol (bits 16 to 23), whether there is
/// a fragment header (bit 30), and whether the walk stayed within the frame (bit
/// 31).
///
/// A function of its own, and global: the verifier looks at it once, and not once
/// for every way that leads to it and from it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn ipv6_upper(ctx: *mut xdp_md, upper: u32, protocol: u32) -> u32 {
    let frame = Frame::of(&XdpContext::new(ctx));
    let mut upper = upper & UPPER_MASK;
    let mut protocol = protocol as u8;
    for nth in 0..MAX_EXTENSIONS {
        match protocol {
            // Hop-by-hop options stand nowhere but first: no stack reads on behind
            // others.
            HOP_BY_HOP if nth > 0 => break,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let Some(extension) = frame.at::<[u8; 4]>(upper as usize) else {
                    return 0;
                };
                // SAFETY: `at` has checked that it lies within the frame.
                let [next, units, _, segments_left] = unsafe { *extension };
                // Its destination is a stop on its way, and no session's end.
                if protocol == ROUTING && segments_left != 0 {
                    break;
                }
                protocol = next;
                upper += (units as u32 + 1) * 8;
            }
            FRAGMENT => return UPPER_VALID | UPPER_FRAGMENT | upper,
            _ => break,
        }
    }
    if upper > UPPER_MASK {
        return 0;
    }
    UPPER_VALID | (protocol as u32) << 16 | upper
}

/// A TCP segment or UDP datagram of a session.
#[derive(Clone, Copy)]
pub struct Segment {
    /// The session, seen from its service.
    pub tuple: Tuple,
    /// TCP's flags; none for UDP.
    pub flags: Flags,
    /// Offset of the IP header in the frame.
    pub start: usize,
    /// Offset of the TCP or UDP header in the frame.
    pub upper: usize,
    /// Length in bytes of the IP packet.
    pub len: usize,
    /// TOS or traffic class.
    pub tos: u8,
}

impl Segment {
    /// The packet that carries it.
    #[inline(always)]
    pub fn inner<const V4: bool>(&self) -> Inner {
        Inner {
            start: self.start,
            len: self.len,
            tos: self.tos,
            v4: V4,
        }
    }

    /// Reads the TCP header of an IP packet that is no fragment.
    #[inline(always)]
    pub fn parse(frame: &Frame, ip: &Ip) -> Option<Self> {
        if ip.upper + TCP_MIN_LEN > ip.start + ip.len {
            return None;
        }
        let header: *mut [u8; TCP_MIN_LEN] = frame.at(ip.upper)?;
        // SAFETY: `at` has checked that the header lies within the frame.
        let header = unsafe { &*header };
        let header_len = (header[12] >> 4) as usize * 4;
        if header_len < TCP_MIN_LEN || ip.upper + header_len > ip.start + ip.len {
            return None;
        }
        Some(Self {
            tuple: Tuple::new(
                ip.source,
                Port([header[0], header[1]]),
                ip.destination,
                Port([header[2], header[3]]),
                TCP,
            ),
            flags: Flags(header[13]),
            start: ip.start,
            upper: ip.upper,
            len: ip.len,
            tos: ip.tos,
        })
    }

    /// Reads the UDP header of an IP packet that is no fragment.
    #[inline(always)]
    pub fn datagram(frame: &Frame, ip: &Ip) -> Option<Self> {
        let header: *mut [u8; UDP_LEN] = frame.at(ip.upper)?;
        // SAFETY: `at` has checked that the header lies within the frame.
        let header = unsafe { *header };
        let len = u16::from_be_bytes([header[4], header[5]]) as usize;
        if len < UDP_LEN || ip.upper + len > ip.start + ip.len {
            return None;
        }
        Some(Self {
            tuple: Tuple::new(
                ip.source,
                Port([header[0], header[1]]),
                ip.destination,
                Port([header[2], header[3]]),
                UDP,
            ),
            flags: Flags(0),
            start: ip.start,
            upper: ip.upper,
            len: ip.len,
            tos: ip.tos,
        })
    }
}

/// TCP's flag byte (RFC 9293, section 3.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// A segment that opens a connection: SYN, and none of ACK, RST and FIN.
    #[inline(always)]
    pub fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// A segment that accepts a connection: SYN and ACK, and neither RST nor FIN.
    #[inline(always)]
    pub fn accepts(self) -> bool {
        let all = Self::SYN | Self::ACK | Self::RST | Self::FIN;
        self.0 & all == Self::SYN | Self::ACK
    }

    /// A segment that may belong to a session that lives, or complete its
    /// handshake: ACK, and neither SYN nor RST.
    #[inline(always)]
    pub fn may_belong(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::ACK
    }
}
