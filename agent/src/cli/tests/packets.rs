//! Packets, explained and captured.

use super::*;

#[tokio::test]
async fn packets_are_explained_one_by_one_and_by_file() {
    let served = Served::new();
    let line = "homing explain 198.51.100.7:40312 203.0.113.10:443";
    let (out, exit, _) = run(&served.path, line).await;
    assert_eq!(exit, Exit::Ok);
    let wanted = "packet    198.51.100.7:40312 > 203.0.113.10:443: TCP PSH ACK";
    assert!(out.starts_with(wanted), "{out}");
    assert!(out.contains("owner     host 3 claims it"), "{out}");
    let (out, ..) = run(&served.path, &format!("{line} --json")).await;
    assert!(out.contains(r#""outcome": "forwarded""#), "{out}");
    for (line, words) in [
        (
            "homing explain 198.51.100.7 203.0.113.10:443",
            "not an address and port",
        ),
        (
            "homing explain [2001:db8::7]:1 203.0.113.10:443",
            "different families",
        ),
        (
            "homing explain /no/such.pcap",
            "cannot explain the packets of /no/such.pcap",
        ),
    ] {
        let (_, exit, error) = run(&served.path, line).await;
        assert_eq!(exit, Exit::Failed, "{line}");
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_capture_that_breaks_off_says_so() {
    let served = Served::new();
    let folder = Folder::new();
    // What the made-up agent sends is no capture.
    let file = folder.0.join("a.pcapng");
    let line = format!("homing capture -w {}", file.display());
    let (_, exit, error) = run(&served.path, &line).await;
    assert_eq!(exit, Exit::Failed);
    assert!(error.contains("cannot read the agent's answer"), "{error}");
    let line = format!("homing capture -w {}/none/a.pcapng", folder.0.display());
    let (_, exit, error) = run(&served.path, &line).await;
    assert_eq!(exit, Exit::Failed);
    assert!(error.contains("cannot write"), "{error}");
}
