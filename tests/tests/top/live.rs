//! What somebody sees who looks at a POP under load while agents come and go.

use std::time::Duration;

use homing_tests::{
    demo::Servers,
    lab::{Lab, Node, unique},
    workload::{Clients, Options},
};

use super::terminal::{PATIENCE, Terminal};

/// The host that is looked from.
const HOST: Node = Node::Host(1);

/// The line of a host in the list of hosts.
fn line_of(text: &str, host: u16) -> Option<&str> {
    let number = host.to_string();
    let mut list = text.lines().skip_while(|line| !line.starts_with("HOST"));
    list.find(|line| line.split_whitespace().next() == Some(&number))
}

/// What a line of the list says of a host's state.
fn state(text: &str, host: u16) -> Option<&str> {
    line_of(text, host)?.split_whitespace().nth(1)
}

/// The rate of packets with a verdict, as the overview tells it.
fn rate(text: &str, verdict: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("packets"))?;
    let (_, rest) = line.split_once(&format!("{verdict} "))?;
    rest.split_once("/s")?.0.parse().ok()
}

/// Connections that exchange something all the time; their owners are known everywhere.
pub fn load(lab: &Lab, connections: u32) -> Clients {
    let options = Options {
        connections,
        targets: lab.plan().service(443).to_vec(),
        seed: 5,
        interval: Duration::from_millis(50),
        deadline: Duration::from_secs(8),
    };
    let clients = Clients::start(lab, Node::Client(1), options).unwrap();
    clients.wait_open(PATIENCE).unwrap();
    lab.wait_settled(u64::from(connections), PATIENCE).unwrap();
    clients
}

#[test]
fn a_pop_under_load_is_seen_and_so_is_whose_agent_is_down() {
    let lab = Lab::builder().name(&unique("top")).hosts(3).racks(2);
    let mut lab = lab.up().unwrap();
    let servers = Servers::start_ports(&lab, &[443]).unwrap();
    let clients = load(&lab, 30);
    // Every packet comes to the first host, and most are forwarded from there.
    lab.set_ecmp(&[1]).unwrap();
    let mut top = Terminal::start(&lab, HOST, &["top", "--interval", "500ms"], (32, 100));

    let is_busy = |text: &str| {
        let well = (1..=3).all(|host| state(text, host) == Some("alive"));
        let forwarded = rate(text, "forwarded").is_some_and(|rate| rate > 10.0);
        well && forwarded && text.contains("no problems")
    };
    let text = top.wait("hosts, and packets that are forwarded", is_busy);
    assert!(
        text.starts_with("host 1 in rack-1, instance homing"),
        "{text}"
    );
    assert!(
        rate(&text, "passed").is_some_and(|rate| rate > 10.0),
        "{text}"
    );
    assert!(line_of(&text, 2).unwrap().contains("in sync"), "{text}");
    assert!(text.contains("\n  forwarded"), "the outcome: {text}");
    let here = text
        .lines()
        .find(|line| line.starts_with("sessions"))
        .unwrap();
    assert!(here.contains("on other hosts"), "{text}");

    // The other screens.
    top.types("\t");
    let is_list = |text: &str| text.contains("\nHOST  STATE") && !text.contains("\nsessions ");
    let text = top.wait("the hosts' screen", is_list);
    assert!(line_of(&text, 3).unwrap().contains("rack-2"), "{text}");
    top.types("3");
    let text = top.wait("outcomes", |text| text.contains("\nOUTCOME"));
    assert!(
        text.contains("Encapsulated and sent to its owner"),
        "{text}"
    );
    top.types("\t");
    top.wait("counters", |text| text.contains("\nsessions_opened "));
    top.types("z\x1b[6~");
    top.wait("more counters", |text| {
        text.contains("of ") && !text.contains("\nsessions_opened ")
    });
    top.types("\t");
    top.wait("the overview", is_busy);

    // Held, asked less often, helped.
    top.types(" ");
    let held = top.wait("that it is held", |text| {
        text.contains("held: Space goes on")
    });
    let uptime = |text: &str| text.lines().next().unwrap().to_owned();
    top.types(" ");
    top.wait("that it goes on", |text| {
        text.contains("every 500ms") && uptime(text) != uptime(&held)
    });
    top.types("+");
    top.wait("another interval", |text| text.contains("every 1s"));
    top.types("-");
    top.wait("the interval", |text| text.contains("every 500ms"));
    top.types("?");
    top.wait("the keys", |text| {
        text.contains("hold the picture, and go on")
    });
    top.types("?");
    top.wait("no keys", |text| {
        !text.contains("hold the picture, and go on")
    });

    // Another host's agent.
    lab.kill(2).unwrap();
    let text = top.wait("that host 2 is down", |text| state(text, 2) == Some("down"));
    assert!(
        text.contains("! host 2 is down: its agent does not answer"),
        "{text}"
    );
    // docs/operating.md shows one like this: --nocapture prints it.
    println!("{text}");
    lab.start(2).unwrap();
    top.wait("that host 2 is back", |text| {
        state(text, 2) == Some("alive")
    });

    // This host's agent: it hangs, then it is killed.
    lab.pause(1).unwrap();
    let text = top.wait("that it does not answer", |text| {
        text.contains("NO ANSWER, this is")
    });
    assert!(
        text.contains("\nsessions "),
        "the last picture stays: {text}"
    );
    top.types("2");
    top.wait("keys do all the same", is_list);
    top.types("1");
    lab.resume(1).unwrap();
    top.wait("that it answers", is_busy);
    lab.kill(1).unwrap();
    let text = top.wait("that nobody answers", |text| {
        text.contains("NO ANSWER") && text.contains("cannot reach the agent at")
    });
    assert!(
        text.contains("\nsessions "),
        "the last picture stays: {text}"
    );
    lab.start(1).unwrap();
    let text = top.wait("that it is back", is_busy);
    assert!(!text.contains("NO ANSWER"), "{text}");
    let rates = ["passed", "forwarded", "dropped"].map(|verdict| rate(&text, verdict));
    let sane = |rate: &Option<f64>| rate.is_some_and(|rate| rate < 100_000.0);
    assert!(rates.iter().all(sane), "{text}");

    top.types("q");
    assert_eq!(top.ends(), 0);
    top.is_given_back();
    let report = clients.finish().unwrap();
    assert_eq!((report.broken, report.not_opened), (0, 0), "{report:?}");
    drop((top, servers));
    lab.down().unwrap();
}

#[test]
fn a_terminal_may_change_its_size_at_any_time_and_be_tiny() {
    let lab = Lab::builder().name(&unique("topsize")).hosts(1).racks(1);
    let lab = lab.up().unwrap();
    let mut top = Terminal::start(&lab, HOST, &["top", "--interval", "200ms"], (24, 80));
    let whole = |text: &str| text.contains("\nHOST  STATE") && text.contains("q quit");
    top.wait("all of it", whole);
    // Even a size at which nothing fits.
    for (rows, columns) in [(5, 20), (1, 1), (2, 300), (100, 3)] {
        top.resize(rows, columns);
        let shown: String = "host 1 in rack-1".chars().take(columns.into()).collect();
        top.wait("who answers", |text| text.starts_with(&shown));
        let text = top.text();
        assert!(text.lines().count() <= rows.into(), "{text}");
    }
    top.types("\t\x1b[B\x1b[6~?");
    top.resize(50, 160);
    top.wait("the keys", |text| {
        text.contains("hold the picture, and go on")
    });
    // First away with the help, then out of it.
    top.types("\x1b");
    top.wait("hosts", whole);
    top.types("\x1b");
    assert_eq!(top.ends(), 0);
    top.is_left();
    drop(top);
    lab.down().unwrap();
}
