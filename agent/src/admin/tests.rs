//! The server over a real Unix socket, with an agent that makes its answers up.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use homing_common::{
    outcome::{Hook, Outcome},
    session::{Session, SessionId, Tuple},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
};

use super::{api::*, page, server, socket::AdminSocket, *};

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
        }],
        cgroup: "/sys/fs/cgroup".into(),
        services: vec![Service {
            address: endpoint("203.0.113.10:443"),
            protocol: "tcp".to_owned(),
        }],
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
        gossip: Gossip {
            in_sync: true,
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
        since_unix_ms: 1_760_000_000_000,
        incarnation: 1_760_000_000_000,
        generation: 1,
        address: SocketAddr::from(([10, 1, 1, 10 + id], 7946)),
        tunnel_address: [10, 77, 0, id * 16].into(),
        next_hop,
        claims: 25,
        applied_seq: 30,
        sync,
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
const SESSIONS: u16 = 25;

impl View for Fake {
    async fn status(&self) -> Result<Status, Refusal> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending().await
        }
        Ok(sample_status())
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
                generation: 0,
                zero: 0,
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
}

/// A fake agent that serves on a socket of its own.
pub(crate) struct Served {
    _folder: Folder,
    pub path: PathBuf,
    pub view: Arc<Fake>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Served {
    pub(crate) fn new() -> Self {
        let folder = Folder::new();
        let path = folder.0.join("admin.sock");
        let view = Arc::new(Fake::default());
        let socket = AdminSocket::bind(&path).expect("bind");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server::serve(socket, Arc::clone(&view), async {
            let _ = stopped.await;
        }));
        Self {
            _folder: folder,
            path,
            view,
            stop: Some(stop),
            task,
        }
    }

    async fn stop(mut self) {
        let _ = self.stop.take().expect("once").send(());
        tokio::time::timeout(Duration::from_secs(5), self.task)
            .await
            .expect("in time")
            .expect("no panic");
        assert!(!self.path.exists());
    }
}

/// Status and body of one request, byte by byte as `curl` would send it.
async fn ask(path: &Path, request: &str, header: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(path).await.expect("connect");
    let text = format!("{request} HTTP/1.1\r\nHost: homing\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .expect("status");
    (status, head.to_lowercase(), body.to_owned())
}

async fn json<T: serde::de::DeserializeOwned>(path: &Path, request: &str, wanted: u16) -> T {
    let (status, head, body) = ask(path, request, "").await;
    assert_eq!(status, wanted, "{request}: {body}");
    assert!(head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{request}: {error}: {body}"))
}

#[tokio::test]
async fn every_answer_survives_the_way() {
    let served = Served::new();
    let path = &served.path;
    assert_eq!(
        json::<Status>(path, "GET /status", 200).await,
        sample_status()
    );
    assert_eq!(
        json::<Hosts>(path, "GET /hosts", 200).await.hosts,
        sample_hosts()
    );
    assert_eq!(json::<Stats>(path, "GET /stats", 200).await, sample_stats());
    let query = "GET /owner?client=198.51.100.7:40312&service=203.0.113.10:443";
    let tuple = Tuple::between(
        endpoint("198.51.100.7:40312"),
        endpoint("203.0.113.10:443"),
        6,
    );
    assert_eq!(json::<Owner>(path, query, 200).await, sample_owner(tuple));
    assert!(json::<Health>(path, "GET /healthz", 200).await.healthy);
    served.stop().await;
}

#[tokio::test]
async fn names_that_scripts_read() {
    let served = Served::new();
    let status: serde_json::Value = json(&served.path, "GET /status", 200).await;
    assert_eq!(status["gossip"]["open_to_applied_us"]["p50"], 180);
    assert_eq!(status["members"]["alive"], 2);
    assert_eq!(status["foreign"]["count"], 75);
    let hosts: serde_json::Value = json(&served.path, "GET /hosts", 200).await;
    assert_eq!(hosts["hosts"][1]["next_hop"]["resolved"], true);
    assert_eq!(hosts["hosts"][2]["sync"]["state"], "gap");
    assert_eq!(hosts["hosts"][2]["state"], "down");
    let query = "GET /owner?client=198.51.100.7:40312&service=203.0.113.10:443";
    let owner: serde_json::Value = json(&served.path, query, 200).await;
    assert_eq!(owner["answer"], "other_host");
    assert_eq!(owner["client"], "198.51.100.7:40312");
    served.stop().await;
}

#[tokio::test]
async fn sessions_come_in_pages() {
    let served = Served::new();
    let mut found = Vec::new();
    let mut query = "GET /sessions?limit=10".to_owned();
    loop {
        let page: Sessions = json(&served.path, &query, 200).await;
        assert_eq!(page.total, u64::from(SESSIONS));
        found.extend(
            page.sessions
                .into_iter()
                .map(|session| session.name.client.port()),
        );
        let Some(next) = page.next else { break };
        query = format!("GET /sessions?limit=10&after={next}");
    }
    assert_eq!(found, (40_000..40_000 + SESSIONS).collect::<Vec<_>>());
    served.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let served = Served::new();
    let cases = [
        (
            "GET /nothing",
            404,
            "there is no /nothing; there are /status",
        ),
        ("POST /status", 405, "/status does not take POST"),
        ("GET /leave", 405, "/leave does not take GET"),
        (
            "GET /sessions?limit=0",
            400,
            "limit: must be from 1 to 10000",
        ),
        ("GET /sessions?limit=x", 400, "invalid digit"),
        ("GET /sessions?limits=5", 400, "unknown field `limits`"),
        ("GET /sessions?after=x", 400, "after: must be what"),
        (
            "GET /owner?client=1.2.3.4:5",
            400,
            "missing field `service`",
        ),
        (
            "GET /owner?client=x&service=203.0.113.10:443",
            400,
            "client: must be an address",
        ),
        (
            "GET /owner?client=[::1]:5&service=203.0.113.10:443",
            400,
            "different families",
        ),
        (
            "GET /owner?client=1.2.3.4:5&service=203.0.113.10:443&protocol=udp",
            400,
            "must be tcp",
        ),
        (
            "GET /owner?client=1.2.3.4:5&service=203.0.113.10:80",
            404,
            "is no service",
        ),
        ("POST /leave?hold_ms=-1", 400, "invalid digit"),
    ];
    for (request, status, error) in cases {
        let failure: Failure = json(&served.path, request, status).await;
        assert!(
            failure.error.contains(error),
            "{request}: {}",
            failure.error
        );
    }
    assert_eq!(*served.view.left.lock().expect("lock"), None);
    served.stop().await;
}

#[tokio::test]
async fn leave_carries_its_hold() {
    let served = Served::new();
    let left = || *served.view.left.lock().expect("lock");
    assert!(
        json::<Leaving>(&served.path, "POST /leave", 202)
            .await
            .leaving
    );
    assert_eq!(left(), Some(None));
    let _: Leaving = json(&served.path, "POST /leave?hold_ms=0", 202).await;
    assert_eq!(left(), Some(Some(Duration::ZERO)));
    served.stop().await;
}

#[tokio::test]
async fn a_failure_names_its_causes() {
    let served = Served::new();
    served.view.unhealthy.store(true, Ordering::Relaxed);
    let failure: Failure = json(&served.path, "GET /healthz", 500).await;
    assert_eq!(failure.error, "cannot read STATS: no such map");
    served.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_agent_is_not_waited_for() {
    let served = Served::new();
    served.view.hangs.store(true, Ordering::Relaxed);
    let failure: Failure = json(&served.path, "GET /status", 503).await;
    assert!(
        failure.error.contains("has not answered within 5s"),
        "{}",
        failure.error
    );
    served.stop().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_does_not_hold_up_the_stop() {
    let served = Served::new();
    let _silent = UnixStream::connect(&served.path).await.expect("connect");
    served.stop().await;
}

#[tokio::test]
async fn metrics_in_both_formats() {
    let served = Served::new();
    let (status, head, text) = ask(&served.path, "GET /metrics", "").await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    for line in [
        "# TYPE homing_packets_total counter",
        "# HELP homing_packets_total Packets by how their way through XDP ended",
        "homing_packets_total{outcome=\"forwarded\",verdict=\"forward\"} 1234",
        "homing_packets_total{outcome=\"local_socket\",verdict=\"pass\"} 0",
        "homing_sessions_opened_total 7",
        "homing_gossip_records_applied_total 90",
        "homing_interface_xdp_errors_total{interface=\"eth0\",counter=\"rx_xdp_tx_errors\"} 2",
        "homing_foreign_sessions 75",
        "homing_hosts{state=\"down\"} 1",
        "homing_host_next_hop_resolved{host=\"3\"} 0",
        "# TYPE homing_gossip_open_to_applied_seconds histogram",
        "homing_gossip_open_to_applied_seconds_bucket{le=\"0.001\"} 88",
        "homing_gossip_open_to_applied_seconds_bucket{le=\"+Inf\"} 90",
        "homing_gossip_open_to_applied_seconds_count 90",
        "homing_gossip_open_to_applied_seconds_sum 0.02",
        "homing_agent_uptime_seconds 3725",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    assert!(
        !text.contains("# EOF") && !text.contains("# UNIT"),
        "{text}"
    );
    assert_families_are_whole(&text);

    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let (_, head, text) = ask(&served.path, "GET /metrics", accept).await;
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("# TYPE homing_packets counter\n"), "{text}");
    served.stop().await;
}

/// Every sample stands under the head of its own family, and no family twice.
fn assert_families_are_whole(text: &str) {
    let mut seen = std::collections::HashSet::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().expect("name");
            assert!(seen.insert(family), "{family} twice");
        } else if !line.starts_with('#') {
            assert!(line.starts_with(family), "{line} under {family}");
            assert!(line.starts_with("homing_"), "{line}");
        }
    }
    assert!(seen.len() > 15, "{seen:?}");
}
