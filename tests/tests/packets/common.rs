//! What the topics share.

use homing_common::{
    host::{Encapsulation, HostId, TunnelNetwork},
    outcome::Outcome,
};
use homing_tests::{
    packet::{Ip, udp},
    program::{Action, Program, Run, tunnel_v4, tunnel_v6},
};

/// All ways a POP can tunnel.
pub const TUNNELS: [(fn() -> TunnelNetwork, Encapsulation); 4] = [
    (tunnel_v4, Encapsulation::Ipip),
    (tunnel_v4, Encapsulation::Gue),
    (tunnel_v6, Encapsulation::Ipip),
    (tunnel_v6, Encapsulation::Gue),
];

/// A tunnel packet between two hosts, as the design says it must look, with
/// `entropy` in the place that its tunnel has for it.
pub fn outer(program: &Program, from: u16, to: u16, inner: &Ip, entropy: u64) -> Ip {
    let settings = program.settings();
    let mut source = settings.tunnel.address_of(HostId(from));
    let destination = settings.tunnel.address_of(HostId(to));
    let gue = settings.encapsulation == Encapsulation::Gue as u8;
    if source.is_v4() && !gue {
        source.0[15] |= (entropy & 0xf) as u8;
    }
    let flow = if source.is_v4() {
        0
    } else {
        entropy as u32 & 0xf_ffff
    };
    let mut ip = if gue {
        let port = 0xc000 | (entropy & 0x3fff) as u16;
        let body = udp(port, 6080, &inner.bytes());
        Ip::new(source.into(), destination.into(), 17, body)
    } else {
        let protocol = if inner.source.is_ipv4() { 4 } else { 41 };
        Ip::new(source.into(), destination.into(), protocol, inner.bytes())
    };
    ip.flow = flow;
    ip.tos = inner.tos & 0xfc;
    ip.ttl = 8;
    ip
}

/// Asserts a packet's end.
#[track_caller]
pub fn assert_end(run: &Run, action: Action, outcome: Outcome) {
    assert_eq!((run.action, run.outcome), (action, outcome));
}
