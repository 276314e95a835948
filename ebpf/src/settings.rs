//! What the agent set before it loaded the programs.

use core::{mem::offset_of, ptr::read_volatile};

use homing_common::{
    host::{HostId, TunnelNetwork},
    net::Address,
    session::SessionKey,
    settings::Settings,
};

/// Overwritten by the agent at load.
///
/// It has a section of its own: in `.rodata`, LLVM may merge it with a constant
/// that happens to have the same bytes, and the override would change both.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.cfg")]
static SETTINGS: Settings = Settings {
    session_key: SessionKey([0; 2]),
    fragments_key: SessionKey([0; 2]),
    tunnel: TunnelNetwork {
        network: Address([0; 16]),
        base: 0,
        shift: 0,
        id_mask: 0,
    },
    tunnel_address: Address([0; 16]),
    fabric: Address([0; 16]),
    host: HostId(0),
    encapsulation: 0,
    hop_limit: 0,
    fabric_port: 0,
    zero: 0,
    closed_entries: 0,
    fragments_entries: 0,
};

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $($field:ident).+;)+) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $name() -> $type {
                // SAFETY: the pointer is to an initialized static. Volatile,
                // because the agent changes it behind the compiler's back.
                unsafe { read_volatile(&raw const SETTINGS.$($field).+) }
            }
        )+
    };
}

getters! {
    /// The key of the session-id hash.
    session_key: SessionKey = session_key;
    /// The key of the hash that chooses where fragments meet.
    fragments_key: SessionKey = fragments_key;
    /// The agents' UDP port.
    fabric_port: u16 = fabric_port;
    /// This host's id.
    host: HostId = host;
    /// `Encapsulation` as a number.
    encapsulation: u8 = encapsulation;
    /// The outer TTL of a packet that enters the tunnel.
    hop_limit: u8 = hop_limit;
    /// Entries of `CLOSED`.
    closed_entries: u32 = closed_entries;
    /// Entries of `FRAGMENTS`.
    fragments_entries: u32 = fragments_entries;
    /// First bits of the tunnel network.
    tunnel_base: u64 = tunnel.base;
    /// Bits below the host id in it.
    tunnel_shift: u32 = tunnel.shift;
    /// Mask of the host id in it.
    tunnel_id_mask: u32 = tunnel.id_mask;
}

macro_rules! addresses {
    ($($(#[$doc:meta])* $name:ident = $($field:ident).+;)+) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $name() -> Address {
                // An array of bytes would be read byte by byte.
                const OFFSET: usize = offset_of!(Settings, $($field).+);
                const { assert!(OFFSET % 8 == 0) };
                // SAFETY: the static is aligned to eight bytes, and so are two words of
                // it from here on. Volatile as above.
                let words = unsafe {
                    let words = (&raw const SETTINGS).byte_add(OFFSET).cast::<u64>();
                    [read_volatile(words), read_volatile(words.add(1))]
                };
                Address::of_words(words.map(u64::from_le))
            }
        )+
    };
}

addresses! {
    /// This host's tunnel address.
    tunnel_address = tunnel_address;
    /// This host's fabric address.
    fabric = fabric;
    /// First address of the tunnel network.
    tunnel_network = tunnel.network;
}

/// The POP's tunnel network.
#[inline(always)]
pub fn tunnel() -> TunnelNetwork {
    TunnelNetwork {
        network: tunnel_network(),
        base: tunnel_base(),
        shift: tunnel_shift(),
        id_mask: tunnel_id_mask(),
    }
}
