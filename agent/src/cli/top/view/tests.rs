//! Pictures as they are seen, and that nothing keeps one from being drawn.

use proptest::{collection::vec, prelude::*, sample::select};
use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::{
    admin::{
        api::{Host, HostState, KernelState, SyncState, Watch},
        fake::{sample_hosts, sample_stats, sample_status},
    },
    cli::{rates::tests::later, top::keys::Press},
};

/// Some time after the sample's hosts changed their states.
const NOW_UNIX_MS: u64 = 1_760_000_065_000;

fn watch() -> Watch {
    Watch {
        status: sample_status(),
        hosts: sample_hosts(),
        stats: sample_stats(),
    }
}

/// With two answers, four seconds apart.
fn model() -> Model {
    let mut model = Model::new(Duration::from_secs(4));
    model.answered(watch(), Duration::ZERO);
    let stats = later(4, 10);
    model.answered(Watch { stats, ..watch() }, Duration::from_secs(4));
    model
}

/// What a terminal of that size shows.
fn shown(model: &mut Model, width: u16, height: u16, now_s: u64) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    let now = Duration::from_secs(now_s);
    let drawn = terminal.draw(|frame| {
        if let Some(extent) = draw(model, now, NOW_UNIX_MS, frame.buffer_mut()) {
            model.drawn(extent);
        }
    });
    let buffer = drawn.expect("drawn").buffer;
    let lines = buffer.content.chunks(usize::from(width).max(1));
    let lines = lines.map(|line| {
        let text: String = line.iter().map(|cell| cell.symbol()).collect();
        text.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_overview() {
    let text = shown(&mut model(), 100, 36, 4);
    let wanted = "\
host 1 in rack-1, instance homing, version 0.1.0, up 1 h 2 min                            homing top
1 problem; hosts: 2 alive, 1 down, 0 left; every 4s
! host 3 is down since 4 s
 1 Overview   2 Hosts   3 Outcomes   4 Counters
sessions   25 here, opened 2.5/s, closed 0/s; 75 on other hosts
tables     own 25 of 262144 (0.0 %), owners 75 of 1048576 (0.0 %)
packets    passed 0/s, forwarded 2.5/s, dropped 0/s
gossip     in sync, announced 0/s, applied 2.5/s, repairs asked 0/s
datagrams  heard 0/s (0 B/s), sent 0/s (0 B/s)
lag        median 180 µs, 99 % within 950 µs (90 samples)
asks       0/s, 12 sessions, 9 found, 2 reset, 1 open
moves      2 from here, 1 to here, 40 wait for their turn
drain      10 moved, 10 to go (40 a second: 0.2 s), 2 cannot move, 3 in TIME_WAIT; deadline in 60 s

OUTCOME      PER S  PACKETS  MEANING
passed           0        0
forwarded      2.5     1244
  forwarded    2.5     1244  Encapsulated and sent to its owner by the interface it came from
dropped          0        0

HOST  STATE     SYNC       CLAIMS  SINCE      KERNEL                 DOMAIN  NEXT HOP
   3  down      4 missing      25  1 min 5 s  silent, heard 4 s ago  rack-1  unresolved
   2  draining  in sync        25  1 min 5 s  alive                  rack-1  10.1.1.12 02:00:00:00:0
   1  alive     in sync        25  1 min 5 s  -                      rack-1  this host











q quit  Tab next  Up/Down move  Space hold  +/- interval  z zeros  ? keys";
    assert_eq!(text, wanted);
}

#[test]
fn a_small_terminal_shows_what_matters_most() {
    let text = shown(&mut model(), 40, 8, 4);
    let wanted = "\
host 1 in rack-1, instance homing, versi
1 problem; hosts: 2 alive, 1 down, 0 lef
! host 3 is down since 4 s
sessions   25 here, opened 2.5/s, closed
tables     own 25 of 262144 (0.0 %), own
packets    passed 0/s, forwarded 2.5/s,
gossip     in sync, announced 0/s, appli
datagrams  heard 0/s (0 B/s), sent 0/s (";
    assert_eq!(text, wanted);
}

#[test]
fn hosts_are_moved_through_below_the_names_of_their_columns() {
    let mut model = model();
    model.press(Press::Show(Screen::Hosts));
    let text = shown(&mut model, 120, 12, 4);
    let wanted = "\
host 1 in rack-1, instance homing, version 0.1.0, up 1 h 2 min                                                homing top
1 problem; hosts: 2 alive, 1 down, 0 left; every 4s
! host 3 is down since 4 s
 1 Overview   2 Hosts   3 Outcomes   4 Counters
HOST  STATE     SYNC       CLAIMS  SINCE      KERNEL                 DOMAIN  NEXT HOP                     INTERFACE   MT
   1  alive     in sync        25  1 min 5 s  -                      rack-1  this host                    -
   2  draining  in sync        25  1 min 5 s  alive                  rack-1  10.1.1.12 02:00:00:00:00:02  eth0       160
   3  down      4 missing      25  1 min 5 s  silent, heard 4 s ago  rack-1  unresolved                   eth0



q quit  Tab next  Up/Down move  Space hold  +/- interval  z zeros  ? keys";
    assert_eq!(text, wanted);
    let mut small = model;
    shown(&mut small, 120, 6, 4);
    small.press(Press::Last);
    let text = shown(&mut small, 120, 6, 4);
    let last = text.lines().last().expect("a line");
    assert!(last.starts_with("   3  down"), "{text}");
    assert!(text.contains("\nHOST  STATE"), "{text}");
}

#[test]
fn outcomes_by_verdict_and_rate() {
    let mut before = watch();
    let mut now = watch();
    for (name, first, more) in [
        ("local_socket", 5_000, 40),
        ("local_syn", 10, 80),
        ("not_ip", 7, 0),
        ("no_way", 0, 4),
    ] {
        for (watch, packets) in [(&mut before, first), (&mut now, first + more)] {
            let mut outcomes = watch.stats.outcomes.iter_mut();
            let outcome = outcomes.find(|outcome| outcome.name == name);
            outcome.expect("an outcome").packets = packets;
        }
    }
    now.stats.monotonic_us += 4_000_000;
    let mut model = Model::new(Duration::from_secs(4));
    model.answered(before, Duration::ZERO);
    model.answered(now, Duration::from_secs(4));
    model.press(Press::Show(Screen::Outcomes));
    let text = shown(&mut model, 60, 14, 4);
    let wanted = "\
host 1 in rack-1, instance homing, version 0.1.0, up 1 h 2 m
1 problem; hosts: 2 alive, 1 down, 0 left; every 4s
! host 3 is down since 4 s
 1 Overview   2 Hosts   3 Outcomes   4 Counters
OUTCOME         PER S  PACKETS  MEANING
passed             30     5137
  local_syn        20       90  A SYN of a session that no o
  local_socket     10     5040  This host has the session's
  not_ip            0        7  Neither IPv4 nor IPv6, or cu
forwarded           0     1234
  forwarded         0     1234  Encapsulated and sent to its
dropped           1.0        4
  no_way          1.0        4  The way to its owner is not
q quit  Tab next  Up/Down move  Space hold  +/- interval  z";
    assert_eq!(text, wanted);
    model.press(Press::Zeros);
    let text = shown(&mut model, 80, 24, 4);
    assert!(text.contains("1 to 18 of "), "{text}");
    assert!(text.contains("  local_cookie"), "{text}");
}

#[test]
fn counters_that_are_zero_are_shown_on_demand() {
    let mut model = model();
    model.press(Press::Show(Screen::Counters));
    let text = shown(&mut model, 90, 30, 4);
    assert!(
        text.contains("gossip records_applied        2.5    100"),
        "{text}"
    );
    assert!(text.contains("eth0 rx_xdp_tx_errors"), "{text}");
    assert!(!text.contains("moves moved"), "{text}");
    model.press(Press::Zeros);
    model.press(Press::PageDown);
    let text = shown(&mut model, 90, 300, 4);
    assert!(text.contains("moves moved"), "{text}");
}

#[test]
fn no_answer_is_told_with_the_age_of_what_is_shown() {
    let mut model = model();
    model.failed("cannot reach the agent at /run/homing/homing.sock: refused".to_owned());
    let text = shown(&mut model, 80, 24, 70);
    let wanted = "\
NO ANSWER, this is 1 min 6 s old: cannot reach the agent at
  /run/homing/homing.sock: refused
";
    assert!(text.contains(wanted), "{text}");
    assert!(text.contains("sessions   25 here"), "{text}");
}

#[test]
fn problems_leave_room_for_the_rest_and_what_has_none_is_counted() {
    let mut many = watch();
    many.status.problems = (2..40)
        .map(|id| format!("host {id} is down: its agent does not answer; look at its log, and at the fabric between"))
        .collect();
    let mut model = Model::new(Duration::from_secs(1));
    model.answered(many, Duration::ZERO);
    let text = shown(&mut model, 60, 24, 0);
    assert!(text.contains("38 problems; hosts: 2 alive"), "{text}");
    assert!(text.contains("! host 4 is down"), "{text}");
    assert!(!text.contains("! host 5 is down"), "{text}");
    assert!(text.contains("! and 35 more: homing status"), "{text}");
    assert!(text.contains("\nsessions "), "{text}");
}

#[test]
fn the_help_has_the_keys() {
    let mut model = model();
    model.press(Press::Help);
    let text = shown(&mut model, 70, 20, 4);
    for (key, what) in keys::HELP {
        assert!(text.contains(key) && text.contains(what), "{key}: {text}");
    }
}

#[test]
fn a_thousand_hosts_cost_what_there_is_room_for() {
    let mut many = watch();
    many.hosts = (1..=1_000)
        .map(|id| Host {
            host: id,
            state: match id {
                700 => HostState::Down,
                _ => HostState::Alive,
            },
            kernel: KernelState::Alive,
            this_host: false,
            draining: false,
            sync: SyncState::InSync,
            ..sample_hosts()[1].clone()
        })
        .collect();
    // The manual says so.
    let answer = serde_json::to_string(&many).expect("JSON");
    assert!(
        (300_000..600_000).contains(&answer.len()),
        "{}",
        answer.len()
    );
    let mut model = Model::new(Duration::from_secs(1));
    model.answered(many, Duration::ZERO);
    let text = shown(&mut model, 100, 30, 0);
    let hosts: Vec<_> = text
        .lines()
        .skip_while(|line| !line.starts_with("HOST"))
        .collect();
    assert!(
        hosts[1].starts_with(" 700  down"),
        "the one to look at comes first: {text}"
    );
    assert!(hosts[2].starts_with("   1  alive"), "{text}");
    model.press(Press::Show(Screen::Hosts));
    shown(&mut model, 100, 30, 0);
    model.press(Press::Last);
    let text = shown(&mut model, 100, 30, 0);
    assert!(text.contains("1000  alive"), "{text}");
}

/// Texts that an agent should not send, and that must do no harm.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[ -~]{0,200}",
        "\\PC{0,40}",
        Just("\u{1b}[2J\n\r\t\u{0}\u{200d}\u{fe0f}".to_owned()),
        Just("東京 é ﷽ 👩‍👩‍👧‍👦".to_owned()),
    ]
}

prop_compose! {
    fn any_watch()(
        problems in vec(text(), 0..30),
        texts in (text(), text(), text()),
        hosts in vec((any::<u16>(), 0..3usize, any::<u64>(), any::<bool>(), text()), 0..60),
        counts in vec(any::<u64>(), 1..50),
        monotonic_us in any::<u64>(),
        generation in 0..2u64,
        uptime_s in any::<u64>(),
    ) -> Watch {
        let mut watch = watch();
        watch.status.problems = problems;
        watch.status.uptime_s = uptime_s;
        watch.status.sessions.count = counts[0];
        watch.status.sessions.limit = counts[counts.len() - 1];
        (watch.status.domain, watch.status.version, watch.status.instance) = texts;
        watch.hosts = hosts.into_iter().map(|(id, like, number, resolved, domain)| {
            let mut host = sample_hosts()[like].clone();
            host.host = id;
            host.claims = number;
            host.since_unix_ms = number;
            host.domain = Some(domain);
            if !resolved {
                host.next_hop = None;
            }
            host
        }).collect();
        watch.stats.monotonic_us = monotonic_us;
        watch.stats.generation = generation;
        let mut counts = counts.into_iter().cycle();
        for outcome in &mut watch.stats.outcomes {
            outcome.packets = counts.next().unwrap_or(0);
        }
        for counter in watch.stats.hooks.iter_mut().chain(&mut watch.stats.gossip) {
            counter.count = counts.next().unwrap_or(0);
        }
        watch
    }
}

fn any_press() -> impl Strategy<Value = Press> {
    use Press::*;
    let mut all = vec![
        Help, Next, Previous, Up, Down, PageUp, PageDown, First, Last, Pause, Slower, Faster, Zeros,
    ];
    all.extend(Screen::ALL.map(Show));
    select(all)
}

#[derive(Debug, Clone)]
enum Happening {
    Answer(Box<Watch>),
    Failure(String),
    Press(Press),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => any_watch().prop_map(|watch| Happening::Answer(Box::new(watch))),
        1 => text().prop_map(Happening::Failure),
        4 => any_press().prop_map(Happening::Press),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is answered and pressed, on terminals of any size that change at any time.
    #[test]
    fn everything_can_be_drawn(
        steps in vec((happening(), 0..150u16, 0..60u16, 0..100_000u64), 1..25),
    ) {
        let mut model = Model::new(Duration::from_secs(1));
        for (happening, width, height, now_s) in steps {
            match happening {
                Happening::Answer(watch) => model.answered(*watch, Duration::from_secs(now_s)),
                Happening::Failure(why) => model.failed(why),
                Happening::Press(press) => model.press(press),
            }
            let text = shown(&mut model, width, height, now_s);
            prop_assert!(text.lines().count() <= usize::from(height));
            let is_safe = !text.chars().any(|c| c.is_control() && c != '\n');
            prop_assert!(is_safe);
            if model.picture().is_some() && height > 2 && width > 60 && !model.shows_help() {
                prop_assert!(text.contains("hosts: 2 alive"), "{}", text);
            }
        }
    }
}
