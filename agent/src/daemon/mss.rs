//! The largest MSS that services offer: so that a client's segments fit into the tunnel,
//! whatever host they land on.

use std::io;

use tokio::sync::watch;

use crate::{
    config::Mss,
    datapath::{
        control::ControlMap,
        interface_mtu,
        resolver::{Resolver, Ways},
    },
};

const IPV4_LEN: u16 = 20;
const IPV6_LEN: u16 = 40;
const TCP_LEN: u16 = 20;

/// Keeps the limits in `CONTROL` right while ways, and what is wanted, change. `interfaces` are those that
/// packets of services come in by: others may come to use what they can carry.
pub(super) async fn follow(
    mut mss: watch::Receiver<Mss>,
    outer_len: u16,
    interfaces: Vec<String>,
    mut ways: Resolver,
    control: ControlMap,
) -> io::Result<()> {
    let mut told = None;
    let mut known = ways.ways();
    loop {
        let wanted = *mss.borrow_and_update();
        let (v4, v6) = match wanted {
            Mss::Auto => {
                let own = interfaces.iter().filter_map(|name| interface_mtu(name));
                allowed(own.min(), &known, outer_len)
            }
            Mss::Fixed(mss) => (mss, mss),
            Mss::Off => (0, 0),
        };
        if told != Some((v4, v6)) {
            control.set_mss(v4, v6);
            tracing::info!(v4, v6, "the largest MSS that services offer");
            told = Some((v4, v6));
        }
        tokio::select! {
            changed = ways.changed() => known = changed,
            Ok(()) = mss.changed() => {}
        }
    }
}

/// The largest MSS over IPv4 and over IPv6 for which segments fit into the tunnel on
/// this host's interfaces and on all ways. Zero: nothing is known, or less would be left
/// than every host takes anyway.
fn allowed(own: Option<u16>, ways: &Ways, outer_len: u16) -> (u16, u16) {
    let mtus = ways.values().filter_map(|way| way.mtu).chain(own);
    let Some(mtu) = mtus.min() else {
        return (0, 0);
    };
    let room = |ip_len: u16| {
        let mss = mtu.saturating_sub(outer_len + ip_len + TCP_LEN);
        if mss < 536 { 0 } else { mss }
    };
    (room(IPV4_LEN), room(IPV6_LEN))
}

#[cfg(test)]
mod tests {
    use homing_common::host::HostId;

    use super::*;
    use crate::datapath::resolver::{State, Way};

    fn ways(mtus: &[Option<u16>]) -> Ways {
        let way = |(n, mtu): (usize, &Option<u16>)| {
            let way = Way {
                address: [10, 1, 1, n as u8].into(),
                next_hop: None,
                mac: None,
                interface: None,
                mtu: *mtu,
                state: State::Resolved,
            };
            (HostId(n as u16 + 1), way)
        };
        mtus.iter().enumerate().map(way).collect()
    }

    #[test]
    fn the_narrowest_way_counts_and_so_do_all_headers() {
        let some = ways(&[Some(1600), None, Some(1500), Some(9000)]);
        assert_eq!(allowed(Some(9000), &some, 20), (1440, 1420));
        assert_eq!(allowed(Some(1480), &some, 48), (1392, 1372));
        assert_eq!(allowed(Some(1600), &ways(&[]), 20), (1540, 1520));
    }

    #[test]
    fn what_is_unknown_or_leaves_too_little_sets_no_limit() {
        assert_eq!(allowed(None, &ways(&[None]), 20), (0, 0));
        assert_eq!(allowed(Some(600), &ways(&[]), 20), (540, 0));
    }
}
