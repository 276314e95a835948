//! Packets, explained and captured.

use super::*;

/// A request with a body.
async fn post(path: &Path, request: &str, body: &str) -> (u16, String) {
    let header = format!(
        "Content-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    let mut stream = UnixStream::connect(path).await.expect("connect");
    let text = format!(
        "POST {request} HTTP/1.1\r\nHost: homing\r\n{header}Connection: close\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    (status.expect("status"), body.to_owned())
}

#[tokio::test]
async fn packets_are_explained_to_readers_too() {
    let order = ExplainOrder {
        interface: None,
        packets: vec![
            ExplainPacket::Frame("0200".to_owned()),
            ExplainPacket::Made {
                client: endpoint("198.51.100.7:40312"),
                service: endpoint("203.0.113.10:443"),
                kind: crate::packet::Kind::SynAck,
                from: Some(3),
            },
        ],
    };
    let body = serde_json::to_string(&order).expect("JSON");
    assert!(body.contains(r#""kind":"syn-ack","from":3"#), "{body}");
    for rights in [Rights::Change, Rights::Read] {
        let served = Served::with(rights);
        let (status, answer) = post(&served.path, "/explain", &body).await;
        assert_eq!(status, 200, "{answer}");
        let told: Explanations = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(told, sample_explanations(&order));
        let many = format!("[{}]", [r#"{"frame":"00"}"#; EXPLAIN_MAX + 1].join(","));
        let wrong = [
            (
                r#"{"interface":null,"packets":[]}"#.to_owned(),
                "from 1 to 1000, not 0",
            ),
            (
                format!(r#"{{"interface":null,"packets":{many}}}"#),
                "not 1001",
            ),
            (
                r#"{"packets":[{"made":{"client":"x"}}]}"#.to_owned(),
                "socket address",
            ),
            (
                r#"{"packets":[{"fram":"00"}]}"#.to_owned(),
                "unknown variant `fram`",
            ),
            ("{".to_owned(), "EOF"),
        ];
        for (body, words) in wrong {
            let (status, answer) = post(&served.path, "/explain", &body).await;
            assert!(status == 400 && answer.contains(words), "{status} {answer}");
        }
        served.stop().await;
    }
}

#[tokio::test]
async fn a_capture_is_ordered_as_it_is_asked_for() {
    let served = Served::new();
    let path = &served.path;
    let query = "POST /capture?outcome=no_way,too_big&client=2001:db8::7&\
                 service=[2001:db8::1]:443&protocol=udp&count=7&duration_ms=1500&snap=96";
    let (status, head, body) = ask(path, query, "").await;
    assert_eq!(status, 200, "{body}");
    assert!(
        head.contains("content-type: application/x-pcapng"),
        "{head}"
    );
    // The pieces of the made-up agent: the order, and the end.
    for part in [
        "outcomes: [NoWay, TooBig]",
        "client: Some(2001:db8::7), client_port: None",
        "service: Some(2001:db8::1), service_port: Some(443)",
        "protocol: Some(17), snap: 96",
        "count: Some(7), duration: Some(1.5s)",
        "the end",
    ] {
        assert!(body.contains(part), "{part} is not in {body}");
    }
    assert!(
        json::<CaptureEnded>(path, "POST /capture/end", 200)
            .await
            .ended
    );
    let other = "POST /capture/end?number=8";
    assert!(!json::<CaptureEnded>(path, other, 200).await.ended);
    assert!(head.contains("homing-capture: 7"), "{head}");
    for (query, words) in [
        ("outcome=nowhere", "outcome: there is no nowhere"),
        ("client=10.1", "client: not an address"),
        (
            "client=10.0.0.1&service=[::1]:1",
            "are of different families",
        ),
        ("protocol=icmp", "protocol: must be tcp or udp, not icmp"),
        ("snap=0", "snap: must be from 1 to 2048, not 0"),
        ("count=0", "nonzero"),
        ("outcom=no_way", "unknown field `outcom`"),
    ] {
        let refused: Failure = json(path, &format!("POST /capture?{query}"), 400).await;
        assert!(refused.error.contains(words), "{}", refused.error);
    }
    served.stop().await;
}

#[tokio::test]
async fn what_is_in_force_is_told_and_why_a_reload_changes_nothing() {
    let served = Served::new();
    let path = &served.path;
    let in_force: InForce = json(path, "GET /config", 200).await;
    assert_eq!(in_force.keys["pop.leave_hold"], "\"30s\"");
    assert_eq!(in_force.keys.len(), crate::config::KEYS.len());
    let refused: Failure = json(path, "GET /reload", 405).await;
    assert!(refused.error.contains("does not take GET"));
    let set = |text: String| *served.view.config.lock().expect("not poisoned") = Some(text);
    set(EXAMPLE.replace("id = 1\n", "id = 9999\n"));
    let refused: Failure = json(path, "POST /reload", 422).await;
    let problem = &refused.problems[0];
    assert_eq!((problem.line, &*problem.key), (11, "host.id"));
    assert!(refused.changes.is_empty() && !problem.fix.is_empty());
    set(EXAMPLE.replace("rack-1", "rack-9").replace("443", "444"));
    let refused: Failure = json(path, "POST /reload?dry_run=true", 409).await;
    let told = |change: &Change| (change.key.clone(), change.needs_restart);
    assert_eq!(
        refused.changes.iter().map(told).collect::<Vec<_>>(),
        [
            ("host.domain".to_owned(), true),
            ("services".to_owned(), false)
        ]
    );
    served.stop().await;
}
