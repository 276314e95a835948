//! Packets handed to this host's own stack that never were on a wire: bare segments in a
//! client's name, for sockets that are being restored.

use std::io;

use super::{inject::Injector, interface};

/// Ethernet's number of IPv4 and of IPv6.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Whom they come from: a locally administered address that nobody has.
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0];

/// Hands packets up. As if they had come in by the first of the host's interfaces: where
/// the kernel checks the reverse path strictly (`rp_filter` = 1), the way to clients must
/// lead over it.
#[derive(Clone)]
pub struct Stack {
    injector: Injector,
    interface: String,
}

impl Stack {
    /// By this interface.
    pub fn new(injector: Injector, interface: impl Into<String>) -> Self {
        Self {
            injector,
            interface: interface.into(),
        }
    }

    /// Hands an IP packet up.
    pub fn up(&self, packet: &[u8]) -> io::Result<()> {
        let to = interface::look_up(&self.interface)?;
        let kind = match packet.first().map(|byte| byte >> 4) {
            Some(4) => IPV4,
            _ => IPV6,
        };
        let frame = [&to.address[..], &NOBODY, &kind, packet].concat();
        self.injector.up(to.index, &frame)
    }
}
