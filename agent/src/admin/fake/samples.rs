//! The answers.

use std::collections::BTreeMap;

use super::*;

pub(crate) fn sample_status() -> Status {
    Status {
        instance: "homing".to_owned(),
        host: 1,
        domain: "rack-1".to_owned(),
        version: "0.1.0".to_owned(),
        incarnation: 1_760_000_000_000,
        generation: 3,
        pid: 4711,
        uptime_s: 3_725,
        address: endpoint("10.1.1.11:7946"),
        multicast: Some(endpoint("239.77.77.77:7947")),
        tunnel: Tunnel {
            encapsulation: "ipip".to_owned(),
            network: "10.77.0.0/16".to_owned(),
            prefix: "10.77.0.16/28".to_owned(),
            address: [10, 77, 0, 16].into(),
            hop_limit: 8,
        },
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            ifindex: 2,
            mode: "native".to_owned(),
            egress: true,
        }],
        cgroup: "/sys/fs/cgroup".into(),
        services: vec![Service {
            address: endpoint("203.0.113.10:443"),
            protocol: "tcp".to_owned(),
        }],
        draining: false,
        drain: Some(drain::sample_run()),
        keys: Keys {
            signs: "5f".to_owned(),
            accepts: Some("a1".to_owned()),
            session: "5f".to_owned(),
            session_other: None,
        },
        members: Members {
            alive: 2,
            down: 1,
            left: 0,
        },
        sessions: Usage {
            count: 25,
            limit: 262_144,
        },
        foreign: Usage {
            count: 75,
            limit: 1_048_576,
        },
        foreign_bytes: 8 << 20,
        foreign_growths_failed: 0,
        gossip: Gossip {
            in_sync: true,
            synced: true,
            full: false,
            announced: 30,
            applied: 90,
            open_to_applied_us: Latency {
                p50: Some(180),
                p99: Some(950),
                samples: 90,
                sum_us: 20_000,
                buckets: vec![
                    Bucket {
                        le_us: 100,
                        count: 10,
                    },
                    Bucket {
                        le_us: 1_000,
                        count: 78,
                    },
                ],
            },
            asks: Asks {
                open: 1,
                asked: 12,
                found: 9,
                reset: 2,
                provisional: 3,
            },
        },
        carriers: CarriersSum {
            to: 2,
            from: 1,
            failing: 1,
            queued_bytes: 4_352,
        },
        apps: AppsSum {
            ready: 1,
            connecting: 1,
            services: 1,
            pending: 3,
            state_bytes: 70_000,
        },
        mux: sample_mux().sum,
        moves: MovesSum {
            from_here: 2,
            to_here: 1,
            waiting: 40,
            state_bytes: 9_000,
            parked: 5,
        },
        problems: vec!["host 3 is down since 4 s".to_owned()],
    }
}

pub(crate) fn sample_hosts() -> Vec<Host> {
    let host = |id: u8, state, next_hop, sync| Host {
        host: id.into(),
        this_host: id == 1,
        domain: Some("rack-1".to_owned()),
        state,
        kernel: match state {
            HostState::Alive => KernelState::Alive,
            _ => KernelState::Silent,
        },
        kernel_heard_unix_ms: (id > 1).then_some(1_760_000_061_000),
        draining: id == 2,
        key: Some("5f".to_owned()),
        session_keys: vec!["5f".to_owned()],
        since_unix_ms: 1_760_000_000_000,
        incarnation: 1_760_000_000_000,
        generation: 1,
        address: Some(SocketAddr::from(([10, 1, 1, 10 + id], 7946))),
        tunnel_address: [10, 77, 0, id * 16].into(),
        next_hop,
        claims: 25,
        applied_seq: 30,
        sync,
        hears_us: (id != 1).then_some(true),
    };
    let resolved = NextHop {
        resolved: true,
        via: Some([10, 1, 1, 12].into()),
        mac: Some("02:00:00:00:00:02".to_owned()),
        interface: Some("eth0".to_owned()),
        vlan: None,
        mtu: Some(1600),
    };
    let unresolved = NextHop {
        resolved: false,
        via: None,
        mac: None,
        interface: Some("eth0".to_owned()),
        vlan: None,
        mtu: None,
    };
    vec![
        host(1, HostState::Alive, None, SyncState::InSync),
        host(2, HostState::Alive, Some(resolved), SyncState::InSync),
        host(
            3,
            HostState::Down,
            Some(unresolved),
            SyncState::Gap { missing: 4 },
        ),
    ]
}

pub(crate) fn sample_stats() -> Stats {
    let verdict = |outcome: Outcome| format!("{:?}", outcome.verdict()).to_lowercase();
    let outcomes = Outcome::ALL.iter().map(|outcome| api::Outcome {
        name: outcome.label().to_owned(),
        verdict: verdict(*outcome),
        packets: u64::from(*outcome == Outcome::Forwarded) * 1234,
        help: outcome.help().trim().trim_end_matches('.').to_owned(),
    });
    let hooks = Hook::ALL.iter().map(|hook| Counter {
        name: hook.label().to_owned(),
        count: 7,
        help: hook.help().trim().trim_end_matches('.').to_owned(),
    });
    let hooks = hooks.chain(counts::beside_hooks(
        &WatchCounters::default(),
        &HeldCounters::default(),
        &FlowCounters::default(),
    ));
    let mut gossip = counts::named(gossip::no_counters());
    let applied = gossip.iter_mut();
    for counter in applied.filter(|counter| counter.name == "records_applied") {
        counter.count = 90;
    }
    let errors = BTreeMap::from([("rx_xdp_tx_errors".to_owned(), 2)]);
    Stats {
        monotonic_us: 5_000_000,
        incarnation: 1_760_000_000_000,
        generation: 3,
        outcomes: outcomes.collect(),
        hooks: hooks.collect(),
        gossip,
        carriers: counts::named(mux::Counters::default().iter()),
        apps: counts::named(app::Counters::default().iter()),
        mux: counts::named(mux::sockets::Counters::default().iter()),
        moves: counts::named(migration::Counters::default().iter()),
        steps: vec![StepTime {
            side: "source".to_owned(),
            step: "sending".to_owned(),
            times: 11,
            sum_us: 2_750_000,
            p50_us: Some(240_000),
            p99_us: Some(310_000),
        }],
        parked: counts::parked(&ParkCounters::default()),
        wrong_keys: BTreeMap::from([("77".to_owned(), 3)]),
        interfaces: BTreeMap::from([("eth0".to_owned(), errors)]),
    }
}

pub(crate) fn sample_owner(tuple: Tuple) -> Owner {
    let name = page::name(&tuple, SessionId(0x0123_4567_89ab_cdef));
    let claim = Claim {
        host: 3,
        generation: 0,
    };
    match tuple.client_port.number() {
        40312 => Owner {
            name,
            answer: Answer::OtherHost,
            owner: Some(3),
            how: "host 3 claims it (generation 0), and OWNERS has it".to_owned(),
            claims: vec![claim],
        },
        _ => Owner {
            name,
            answer: Answer::Unknown,
            owner: None,
            how: "nobody claims it".to_owned(),
            claims: vec![],
        },
    }
}

pub(crate) fn sample_carriers() -> Carriers {
    let to = |state, problem: Option<&str>| CarriersTo {
        channel: "migration".to_owned(),
        state,
        carriers: (state == CarrierState::Open).into(),
        messages: 6,
        bytes: 81_920,
        queued: problem.is_some().into(),
        queued_bytes: 4_352,
        problem: problem.map(str::to_owned),
        failing_s: problem.map(|_| 75),
    };
    let peer = |host, carriers, to| CarrierPeer {
        host,
        incarnation: 1_760_000_000_000,
        generation: 1,
        from: CarriersFrom {
            carriers,
            messages: 4 * carriers,
            bytes: 512 * carriers,
        },
        to,
    };
    Carriers {
        address: endpoint("10.1.1.11:7946"),
        key: "5f".to_owned(),
        peers: vec![
            peer(2, 1, vec![to(CarrierState::Open, None)]),
            peer(
                3,
                0,
                vec![to(CarrierState::Failing, Some("connection refused"))],
            ),
            peer(4, 0, vec![]),
        ],
    }
}

pub(crate) fn sample_mux() -> Mux {
    let service = MuxSocket {
        id: (1 << 48) | 7,
        offers: Some("orders".to_owned()),
        host: None,
        peer: None,
        sent: 12,
        held_bytes: 0,
        blocked: 0,
        unread_bytes: 300,
        waiting: 1,
        ending: false,
    };
    let client = MuxSocket {
        id: (1 << 48) | 8,
        offers: None,
        host: Some(2),
        peer: Some((2 << 48) | 9),
        sent: 5,
        held_bytes: 1160,
        blocked: 1,
        unread_bytes: 0,
        waiting: 0,
        ending: true,
    };
    let peers = sample_carriers().peers.into_iter().map(|mut peer| {
        peer.to.retain(|to| to.channel == "mux");
        peer
    });
    Mux {
        socket: "/run/homing/homing.mux.sock".into(),
        group: "www-data".to_owned(),
        encryption: true,
        message_max_bytes: 1 << 20,
        sum: MuxSum {
            services: 1,
            connected: 1,
            connecting: 0,
            blocked: 1,
            starved: 0,
            held_bytes: 1160,
            unread_bytes: 300,
            remembered: 0,
        },
        sockets: vec![service, client],
        peers: peers.collect(),
    }
}

pub(crate) fn sample_apps() -> Apps {
    let ready = App {
        id: 1,
        name: Some("line-echo".to_owned()),
        version: Some(2),
        services: sample_status().services,
        ready: true,
        pid: 4712,
        uid: 33,
        gid: 33,
        asked: 1,
        pending: 2,
    };
    let connecting = App {
        id: 2,
        name: None,
        version: None,
        services: vec![],
        ready: false,
        pid: 0,
        asked: 0,
        pending: 0,
        ..ready.clone()
    };
    Apps {
        socket: "/run/homing/homing.app.sock".into(),
        group: "www-data".to_owned(),
        state_max_bytes: 1 << 20,
        apps: vec![ready, connecting],
        turned_away: Some(TurnedAway {
            at_unix_ms: 1_760_000_000_000,
            pid: 4713,
            uid: 33,
            why: "another version of the protocol: this agent speaks version 1".to_owned(),
        }),
    }
}

/// The text of the configuration in force.
pub(crate) const EXAMPLE: &str = include_str!("../../../../dist/homing.toml");

pub(crate) fn example() -> Config {
    Config::parse("homing.toml".as_ref(), EXAMPLE).expect("the example is good")
}

/// How many sessions the fake agent has.
pub(crate) const SESSIONS: u16 = 25;

/// Every packet is forwarded.
pub(crate) fn sample_explanations(order: &ExplainOrder) -> Explanations {
    let explained = |packet: &ExplainPacket| Explained {
        packet: match packet {
            ExplainPacket::Frame(digits) => format!("a frame of {} digits", digits.len()),
            ExplainPacket::Made {
                client, service, ..
            } => format!("{client} > {service}: TCP PSH ACK, 8 bytes of payload"),
        },
        outcome: Some(Outcome::Forwarded.label().to_owned()),
        verdict: Some("forward".to_owned()),
        means: Outcome::Forwarded.help().to_owned(),
        advice: None,
        session: None,
        facts: vec![Fact {
            name: "owner".to_owned(),
            text: "host 3 claims it".to_owned(),
        }],
        goes: Some("10.77.0.16 > 10.77.0.48: IPIP".to_owned()),
        frame: Some("0200".to_owned()),
    };
    Explanations {
        interface: order.interface.clone().unwrap_or("eth0".to_owned()),
        packets: order.packets.iter().map(explained).collect(),
    }
}
