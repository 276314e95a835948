//! The example in Python, against the agent and against Rust.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{Host, echo, next, one_way, run};

/// An application with many message sockets: it asks on each, then reads each reply.
const MANY: &str = r#"
import importlib.util, sys
spec = importlib.util.spec_from_file_location("messages", sys.argv[1])
messages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(messages)
count = int(sys.argv[3])
sockets = [messages.connect(sys.argv[2], "echo", 2)[0] for _ in range(count)]
for name, one in enumerate(sockets, 1):
    messages.send(one, b"%d" % name, name)
for name, one in enumerate(sockets, 1):
    received = messages.receive(one, 1 << 20)
    assert received[0] == messages.MESSAGE and received[2] == name, received
    assert received[5] == b"%d" % name, received
print("all")
"#;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/examples/messages.py")
}

fn python(host: &Host, args: &[&str]) -> Child {
    Command::new("python3")
        .arg(example())
        .arg(&host.path)
        .args(args)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[test]
fn a_service_in_python_answers_clients_in_rust_and_in_python() {
    run(|folder| async move {
        let (one, two) = (Host::start(&folder, 1), Host::start(&folder, 2));
        let mut server = python(&two, &["offer", "upper"]);
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "offering upper");
        let mut client = one.connect("upper", Some(2)).await;
        for text in ["one", "two"] {
            client.sender.send(&one_way(text.as_bytes())).await.unwrap();
            assert_eq!(next(&mut client).await.0, text.to_uppercase().into_bytes());
        }
        let asked = python(&one, &["ask", "upper", "three", "four"]);
        let output = asked.wait_with_output().await.unwrap();
        assert!(output.status.success());
        let mut said: Vec<_> = std::str::from_utf8(&output.stdout)
            .unwrap()
            .lines()
            .collect();
        said.sort_unstable();
        assert_eq!(said, ["four: FOUR", "three: THREE"]);
        let failed = python(&one, &["ask", "nothing", "x"]);
        assert!(!failed.wait_with_output().await.unwrap().status.success());
    });
}

#[test]
fn ten_thousand_message_sockets_ask_and_get_their_replies() {
    const COUNT: u64 = 10_000;
    run(|folder| async move {
        let (one, two) = (Host::start(&folder, 1), Host::start(&folder, 2));
        tokio::spawn(echo(two.offer("echo").await));
        let asks = Command::new("python3")
            .args(["-c", MANY])
            .arg(example())
            .arg(&one.path)
            .arg(COUNT.to_string())
            .output()
            .await
            .unwrap();
        let errors = String::from_utf8_lossy(&asks.stderr);
        assert_eq!(asks.stdout, b"all\n", "{errors}");
        assert_eq!(one.counters().connected, COUNT);
        one.until("all are closed", |counters| counters.closed == COUNT)
            .await;
        assert_eq!(one.sockets.status().sockets.len(), 0);
    });
}
