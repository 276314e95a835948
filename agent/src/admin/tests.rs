//! The server over a real Unix socket, with an agent that makes its answers up.

mod packets;

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use homing_common::{host::HostId, session::Tuple};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
};

use super::socket::{AdminSocket, Rights};
use super::{DrainOrder, api::*, fake::*, server};
use crate::migration::drain::Wanted;

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
        Self::with(Rights::Change)
    }

    /// At a socket with these rights.
    pub(crate) fn with(rights: Rights) -> Self {
        let folder = Folder::new();
        let path = folder.0.join("admin.sock");
        let view = Arc::new(Fake::default());
        let socket = AdminSocket::bind(&path, rights).expect("bind");
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
    let watch = Watch {
        status: sample_status(),
        hosts: sample_hosts(),
        stats: sample_stats(),
    };
    assert_eq!(json::<Watch>(path, "GET /watch", 200).await, watch);
    assert_eq!(
        json::<Carriers>(path, "GET /carriers", 200).await,
        sample_carriers()
    );
    assert_eq!(json::<Apps>(path, "GET /apps", 200).await, sample_apps());
    assert_eq!(json::<Mux>(path, "GET /mux", 200).await, sample_mux());
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
async fn who_may_only_read_changes_nothing() {
    let served = Served::with(Rights::Read);
    let path = &served.path;
    assert_eq!(
        json::<Status>(path, "GET /status", 200).await,
        sample_status()
    );
    for request in [
        "POST /leave?hold_ms=1",
        "POST /reload",
        "POST /reload?dry_run=true",
        "POST /log?level=trace",
        "POST /capture",
        "POST /capture/end",
        "POST /drain",
        "POST /undrain",
        "POST /move?client=198.51.100.7:1&service=203.0.113.10:443&to=3",
        "PUT /status",
        "POST /nothing",
    ] {
        let refused: Failure = json(path, request, 403).await;
        assert!(refused.error.contains("admin.group"), "{}", refused.error);
    }
    assert!(!served.view.draining.load(Ordering::Relaxed));
    assert_eq!(*served.view.left.lock().expect("not poisoned"), None);
    assert_eq!(json::<Log>(path, "GET /log", 200).await.level, "");
    served.stop().await;
}

#[tokio::test]
async fn what_is_logged_is_told_and_changed() {
    let served = Served::new();
    let path = &served.path;
    let log: Log = json(path, "POST /log?level=info%2Chost%3Ddebug", 200).await;
    assert_eq!((&*log.level, &*log.at_start), ("info,host=debug", "info"));
    assert_eq!(json::<Log>(path, "GET /log", 200).await, log);
    let refused: Failure = json(path, "POST /log?level=", 400).await;
    assert_eq!(refused.error, "level: it is empty");
    json::<Failure>(path, "POST /log", 400).await;
    assert_eq!(json::<Log>(path, "GET /log", 200).await, log);
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
    let carriers: serde_json::Value = json(&served.path, "GET /carriers", 200).await;
    assert_eq!(carriers["peers"][1]["to"][0]["state"], "failing");
    let apps: serde_json::Value = json(&served.path, "GET /apps", 200).await;
    assert_eq!(apps["apps"][0]["name"], "line-echo");
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
            "GET /owner?client=1.2.3.4:5&service=203.0.113.10:443&protocol=sctp",
            400,
            "must be tcp",
        ),
        (
            "GET /owner?client=1.2.3.4:5&service=203.0.113.10:80",
            404,
            "is no service",
        ),
        ("POST /leave?hold_ms=-1", 400, "invalid digit"),
        ("POST /drain?to=2,x", 400, "to: must be host ids"),
        ("POST /drain?to=0", 400, "to: must be host ids"),
        ("POST /drain?rate=0", 400, "nonzero"),
        ("POST /drain?moves=false", 400, "unknown field `moves`"),
        ("GET /move", 405, "/move does not take GET"),
        (
            "POST /move?client=198.51.100.7:40312&service=203.0.113.10:443",
            400,
            "missing field `to`",
        ),
        (
            "POST /move?client=198.51.100.7:40312&service=203.0.113.10:443&to=3&deadline_ms=60001",
            400,
            "deadline_ms: must be from 1 to 60000",
        ),
        (
            "POST /move?client=198.51.100.7:40399&service=203.0.113.10:443&to=3",
            404,
            "host 3 has it",
        ),
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
async fn a_drain_is_ordered_as_it_is_asked_for() {
    let served = Served::new();
    let path = &served.path;
    let drain: Drain = json(path, "POST /drain", 200).await;
    assert!(drain.draining && drain.is_busy());
    let query = "POST /drain?move=false&to=2,3&rate=5&deadline_ms=1500&wait=true&force=true";
    let _: Drain = json(path, query, 200).await;
    let orders = served.view.drain.orders.lock().expect("lock").clone();
    let plain = DrainOrder {
        wanted: Wanted::default(),
        moves: true,
        force: false,
    };
    let all = DrainOrder {
        wanted: Wanted {
            to: Some([HostId(2), HostId(3)].into()),
            rate: NonZeroU32::new(5),
            deadline: Some(Duration::from_millis(1500)),
            wait: true,
        },
        moves: false,
        force: true,
    };
    assert_eq!(orders, [plain, all]);
    let ended: serde_json::Value = json(path, "POST /undrain", 200).await;
    assert_eq!(ended["draining"], false);
    assert_eq!(ended["command"]["name"], "on_undrain");
    served.stop().await;
}

#[tokio::test]
async fn what_came_of_a_move_is_told() {
    let served = Served::new();
    let query = "POST /move?client=198.51.100.7:40312&service=203.0.113.10:443&to=3";
    let moved: serde_json::Value = json(&served.path, query, 200).await;
    assert_eq!(moved["outcome"], "moved");
    assert_eq!(moved["client"], "198.51.100.7:40312");
    assert_eq!(
        (&moved["target"], &moved["frozen_us"]),
        (&3.into(), &1_234.into())
    );
    let query = "POST /move?client=198.51.100.7:40313&service=203.0.113.10:443&to=3&deadline_ms=70";
    let moved: Moved = json(&served.path, query, 200).await;
    assert_eq!(moved.outcome, MoveOutcome::Aborted);
    assert_eq!(moved.reason.as_deref(), Some("timeout"));
    assert_eq!(moved.took_us, 70_000, "the deadline");
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
        "homing_foreign_sessions_bytes 8388608",
        "homing_hosts{state=\"down\"} 1",
        "homing_host_next_hop_resolved{host=\"3\"} 0",
        "# TYPE homing_gossip_open_to_applied_seconds histogram",
        "homing_gossip_open_to_applied_seconds_bucket{le=\"0.001\"} 88",
        "homing_gossip_open_to_applied_seconds_bucket{le=\"+Inf\"} 90",
        "homing_gossip_open_to_applied_seconds_count 90",
        "homing_gossip_open_to_applied_seconds_sum 0.02",
        "homing_agent_uptime_seconds 3725",
        "homing_carriers{way=\"to\"} 2",
        "homing_carriers_failing 1",
        "homing_carriers_messages_delivered_total 0",
        "homing_apps{state=\"ready\"} 1",
        "homing_apps_state_bytes 70000",
        "homing_apps_exported_total 0",
        "homing_mux_sockets{kind=\"service\"} 1",
        "homing_mux_held_bytes 1160",
        "homing_mux_messages_delivered_total 0",
        "homing_moves{way=\"to_here\"} 1",
        "homing_moves_waiting 40",
        "homing_moves_steps_total{side=\"source\",step=\"sending\"} 11",
        "homing_moves_step_seconds_total{side=\"source\",step=\"sending\"} 2.75",
        "homing_moves_moved_total 0",
        "homing_parked_waiting 5",
        "homing_parked_fed_total 0",
        "homing_drain_running 1",
        "homing_drain_sessions{state=\"moved\"} 10",
        "homing_drain_left{reason=\"udp\"} 2",
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
