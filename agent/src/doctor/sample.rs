//! For tests: a host on which all is well.

use std::path::Path;

use super::{
    Said,
    facts::{
        AgentFacts, Clock, Facts, Holder, Host, Interface, Jit, Kernel, Key, Link, Whose, Xdp,
    },
};
use crate::{
    admin::{
        api,
        fake::{sample_hosts, sample_status},
    },
    config::{Config, XdpMode},
};

/// The host of the example configuration, with its agent.
pub(crate) fn facts() -> Facts {
    let text = include_str!("../../../dist/homing.toml");
    let config = Config::parse(Path::new("/etc/homing/homing.toml"), text);
    let config = config.expect("the example is good");
    let mut status = sample_status();
    status.version = env!("CARGO_PKG_VERSION").to_owned();
    status.problems.clear();
    let services = config.services.iter().map(|service| api::Service {
        address: (
            std::net::IpAddr::from(service.address),
            service.port.number(),
        )
            .into(),
        protocol: "tcp".to_owned(),
    });
    status.services = services.collect();
    let features = [("rx-lro", false), ("rx-gro", false)];
    let link = Link {
        up: true,
        mtu: 1600,
        driver: Ok("veth".to_owned()),
        native: Ok(Some(true)),
        xdp: Some(Xdp {
            program_id: 42,
            mode: Some(XdpMode::Native),
            whose: Whose::Ours,
        }),
        rp_filter: Ok(0),
        features: Ok(features.map(|(name, on)| (name.to_owned(), on)).into()),
        peer: Some(("h1".to_owned(), Ok(false))),
    };
    let services = config.services.iter();
    let services = services.map(|service| (service.address.into(), Ok(true)));
    Facts {
        is_root: true,
        kernel: Kernel {
            release: "6.12.0-1-amd64".to_owned(),
            btf: true,
            features: vec![("program type xdp", Ok(true))],
            jit: Ok(Jit::On),
        },
        clock: Ok(Clock {
            synchronized: true,
            now_unix_ms: 1_760_000_100_000,
        }),
        agent: Ok(AgentFacts {
            pid: Some(4711),
            in_force: Some(api::InForce::of(&config)),
            status,
            hosts: api::Hosts {
                hosts: sample_hosts(),
            },
        }),
        host: Some(Host {
            bpffs: Ok(()),
            bpffs_at: "/sys/fs/bpf".into(),
            cgroup: Ok(()),
            cgroup_mounts: vec!["/sys/fs/cgroup".into()],
            key: Key {
                usable: Ok(()),
                owner: Some(0),
            },
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                link: Ok(link),
            }],
            rp_filter_all: Ok(0),
            checksum_errors: Ok(0),
            vlans: Default::default(),
            fabric: Ok(Some(Holder {
                name: "eth0".to_owned(),
                multicast: true,
            })),
            services: services.collect(),
            pins_held_by: Ok(Some(super::facts::Process {
                pid: 4711,
                name: "homing".to_owned(),
            })),
            ports: Vec::new(),
        }),
        config: Ok(config),
    }
}

/// What its configuration names, to be changed.
pub(crate) fn host(facts: &mut Facts) -> &mut Host {
    facts.host.as_mut().expect("configured")
}

/// Its interface.
pub(crate) fn link(facts: &mut Facts) -> &mut Link {
    host(facts).interfaces[0].link.as_mut().expect("a link")
}

/// The only thing that a check says.
pub(super) fn one(said: Vec<Said>) -> Said {
    assert_eq!(said.len(), 1, "{said:?}");
    said.into_iter().next().unwrap()
}
