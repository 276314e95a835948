//! Checks of what the interfaces' devices do for the kernel, before or behind XDP.

use super::{
    Level, Said,
    facts::{Facts, Interface, Link},
    links::each,
};
use crate::config::XdpMode;

/// Whether a feature is in force; none where there is none of this name.
fn feature(link: &Link, name: &str) -> Option<bool> {
    link.features.as_ref().ok()?.get(name).copied()
}

/// The check of a feature that cannot be read.
fn unread(link: &Link, name: &str) -> Option<Said> {
    let reason = link.features.as_ref().err()?;
    Some(Said::unknown(&format!("features of {name}"), reason))
}

pub(super) fn vlan_offload(facts: &Facts) -> Vec<Said> {
    each(facts, |_, host, Interface { name, .. }, link| {
        if let Some(said) = unread(link, name) {
            return Some(said);
        }
        let above = host.vlans.iter().filter(|(_, below)| *below == name);
        let above: Vec<_> = above.map(|(vlan, _)| vlan.as_str()).collect();
        let strips = feature(link, "rx-vlan-hw-parse") == Some(true);
        Some(match (above.is_empty(), strips) {
            (true, _) => Said::ok(format!("{name} has no VLAN interface above it")),
            (false, false) => Said::ok(format!("{name} leaves tags in place")),
            (false, true) => Said::bad(
                Level::Error,
                format!(
                    "{name} takes tags off frames ({} above it)",
                    above.join(", ")
                ),
                "XDP does not see the tag that the device took off: it forwards frames without \
                 it, on another VLAN",
                format!("ethtool -K {name} rxvlan off"),
            ),
        })
    })
}

/// Drivers of links whose other end is software, which may leave checksums for later.
const VIRTUAL: [&str; 5] = ["veth", "virtio_net", "tun", "bridge", "hv_netvsc"];

pub(super) fn checksum_offload(facts: &Facts) -> Vec<Said> {
    each(facts, |_, host, Interface { name, .. }, link| {
        let driver = link.driver.as_deref().unwrap_or_default();
        if !VIRTUAL.contains(&driver) {
            return Some(Said::ok(format!(
                "{name}: nothing is left for later on a wire"
            )));
        }
        let why = "a virtual link hands over packets whose checksum is not filled in yet; that is \
                   lost when XDP forwards them, and their owner's stack drops them as damaged";
        match &link.peer {
            Some((peer, Ok(true))) => {
                return Some(Said::bad(
                    Level::Warning,
                    format!("{peer}, the other end of {name}, leaves checksums for later"),
                    why,
                    format!("ethtool -K {peer} tx off tso off"),
                ));
            }
            Some((peer, Ok(false))) => {
                return Some(Said::ok(format!(
                    "{peer}, the other end of {name}, fills them in"
                )));
            }
            _ => {}
        }
        let fix = format!(
            "ethtool -K PORT tx off tso off  # PORT: the other end of {name}, and of each other \
             host's link, on the virtual switch or machine that it leads to"
        );
        Some(match &host.checksum_errors {
            Ok(errors) if *errors > 0 => Said::bad(
                Level::Warning,
                format!("{name} ({driver}): {errors} packets came in with a wrong checksum"),
                why,
                fix,
            ),
            Ok(_) if driver == "veth" => Said::bad(
                Level::Note,
                format!("{name} ({driver}): its other end cannot be seen from here"),
                format!("none came in so far with a wrong checksum; but {why}"),
                fix,
            ),
            Ok(_) => Said::ok(format!(
                "{name} ({driver}): none came in with a wrong checksum"
            )),
            Err(reason) => Said::unknown("wrong checksums", reason),
        })
    })
}

pub(super) fn lro(facts: &Facts) -> Vec<Said> {
    each(facts, |_, _, Interface { name, .. }, link| {
        if let Some(said) = unread(link, name) {
            return Some(said);
        }
        let on = |feature_name| feature(link, feature_name) == Some(true);
        let (what, switch) = if on("rx-lro") {
            ("large receive offload (LRO)", "lro")
        } else if on("rx-gro-hw") {
            ("receive offload in hardware (GRO-HW)", "rx-gro-hw")
        } else {
            return Some(Said::ok(format!("{name}: off")));
        };
        Some(Said::bad(
            Level::Error,
            format!("{name}: {what} is on"),
            "the device joins segments before XDP sees them: most drivers refuse XDP with it, and \
             what was joined is too long to be forwarded",
            format!("ethtool -K {name} {switch} off"),
        ))
    })
}

pub(super) fn gro(facts: &Facts) -> Vec<Said> {
    each(facts, |config, _, Interface { name, .. }, link| {
        if let Some(said) = unread(link, name) {
            return Some(said);
        }
        let on = feature(link, "rx-gro") == Some(true);
        Some(match (config.host.xdp_mode, on) {
            (_, false) => Said::ok(format!("{name}: off")),
            (XdpMode::Native, true) => Said::ok(format!("{name}: on, behind XDP")),
            (XdpMode::Skb, true) => Said::bad(
                Level::Warning,
                format!("{name}: on, with host.xdp_mode = \"skb\""),
                "in the generic path segments are joined before the program sees them, and what \
                 was joined is too long to be forwarded",
                format!("ethtool -K {name} gro off"),
            ),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        sample,
        sample::{host, link, one},
    };

    fn set(facts: &mut Facts, name: &str, on: bool) {
        let features = link(facts).features.as_mut().unwrap();
        features.insert(name.to_owned(), on);
    }

    #[test]
    fn tags_that_the_device_takes_off() {
        let mut facts = sample::facts();
        set(&mut facts, "rx-vlan-hw-parse", true);
        assert_eq!(one(vlan_offload(&facts)).level, Level::Ok);
        host(&mut facts).vlans = [("eth0.5".into(), "eth0".into())].into();
        let said = one(vlan_offload(&facts));
        assert_eq!(said.level, Level::Error);
        assert_eq!(said.fix.as_deref(), Some("ethtool -K eth0 rxvlan off"));
        set(&mut facts, "rx-vlan-hw-parse", false);
        assert_eq!(one(vlan_offload(&facts)).level, Level::Ok);
        link(&mut facts).features = Err("not permitted".to_owned());
        for check in [vlan_offload, lro, gro] {
            assert_eq!(one(check(&facts)).level, Level::Note);
        }
    }

    #[test]
    fn checksums_that_are_left_for_later() {
        let mut facts = sample::facts();
        assert_eq!(one(checksum_offload(&facts)).level, Level::Ok);
        link(&mut facts).peer = Some(("h1".to_owned(), Ok(true)));
        let said = one(checksum_offload(&facts));
        assert_eq!(said.level, Level::Warning);
        assert_eq!(said.fix.as_deref(), Some("ethtool -K h1 tx off tso off"));
        // The other end is elsewhere: only what came in tells.
        link(&mut facts).peer = None;
        assert_eq!(one(checksum_offload(&facts)).level, Level::Note);
        host(&mut facts).checksum_errors = Ok(3);
        let said = one(checksum_offload(&facts));
        assert_eq!(said.level, Level::Warning);
        assert!(
            said.seen
                .contains("3 packets came in with a wrong checksum"),
            "{said:?}"
        );
        host(&mut facts).checksum_errors = Err("not permitted".to_owned());
        assert_eq!(one(checksum_offload(&facts)).level, Level::Note);
        link(&mut facts).driver = Ok("ixgbe".to_owned());
        assert_eq!(one(checksum_offload(&facts)).level, Level::Ok);
    }

    #[test]
    fn segments_that_are_joined_before_xdp() {
        let mut facts = sample::facts();
        assert_eq!(one(lro(&facts)).level, Level::Ok);
        for (name, fix) in [
            ("rx-lro", "ethtool -K eth0 lro off"),
            ("rx-gro-hw", "ethtool -K eth0 rx-gro-hw off"),
        ] {
            set(&mut facts, name, true);
            let said = one(lro(&facts));
            assert_eq!((said.level, said.fix.as_deref()), (Level::Error, Some(fix)));
            set(&mut facts, name, false);
        }
    }

    #[test]
    fn joining_segments_harms_only_the_generic_path() {
        let mut facts = sample::facts();
        set(&mut facts, "rx-gro", true);
        assert_eq!(one(gro(&facts)).level, Level::Ok);
        facts.config.as_mut().unwrap().host.xdp_mode = XdpMode::Skb;
        let said = one(gro(&facts));
        assert_eq!(said.level, Level::Warning);
        assert_eq!(said.fix.as_deref(), Some("ethtool -K eth0 gro off"));
        set(&mut facts, "rx-gro", false);
        assert_eq!(one(gro(&facts)).level, Level::Ok);
    }
}
