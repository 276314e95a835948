//! Hosts of the POP as the fast path sees them: the value of the map `HOSTS`.

use crate::net::Address;

/// The id of a host within its POP: `1..MAX_HOSTS`. Zero names no host.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostId(pub u16);

/// One more than the largest host id, and the number of entries of `HOSTS`.
pub const MAX_HOSTS: u32 = 4096;

/// The longest name of a domain, in bytes.
pub const DOMAIN_LEN_MAX: usize = 32;

/// The longest outer header in bytes: Ethernet, one VLAN tag, IPv6 and UDP.
pub const MAX_HEADER_LEN: usize = 14 + 4 + 40 + 8;

/// The UDP port of Generic UDP Encapsulation (IANA, draft-ietf-intarea-gue).
pub const GUE_PORT: u16 = 6080;

/// A host and the way to it.
///
/// Two templates stand side by side and `active` says which one is in force: the
/// agent writes the other one, flips `active` in a second update, and waits for
/// an RCU grace period before it writes again, so that a program that is still
/// copying the old template never sees it change.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// [`Host::MEMBER`] and [`Host::VOID`].
    pub flags: u32,
    /// Index (0 or 1) of the template in force.
    pub active: u32,
    /// The two templates.
    pub templates: [Template; 2],
}

impl Host {
    /// The host is a member of the POP: packets from its tunnel prefix are
    /// decapsulated.
    pub const MEMBER: u32 = 1;

    /// The host's claims are void and its entries in the table of owners are being
    /// removed: until they are, none of them counts, nor does [`Host::MEMBER`].
    pub const VOID: u32 = 2;

    /// An entry for no host.
    pub const NONE: Self = Self {
        flags: 0,
        active: 0,
        templates: [Template::NONE; 2],
    };
}

/// The outer header towards one host, computed ahead of time.
///
/// `header` holds `l2_len + l3_len` bytes, counted from the Ethernet destination.
/// In it the outer length fields, the IPv4 checksum's share of them and of the
/// TOS byte, the hop limit's share, the TOS and the per-flow entropy are zero:
/// the fast path adds just these to each packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Template {
    /// The outer header's bytes.
    pub header: [u8; 72],
    /// The interface that the host is reached through. Zero: no way is known
    /// and the template must not be used.
    pub ifindex: u32,
    /// The largest outer packet that interface takes, in bytes from the outer IP
    /// header on.
    pub mtu: u16,
    /// Ethernet header length: 14, or 18 with a VLAN tag.
    pub l2_len: u8,
    /// Outer IP (and UDP) header length: 20, 28, 40 or 48.
    pub l3_len: u8,
}

impl Template {
    /// A template that leads nowhere.
    pub const NONE: Self = Self {
        header: [0; 72],
        ifindex: 0,
        mtu: 0,
        l2_len: 0,
        l3_len: 0,
    };
}

const _: () = assert!(size_of::<Template>() == 80);
const _: () = assert!(size_of::<Host>() == 168);
const _: () = assert!(MAX_HEADER_LEN <= 72);

/// How packets travel between hosts.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encapsulation {
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213).
    Ipip = 0,
    /// IP in UDP: Generic UDP Encapsulation, variant 1 (no header of its own).
    Gue = 1,
}

/// The addresses that tunnels run between, POP-wide.
///
/// `network` is cut into one prefix per host, by host id, so that an outer source
/// address names its host: the id is `(address >> shift) & id_mask`, read from
/// the 32 bits of an IPv4 address or the upper 64 bits of an IPv6 address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TunnelNetwork {
    /// The network's first address.
    pub network: Address,
    /// The first address's leading bits as a host-order integer: 32 bits for
    /// IPv4, the upper 64 bits for IPv6.
    pub base: u64,
    /// Bits below the host id: entropy (IPv4: at most 8) or subnet bits.
    pub shift: u32,
    /// Mask of the host id after the shift.
    pub id_mask: u32,
}

const _: () = assert!(size_of::<TunnelNetwork>() == 32);

impl TunnelNetwork {
    /// Whether tunnels run over IPv4.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.network.is_v4()
    }

    /// The host whose prefix holds an outer address, given as the integer that
    /// [`TunnelNetwork`] describes; none outside of the network.
    #[inline(always)]
    pub const fn host_of(&self, address: u64) -> Option<HostId> {
        let offset = address.wrapping_sub(self.base) >> self.shift;
        if offset <= self.id_mask as u64 && offset < MAX_HOSTS as u64 {
            Some(HostId(offset as u16))
        } else {
            None
        }
    }

    /// A host's tunnel address: the first of its prefix (IPv6: the one ending in
    /// `::1`).
    pub const fn address_of(&self, host: HostId) -> Address {
        let bits = self.base + ((host.0 as u64) << self.shift);
        if self.is_v4() {
            Address::v4((bits as u32).to_be_bytes())
        } else {
            let hi = bits.to_be_bytes();
            Address([
                hi[0], hi[1], hi[2], hi[3], hi[4], hi[5], hi[6], hi[7], 0, 0, 0, 0, 0, 0, 0, 1,
            ])
        }
    }
}
