//! `homing stats --watch` for programs and for people.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Command, Stdio},
    time::Instant,
};

use homing_tests::{
    demo::Servers,
    lab::{Lab, Node, unique, wait_until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    live::load,
    terminal::{PATIENCE, Terminal},
};

const HOST: Node = Node::Host(1);

/// A command whose output is read as it comes.
struct Reader {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Reader {
    fn start(lab: &Lab, args: &[&str]) -> Self {
        let mut command = Command::new("homing");
        command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = lab.spawn(HOST, &mut command).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "it has ended after {line}");
        line.trim_end().to_owned()
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// The lines until an empty one.
    fn block(&mut self) -> Vec<String> {
        let mut block = Vec::new();
        let mut empty = 0;
        // Two tables, with an empty line between them and one behind.
        while empty < 2 {
            let line = self.line();
            empty += usize::from(line.is_empty());
            block.push(line);
        }
        block
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end; returns its exit code and what it said of errors.
    fn ends(mut self) -> (Option<i32>, String) {
        drop(self.lines);
        let mut status = None;
        let ended = wait_until(PATIENCE, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        });
        if !ended.unwrap() {
            let _ = self.child.kill();
            panic!("it goes on");
        }
        let mut said = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut said).unwrap();
        (status.unwrap().code(), said)
    }
}

/// Packets in a second of all outcomes together.
fn packets_per_s(document: &Value) -> f64 {
    let rates = document["per_s"]["outcomes"].as_object();
    rates.map_or(0.0, |rates| rates.values().filter_map(Value::as_f64).sum())
}

#[test]
fn counters_with_rates_again_and_again() {
    let lab = Lab::builder().name(&unique("watch")).hosts(2).racks(1);
    let mut lab = lab.up().unwrap();
    let servers = Servers::start_ports(&lab, &[443]).unwrap();
    let clients = load(&lab, 10);
    lab.set_ecmp(&[1]).unwrap();

    // A line a time, for programs.
    let mut lines = Reader::start(&lab, &["stats", "--watch", "200ms", "--json"]);
    let first = lines.json();
    assert!(
        first["over_s"].is_null() && first["outcomes"].is_array(),
        "{first}"
    );
    let second = lines.json();
    let over_s = second["over_s"].as_f64().unwrap();
    assert!((0.1..10.0).contains(&over_s), "{over_s}");
    let begun = Instant::now();
    while packets_per_s(&lines.json()) < 10.0 {
        assert!(begun.elapsed() < PATIENCE, "no packets are counted");
    }
    // The agent goes, and comes back: it is told once, and goes on.
    lab.kill(1).unwrap();
    lab.start(1).unwrap();
    let begun = Instant::now();
    loop {
        let line = lines.json();
        let is_other = line["generation"] != first["generation"];
        if is_other && line["per_s"]["gossip"].is_object() {
            assert!(packets_per_s(&line) < 100_000.0, "{line}");
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{line}");
    }
    lines.signal(Signal::SIGTERM);
    let (code, said) = lines.ends();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.matches("cannot reach the agent").count() <= 1,
        "{said}"
    );
    assert_eq!(
        said.lines().count(),
        said.matches("; it is asked again").count(),
        "{said}"
    );

    // A block a time, for pipes. A reader that hangs up is no error.
    let mut blocks = Reader::start(&lab, &["stats", "--watch", "200ms"]);
    let first = blocks.block();
    assert!(
        first[0].starts_with("OUTCOME ") && first[0].contains("PER S"),
        "{first:#?}"
    );
    assert!(
        first[1].split_whitespace().any(|cell| cell == "-"),
        "{first:#?}"
    );
    let second = blocks.block();
    assert_eq!(
        first[0].split_whitespace().next(),
        second[0].split_whitespace().next()
    );
    assert!(
        !second[1].split_whitespace().any(|cell| cell == "-"),
        "{second:#?}"
    );
    assert_eq!(blocks.ends(), (Some(0), String::new()));

    // In place, for people.
    let mut shown = Terminal::start(&lab, HOST, &["stats", "--watch", "200ms"], (30, 100));
    let text = shown.wait("tables", |text| text.starts_with("OUTCOME"));
    shown.wait("other tables", |now| {
        now.starts_with("OUTCOME") && now != text
    });
    assert_eq!(
        shown.text().matches("OUTCOME").count(),
        1,
        "{}",
        shown.text()
    );
    shown.types("\x03");
    assert_eq!(shown.ends(), 0);
    shown.has_its_modes();
    drop(shown);

    let report = clients.finish().unwrap();
    assert_eq!((report.broken, report.not_opened), (0, 0), "{report:?}");
    drop(servers);
    lab.down().unwrap();
}
