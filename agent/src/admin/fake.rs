//! For tests: an agent that makes its answers up.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use homing_common::{
    outcome::{Hook, Outcome},
    session::{Session, SessionId, Tuple},
};

use super::{api::*, page, *};

/// A folder of a test's own.
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("homing-test-{}-{n}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An agent that makes its answers up.
#[derive(Default)]
pub(crate) struct Fake {
    pub hangs: AtomicBool,
    pub unhealthy: AtomicBool,
    pub left: Mutex<Option<Option<Duration>>>,
    pub draining: AtomicBool,
    /// Sessions that are open; asking for the status ends one.
    pub open: AtomicU32,
}

pub(crate) fn endpoint(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}

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
        help: outcome.help().trim().to_owned(),
    });
    let hooks = Hook::ALL.iter().map(|hook| Counter {
        name: hook.label().to_owned(),
        count: 7,
        help: hook.help().trim().to_owned(),
    });
    let gossip = Counter {
        name: "records_applied".to_owned(),
        count: 90,
        help: "Announcements that were applied".to_owned(),
    };
    let errors = BTreeMap::from([("rx_xdp_tx_errors".to_owned(), 2)]);
    Stats {
        outcomes: outcomes.collect(),
        hooks: hooks.collect(),
        gossip: vec![gossip],
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

/// How many sessions the fake agent has.
pub(crate) const SESSIONS: u16 = 25;

impl View for Fake {
    async fn status(&self) -> Result<Status, Refusal> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending().await
        }
        let mut status = sample_status();
        status.draining = self.draining.load(Ordering::Relaxed);
        if status.draining {
            let one_less = |open: u32| open.checked_sub(1);
            let open = self
                .open
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
            status.sessions.count = open.unwrap_or(0).into();
        }
        Ok(status)
    }

    async fn hosts(&self) -> Result<Vec<Host>, Refusal> {
        Ok(sample_hosts())
    }

    async fn sessions(&self, after: Option<Tuple>, limit: usize) -> Result<Sessions, Refusal> {
        let mut page = page::Page::new(after, limit);
        for n in 0..SESSIONS {
            let client = SocketAddr::from(([198, 51, 100, 7], 40_000 + n));
            let tuple = Tuple::between(client, endpoint("203.0.113.10:443"), 6);
            let session = Session {
                id: SessionId(n.into()),
                cookie: n.into(),
                opened_ns: 0,
                seen_ns: 0,
                generation: 0,
                flags: 0,
            };
            page.offer(tuple, session);
        }
        Ok(page.finish(90_000_000_000))
    }

    async fn owner(&self, session: Tuple) -> Result<Owner, Refusal> {
        match session.service_port.number() {
            443 => Ok(sample_owner(session)),
            _ => Err(Refusal::NotFound(
                "203.0.113.10:80 is no service of this POP".to_owned(),
            )),
        }
    }

    async fn stats(&self) -> Result<Stats, Refusal> {
        Ok(sample_stats())
    }

    async fn health(&self) -> Result<Health, Refusal> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending().await
        }
        if self.unhealthy.load(Ordering::Relaxed) {
            let why = anyhow::anyhow!("no such map").context("cannot read STATS");
            return Err(why.into());
        }
        Ok(Health {
            healthy: true,
            problems: vec![],
        })
    }

    async fn leave(&self, hold: Option<Duration>) -> Result<(), Refusal> {
        *self.left.lock().expect("not poisoned") = Some(hold);
        Ok(())
    }

    async fn reload(&self) -> Result<Reloaded, Refusal> {
        if self.unhealthy.load(Ordering::Relaxed) {
            return Err(
                anyhow::anyhow!("the POP's key file /etc/homing/pop.key must hold a key").into(),
            );
        }
        Ok(Reloaded {
            keys: sample_status().keys,
            changed: true,
        })
    }

    async fn drain(&self, draining: bool) -> Result<Draining, Refusal> {
        self.draining.store(draining, Ordering::Relaxed);
        Ok(Draining {
            draining,
            sessions: self.open.load(Ordering::Relaxed).into(),
            takers: 1,
        })
    }
}
