//! What the agent sets in the kernel programs before it loads them.

use crate::{
    host::{HostId, TunnelNetwork},
    net::Address,
    session::SessionKey,
};

/// The programs' settings: one read-only global, so that the verifier knows the
/// values and drops the branches they rule out.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The key of the session-id hash.
    pub session_key: SessionKey,
    /// The key of the hash that chooses where fragments meet: it stays when that of
    /// session ids changes.
    pub fragments_key: SessionKey,
    /// The POP's tunnel network.
    pub tunnel: TunnelNetwork,
    /// This host's tunnel address.
    pub tunnel_address: Address,
    /// This host's fabric address: where agents talk, and echoes are answered.
    pub fabric: Address,
    /// This host's id.
    pub host: HostId,
    /// [`Encapsulation`](crate::host::Encapsulation) as a number.
    pub encapsulation: u8,
    /// The outer TTL or hop limit of a packet that enters the tunnel: at most so
    /// many hops, counting each host that sends it on.
    pub hop_limit: u8,
    /// The agents' UDP port, as a number.
    pub fabric_port: u16,
    /// Always zero; makes the padding explicit.
    pub zero: u16,
    /// Entries of `CLOSED`.
    pub closed_entries: u32,
    /// Entries of `FRAGMENTS`.
    pub fragments_entries: u32,
}

const _: () = assert!(size_of::<Settings>() == 112);
