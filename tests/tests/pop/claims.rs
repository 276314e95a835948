//! The main claim: connections survive ECMP reshuffles, with every tunnel.

use homing_tests::{
    demo::{self, Options},
    lab::{Outer, Tunnel, unique},
};

fn claim(lab: &str, tunnel: Tunnel, outer: Outer) {
    let outcome = demo::play(&Options {
        hosts: 3,
        racks: 2,
        clients: 30,
        reshuffles: 3,
        tunnel,
        outer,
        download_mib: 48,
        seed: Some(1),
        lab: unique(lab),
        json: false,
        control_only: false,
    })
    .unwrap();
    assert_eq!(outcome.failures(), Vec::<String>::new(), "{outcome}");
    let homing = outcome.homing.unwrap();
    assert_eq!((homing.broken, homing.client_resets), (0, 0));
    assert!(homing.forwarded_packets.unwrap() > 100, "{homing:?}");
    assert!(
        homing
            .downloads
            .iter()
            .all(|download| download.sha256_ok && download.reshuffles > 0),
        "{homing:?}"
    );
    assert!(
        !outcome.control.download_sha256_ok,
        "the control's download survived: {:?}",
        outcome.control
    );
}

#[test]
fn ipip_over_v4() {
    claim("ipip4", Tunnel::Ipip, Outer::V4);
}

#[test]
fn gue_over_v4() {
    claim("gue4", Tunnel::Gue, Outer::V4);
}

#[test]
fn ipip_over_v6() {
    claim("ipip6", Tunnel::Ipip, Outer::V6);
}

#[test]
fn gue_over_v6() {
    claim("gue6", Tunnel::Gue, Outer::V6);
}
