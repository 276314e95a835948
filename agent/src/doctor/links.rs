//! Checks of the interfaces that the kernel programs run on.

use homing_common::net::UDP;

use super::{
    Level, Said,
    facts::{Facts, Host, Interface, Link, Whose},
    host::EGRESS,
    procfs,
};
use crate::{
    config::{Config, Mss, XdpMode},
    datapath::template::outer_len,
};

/// What clients' packets have at most, nearly everywhere.
const CLIENT_MTU: u32 = 1500;
/// What IPv6 carries at least (RFC 8200, section 5): a client told of less does not believe it.
const IPV6_MTU_MIN: u32 = 1280;
/// What every host takes over IPv4 (RFC 791).
const IPV4_MTU_MIN: u32 = 576;
/// A packet, its headroom and what the kernel keeps behind it share a page of 4,096 bytes:
/// with a longer MTU most drivers refuse programs that take a packet in one piece.
const XDP_MTU_MAX: u32 = 3498;
/// IP and TCP headers without options, over IPv6.
const HEADERS_LEN: u32 = 40 + 20;

/// A check of each interface that is there, by its name.
pub(super) fn each(
    facts: &Facts,
    check: impl Fn(&Config, &Host, &Interface, &Link) -> Option<Said>,
) -> Vec<Said> {
    let Some((config, host)) = facts.configured() else {
        return Vec::new();
    };
    let interfaces = host.interfaces.iter();
    let said = interfaces.filter_map(|interface| {
        let link = interface.link.as_ref().ok()?;
        check(config, host, interface, link)
    });
    said.collect()
}

pub(super) fn interface(facts: &Facts) -> Vec<Said> {
    let Some((config, host)) = facts.configured() else {
        return Vec::new();
    };
    let file = config.path.display();
    let said = host.interfaces.iter().map(|Interface { name, link }| match link {
        Ok(link) if link.up => Said::ok(format!("{name} is up")),
        Ok(_) => Said::bad(
            Level::Error,
            format!("{name} is down or has no carrier"),
            "no packet comes in by it",
            format!("ip link set dev {name} up  # and look at its cable or its switch"),
        ),
        Err(reason) => Said::bad(
            Level::Error,
            format!("{name}: {reason}"),
            "the agent attaches its programs to the interfaces of host.interfaces, and does not \
             start without one of them",
            format!("ip -brief link  # then correct host.interfaces in {file}"),
        ),
    });
    said.collect()
}

pub(super) fn native_xdp(facts: &Facts) -> Vec<Said> {
    each(facts, |config, _, Interface { name, .. }, link| {
        let driver = match &link.driver {
            Ok(driver) => format!("{name} (driver {driver})"),
            Err(_) => name.clone(),
        };
        let file = config.path.display();
        let runs = link.xdp.as_ref().and_then(|xdp| xdp.mode) == Some(XdpMode::Native);
        Some(match (config.host.xdp_mode, &link.native) {
            (XdpMode::Native, _) if runs => Said::ok(driver),
            (XdpMode::Native, Ok(Some(true))) => Said::ok(driver),
            (XdpMode::Native, Ok(Some(false))) => Said::bad(
                Level::Error,
                format!("{driver} has no native XDP"),
                "host.xdp_mode is \"native\": the agent does not start",
                format!("in {file} set host.xdp_mode = \"skb\", or name another interface"),
            ),
            (XdpMode::Skb, Ok(Some(true))) => Said::bad(
                Level::Note,
                format!("{driver} has native XDP, host.xdp_mode is \"skb\""),
                "in the driver a packet costs a fraction of what it does in the generic path",
                format!(
                    "in {file} set host.xdp_mode = \"native\"; then `systemctl restart homing`"
                ),
            ),
            (XdpMode::Skb, _) => Said::ok(format!("{driver}: in the generic path")),
            (_, Ok(None)) => Said::unknown(&driver, "kernels before 6.3 do not say"),
            (_, Err(reason)) => Said::unknown(&driver, reason),
        })
    })
}

pub(super) fn xdp_program(facts: &Facts) -> Vec<Said> {
    each(facts, |config, _, Interface { name, .. }, link| {
        let Some(xdp) = &link.xdp else {
            return Some(Said::ok(format!("{name} runs none")));
        };
        let id = xdp.program_id;
        let wanted = config.host.xdp_mode;
        match &xdp.whose {
            Whose::Ours if xdp.mode == Some(wanted) => {
                Some(Said::ok(format!("{name} runs Homing's (id {id})")))
            }
            Whose::Ours => Some(Said::bad(
                Level::Warning,
                format!(
                    "{name} runs Homing's {}, host.xdp_mode is \"{}\"",
                    match xdp.mode {
                        Some(XdpMode::Native) => "in the driver",
                        Some(XdpMode::Skb) => "in the generic path",
                        None => "elsewhere",
                    },
                    wanted.label()
                ),
                "the mode was changed since the agent's start",
                "systemctl restart homing",
            )),
            // Said by the check of other instances.
            Whose::Instance(_) => None,
            Whose::Other => Some(Said::bad(
                Level::Error,
                format!("{name} runs another XDP program (id {id})"),
                "an interface has room for one: Homing's cannot be attached",
                format!(
                    "ip link set dev {name} {} off  # `bpftool prog show id {id}` and `bpftool \
                     link` say whose it is",
                    match xdp.mode {
                        Some(XdpMode::Native) => "xdpdrv",
                        Some(XdpMode::Skb) => "xdpgeneric",
                        None => "xdp",
                    }
                ),
            )),
        }
    })
}

pub(super) fn mtu(facts: &Facts) -> Vec<Said> {
    let Some((config, _)) = facts.configured() else {
        return Vec::new();
    };
    let outer = u32::from(outer_len(
        config.tunnel.encapsulation,
        &config.tunnel.network,
    ));
    let mut said = each(facts, |_, _, Interface { name, .. }, link| {
        let seen = format!("{name} has {}", link.mtu);
        let wanted = CLIENT_MTU + outer;
        let fix = format!(
            "ip link set dev {name} mtu {wanted}  # on all hosts, and what is between them"
        );
        let runs = link.xdp.as_ref().and_then(|xdp| xdp.mode) == Some(XdpMode::Native);
        Some(
            if link.mtu > XDP_MTU_MAX && config.host.xdp_mode == XdpMode::Native && !runs {
                Said::bad(
                    Level::Warning,
                    seen,
                    format!("with an MTU over {XDP_MTU_MAX} most drivers refuse XDP"),
                    format!("ip link set dev {name} mtu {XDP_MTU_MAX}"),
                )
            } else {
                narrow(facts, config, outer, link.mtu, seen, fix)
            },
        )
    });
    let ways = facts.agent.iter().flat_map(|agent| &agent.hosts.hosts);
    for host in ways {
        let way = host.next_hop.as_ref().filter(|way| way.resolved);
        let Some((way, mtu)) = way.and_then(|way| Some((way, u32::from(way.mtu?)))) else {
            continue;
        };
        // What the interface itself carries has been judged.
        let interface = way.interface.as_ref();
        let own = facts
            .configured()
            .into_iter()
            .flat_map(|(_, host)| &host.interfaces);
        let mut own = own.filter(|own| Some(&own.name) == interface);
        let own = own.find_map(|own| Some(own.link.as_ref().ok()?.mtu));
        if own.is_some_and(|own| own <= mtu) {
            continue;
        }
        let to = host
            .address
            .map_or("its address".to_owned(), |to| to.ip().to_string());
        let seen = format!("the way to host {} has {mtu}", host.host);
        let fix = format!("ip route get {to}  # names the interface or route to raise it on");
        let way = narrow(facts, config, outer, mtu, seen, fix);
        said.extend(Some(way).filter(|way| way.level > Level::Ok));
    }
    said
}

/// Judges whether the packets of clients fit into the tunnel by a link.
fn narrow(facts: &Facts, config: &Config, outer: u32, mtu: u32, seen: String, fix: String) -> Said {
    let room = mtu.saturating_sub(outer);
    let v6 = config
        .services
        .iter()
        .any(|service| !service.address.is_v4());
    let least = if v6 || !config.tunnel.network.is_v4() {
        IPV6_MTU_MIN
    } else {
        IPV4_MTU_MIN
    };
    let with = format!("with {outer} bytes of outer header {room} are left for a packet");
    if room >= CLIENT_MTU {
        return Said::ok(format!("{seen}, the outer header takes {outer}"));
    }
    if room < least {
        return Said::bad(
            Level::Error,
            seen,
            format!("{with}, less than the {least} that clients may rely on"),
            fix,
        );
    }
    let udp = config
        .services
        .iter()
        .any(|service| service.protocol == UDP);
    let old = procfs::version(&facts.kernel.release).is_some_and(|version| version < EGRESS);
    let (level, why) = match config.tunnel.mss {
        Mss::Off => (
            Level::Warning,
            "tunnel.mss is \"off\", so clients send more",
        ),
        Mss::Fixed(mss) if u32::from(mss) + HEADERS_LEN > room => {
            (Level::Warning, "tunnel.mss lets clients send more")
        }
        _ if old => (
            Level::Warning,
            "this kernel cannot lower the MSS that services offer, so clients send more",
        ),
        _ if udp => (
            Level::Warning,
            "TCP services offer a smaller MSS, but clients of UDP services send more",
        ),
        _ => (
            Level::Note,
            "services offer a smaller MSS, so that segments fit",
        ),
    };
    Said::bad(
        level,
        seen,
        format!(
            "{with}: {why}; a packet that does not fit is dropped, and its sender told by ICMP"
        ),
        fix,
    )
}

pub(super) fn rp_filter(facts: &Facts) -> Vec<Said> {
    let of_v4 = |config: &Config| {
        config
            .services
            .iter()
            .any(|service| service.address.is_v4())
    };
    each(facts, |config, host, Interface { name, .. }, link| {
        // There is none for IPv6.
        of_v4(config).then_some(())?;
        let (all, own) = match (&host.rp_filter_all, &link.rp_filter) {
            (Ok(all), Ok(own)) => (*all, *own),
            (Err(reason), _) | (_, Err(reason)) => {
                return Some(Said::unknown(&format!("rp_filter of {name}"), reason));
            }
        };
        // The kernel takes the larger one; 2 is loose.
        Some(match all.max(own) {
            1 => Said::bad(
                Level::Warning,
                format!("{name}: strict (all {all}, {name} {own})"),
                "a packet that came through the tunnel keeps its client's address, and the kernel \
                 drops it without a word unless the way back to that client leads out by this \
                 very interface",
                "sysctl -w net.ipv4.conf.all.rp_filter=2  # loose; for good: the same line in \
                 /etc/sysctl.d/90-homing.conf",
            ),
            value => Said::ok(format!(
                "{name}: {}",
                if value == 0 { "off" } else { "loose" }
            )),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        facts::Xdp,
        sample,
        sample::{host, link, one},
    };

    #[test]
    fn an_interface_that_is_missing_or_down() {
        let mut facts = sample::facts();
        assert_eq!(one(interface(&facts)).level, Level::Ok);
        link(&mut facts).up = false;
        let said = one(interface(&facts));
        assert_eq!(said.level, Level::Error);
        assert!(said.fix.unwrap().starts_with("ip link set dev eth0 up"));
        host(&mut facts).interfaces[0].link = Err("No such device".to_owned());
        let said = one(interface(&facts));
        assert_eq!(
            (said.level, said.seen.as_str()),
            (Level::Error, "eth0: No such device")
        );
        // Nothing else can be said of it.
        assert_eq!(mtu(&facts), []);
    }

    #[test]
    fn a_driver_without_xdp_or_one_that_could_do_better() {
        let mut facts = sample::facts();
        assert_eq!(one(native_xdp(&facts)).level, Level::Ok);
        link(&mut facts).native = Ok(Some(false));
        // It runs there: whatever the kernel says.
        assert_eq!(one(native_xdp(&facts)).level, Level::Ok);
        link(&mut facts).xdp = None;
        let said = one(native_xdp(&facts));
        assert_eq!(said.level, Level::Error);
        assert_eq!(said.seen, "eth0 (driver veth) has no native XDP");
        assert!(said.fix.unwrap().contains("host.xdp_mode = \"skb\""));
        link(&mut facts).native = Ok(None);
        assert_eq!(one(native_xdp(&facts)).level, Level::Note);
        facts.config.as_mut().unwrap().host.xdp_mode = XdpMode::Skb;
        assert_eq!(one(native_xdp(&facts)).level, Level::Ok);
        link(&mut facts).native = Ok(Some(true));
        assert_eq!(one(native_xdp(&facts)).level, Level::Note);
    }

    #[test]
    fn a_program_of_somebody_else() {
        let mut facts = sample::facts();
        assert_eq!(one(xdp_program(&facts)).level, Level::Ok);
        let xdp = |whose, mode| {
            Some(Xdp {
                program_id: 7,
                mode: Some(mode),
                whose,
            })
        };
        link(&mut facts).xdp = xdp(Whose::Ours, XdpMode::Skb);
        assert_eq!(one(xdp_program(&facts)).level, Level::Warning);
        link(&mut facts).xdp = xdp(Whose::Other, XdpMode::Native);
        let said = one(xdp_program(&facts));
        assert_eq!(said.level, Level::Error);
        assert!(
            said.fix
                .unwrap()
                .starts_with("ip link set dev eth0 xdpdrv off ")
        );
        link(&mut facts).xdp = xdp(Whose::Instance("b".into()), XdpMode::Native);
        assert_eq!(xdp_program(&facts), []);
        link(&mut facts).xdp = None;
        assert_eq!(one(xdp_program(&facts)).level, Level::Ok);
    }

    #[test]
    fn an_mtu_that_the_outer_header_does_not_fit_into() {
        let mut facts = sample::facts();
        for (bytes, level) in [
            (1600, Level::Ok),
            (1520, Level::Ok),
            (1519, Level::Note),
            (1500, Level::Note),
            (1300, Level::Note),
            // One of the services is over IPv6.
            (1299, Level::Error),
        ] {
            link(&mut facts).mtu = bytes;
            assert_eq!(one(mtu(&facts)).level, level, "{bytes}");
        }
        link(&mut facts).mtu = 1500;
        let said = one(mtu(&facts));
        assert!(
            said.fix
                .unwrap()
                .starts_with("ip link set dev eth0 mtu 1520 ")
        );
        assert!(
            said.why
                .unwrap()
                .contains("20 bytes of outer header 1480 are left")
        );

        // Who may send more all the same makes it worse.
        let config = |facts: &mut Facts, change: fn(&mut Config)| {
            change(facts.config.as_mut().unwrap());
            one(mtu(facts)).level
        };
        assert_eq!(
            config(&mut facts, |c| c.tunnel.mss = Mss::Off),
            Level::Warning
        );
        assert_eq!(
            config(&mut facts, |c| c.tunnel.mss = Mss::Fixed(1421)),
            Level::Warning
        );
        assert_eq!(
            config(&mut facts, |c| c.tunnel.mss = Mss::Fixed(1420)),
            Level::Note
        );
        assert_eq!(
            config(&mut facts, |c| c.services[0].protocol = UDP),
            Level::Warning
        );
        facts.kernel.release = "6.1.0".to_owned();
        assert_eq!(
            config(&mut facts, |c| c.services[0].protocol = 6),
            Level::Warning
        );
    }

    #[test]
    fn an_mtu_too_large_for_xdp() {
        let mut facts = sample::facts();
        link(&mut facts).mtu = 9000;
        // It runs: this driver takes it.
        assert_eq!(one(mtu(&facts)).level, Level::Ok);
        link(&mut facts).xdp = None;
        assert_eq!(one(mtu(&facts)).level, Level::Warning);
        facts.config.as_mut().unwrap().host.xdp_mode = XdpMode::Skb;
        assert_eq!(one(mtu(&facts)).level, Level::Ok);
    }

    #[test]
    fn a_way_that_is_narrower_than_the_interface() {
        let mut facts = sample::facts();
        let hosts = &mut facts.agent.as_mut().unwrap().hosts.hosts;
        hosts[1].next_hop.as_mut().unwrap().mtu = Some(1500);
        let said = mtu(&facts);
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(
            (said[1].level, said[1].seen.as_str()),
            (Level::Note, "the way to host 2 has 1500")
        );
        assert!(
            said[1]
                .fix
                .as_ref()
                .unwrap()
                .starts_with("ip route get 10.1.1.12 ")
        );
        // The interface's own is told once.
        link(&mut facts).mtu = 1500;
        assert!(one(mtu(&facts)).seen.starts_with("eth0 has 1500"));
    }

    #[test]
    fn a_strict_reverse_path_filter() {
        let mut facts = sample::facts();
        for (all, own, level) in [
            (0, 0, Level::Ok),
            (2, 1, Level::Ok),
            (1, 2, Level::Ok),
            (1, 0, Level::Warning),
            (0, 1, Level::Warning),
        ] {
            host(&mut facts).rp_filter_all = Ok(all);
            link(&mut facts).rp_filter = Ok(own);
            assert_eq!(one(rp_filter(&facts)).level, level, "{all} {own}");
        }
        let fix = one(rp_filter(&facts)).fix.unwrap();
        assert!(
            fix.starts_with("sysctl -w net.ipv4.conf.all.rp_filter=2"),
            "{fix}"
        );
        link(&mut facts).rp_filter = Err("not permitted".to_owned());
        assert_eq!(one(rp_filter(&facts)).level, Level::Note);
        let services = &mut facts.config.as_mut().unwrap().services;
        services.retain(|service| !service.address.is_v4());
        assert_eq!(rp_filter(&facts), []);
    }
}
