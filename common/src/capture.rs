//! Capturing packets: what the agent asks of the program that does, and what that hands
//! over.

use core::mem::offset_of;

use crate::net::{Address, Port};

/// So many bytes of a frame are captured at most.
pub const SNAP_MAX: usize = 2048;
/// Bytes of the map `CAPTURED`.
pub const CAPTURED_BYTES: u32 = 8 << 20;

/// What is to be captured: the value of the map `CAPTURE`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Capture {
    /// The client, where [`Capture::CLIENT`].
    pub client: Address,
    /// The service's address, where [`Capture::SERVICE`].
    pub service: Address,
    /// A bit for each outcome that is wanted, by its index.
    pub outcomes: [u64; 4],
    /// Nothing is captured from then on: `CLOCK_MONOTONIC`, nanoseconds. The agent that
    /// reads moves it on; if it dies, capturing ends.
    pub until_ns: u64,
    /// Records at most within each window of [`crate::limit::WINDOW_SHIFT`].
    pub rate: u32,
    /// Bytes of each frame at most: `1..=SNAP_MAX`.
    pub snap: u32,
    /// The client's port, where [`Capture::CLIENT_PORT`].
    pub client_port: Port,
    /// The service's port, where [`Capture::SERVICE_PORT`].
    pub service_port: Port,
    /// Which of the fields above count.
    pub flags: u8,
    /// The protocol, where [`Capture::PROTOCOL`].
    pub protocol: u8,
    /// Always zero; makes the padding explicit.
    pub zero: [u8; 2],
}

const _: () = assert!(size_of::<Capture>() == 88 && offset_of!(Capture, flags) == 84);

impl Capture {
    /// The client is to be this one.
    pub const CLIENT: u8 = 1;
    /// The client's port is to be this one.
    pub const CLIENT_PORT: u8 = 1 << 1;
    /// The service's address is to be this one.
    pub const SERVICE: u8 = 1 << 2;
    /// The service's port is to be this one.
    pub const SERVICE_PORT: u8 = 1 << 3;
    /// The protocol is to be this one.
    pub const PROTOCOL: u8 = 1 << 4;

    /// Whether packets that end so are wanted.
    #[inline(always)]
    pub const fn wants(&self, outcome: u32) -> bool {
        self.outcomes[(outcome >> 6) as usize & 3] & 1 << (outcome & 63) != 0
    }

    /// Whether a packet with these ends is wanted. One that has no ports of its own (a
    /// fragment behind the first) is judged by its addresses.
    #[inline(always)]
    pub fn matches(&self, ends: &Ends) -> bool {
        let has = |flag| self.flags & flag != 0;
        !(has(Self::CLIENT) && self.client != ends.client
            || has(Self::SERVICE) && self.service != ends.service
            || has(Self::PROTOCOL) && self.protocol != ends.protocol
            || ends.ports
                && (has(Self::CLIENT_PORT) && self.client_port != ends.client_port
                    || has(Self::SERVICE_PORT) && self.service_port != ends.service_port))
    }
}

/// The ends of a packet, as a service sees them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub client: Address,
    /// The service's address.
    pub service: Address,
    /// Whether there are ports.
    pub ports: bool,
    /// The client's port.
    pub client_port: Port,
    /// The service's port.
    pub service_port: Port,
    /// The protocol.
    pub protocol: u8,
}

/// Head of every record in `CAPTURED`; the bytes captured of the frame as it came follow,
/// then those of the frame as it went.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Captured {
    /// When the packet came: `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// The interface that it came in by.
    pub ifindex: u32,
    /// The interface that it goes out by, where that is another; zero otherwise.
    pub out_ifindex: u32,
    /// Its outcome, by index.
    pub outcome: u32,
    /// Length of the frame as it came, bytes …
    pub came_len: u32,
    /// … and how many of them follow.
    pub came: u32,
    /// Length of the frame as it went, bytes …
    pub went_len: u32,
    /// … and how many of them follow: none where the program has not changed it.
    pub went: u32,
    /// Always zero; makes the padding explicit.
    pub zero: u32,
}

const _: () = assert!(size_of::<Captured>() == 40);

/// What capturing counted, by its index in the map `CAPTURE_STATS`.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureCount {
    /// Packets that were wanted by their ends and their outcome.
    Wanted = 0,
    /// Of these, not captured because of the limit of records in a window.
    Limited = 1,
    /// Of these, not captured because `CAPTURED` was full.
    Full = 2,
}

/// Entries of `CAPTURE_STATS`.
pub const CAPTURE_STATS_ENTRIES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{TCP, UDP};

    const NOTHING: Capture = Capture {
        client: Address([0; 16]),
        service: Address([0; 16]),
        outcomes: [0; 4],
        until_ns: 0,
        rate: 0,
        snap: 1,
        client_port: Port([0; 2]),
        service_port: Port([0; 2]),
        flags: 0,
        protocol: 0,
        zero: [0; 2],
    };

    #[test]
    fn outcomes_are_bits() {
        let wanted = Capture {
            outcomes: [1 << 12, 1 << 63, 0, 1],
            ..NOTHING
        };
        let those: Vec<_> = (0..256).filter(|&index| wanted.wants(index)).collect();
        assert_eq!(those, [12, 127, 192]);
    }

    #[test]
    fn each_part_that_counts_must_match() {
        let ends = Ends {
            client: Address::v4([198, 51, 100, 7]),
            service: Address::v4([203, 0, 113, 10]),
            ports: true,
            client_port: Port([1, 2]),
            service_port: Port([3, 4]),
            protocol: TCP,
        };
        assert!(NOTHING.matches(&ends));
        let all = Capture {
            client: ends.client,
            service: ends.service,
            client_port: ends.client_port,
            service_port: ends.service_port,
            protocol: TCP,
            flags: 0x1f,
            ..NOTHING
        };
        assert!(all.matches(&ends));
        let other = Address::v4([192, 0, 2, 1]);
        let others = [
            (
                Capture::CLIENT,
                Ends {
                    client: other,
                    ..ends
                },
            ),
            (
                Capture::SERVICE,
                Ends {
                    service: other,
                    ..ends
                },
            ),
            (
                Capture::CLIENT_PORT,
                Ends {
                    client_port: Port([9, 9]),
                    ..ends
                },
            ),
            (
                Capture::SERVICE_PORT,
                Ends {
                    service_port: Port([9, 9]),
                    ..ends
                },
            ),
            (
                Capture::PROTOCOL,
                Ends {
                    protocol: UDP,
                    ..ends
                },
            ),
        ];
        for (flag, other) in others {
            assert!(!all.matches(&other), "{flag}");
            let rest = Capture {
                flags: 0x1f & !flag,
                ..all
            };
            assert!(rest.matches(&other), "{flag}");
            let alone = Capture { flags: flag, ..all };
            assert!(!alone.matches(&other), "{flag}");
            let no_ports = Ends {
                ports: false,
                ..other
            };
            let of_ports = flag & (Capture::CLIENT_PORT | Capture::SERVICE_PORT) != 0;
            assert_eq!(all.matches(&no_ports), of_ports, "{flag}");
        }
    }
}
