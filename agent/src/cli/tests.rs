//! The command line as its users see it: parsed, sent over a real socket to an
//! agent that makes its answers up, and printed.

mod drain;
mod packets;
mod reload;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::error::ErrorKind;

use super::{table::Style, *};
use crate::admin::{
    fake::{
        Folder, endpoint, sample_apps, sample_carriers, sample_hosts, sample_mux, sample_owner,
        sample_stats, sample_status,
    },
    tests::Served,
};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn parsed(line: &str) -> Cli {
    parse(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Runs a command that asks an agent; its output and how it ended.
async fn run(socket: &Path, line: &str) -> (String, Exit, String) {
    let cli = parsed(&format!("{line} --socket {}", socket.display()));
    let mut out = Vec::new();
    let done = ask(&cli, &mut out).await;
    let out = String::from_utf8(out).expect("UTF-8");
    match done {
        Ok(()) => (out, Exit::Ok, String::new()),
        Err(failure) => {
            let message = if failure.is_silent() {
                String::new()
            } else {
                failure.to_string()
            };
            (out, failure.exit(), message)
        }
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn help_documents_what_scripts_rely_on() {
    let help = Cli::command().render_long_help().to_string();
    for part in [
        "Exit codes:",
        "3  no agent answers",
        "Files:",
        "/etc/homing/homing.toml",
        "Examples:",
        "HOMING_SOCKET",
        "HOMING_CONFIG",
        "--json",
        "doctor",
        "top",
        "unload",
        "completions",
    ] {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    for (line, kind, reason) in [
        (
            "homing",
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            "",
        ),
        ("homing statsu", ErrorKind::InvalidSubcommand, "stats"),
        (
            "homing owner 1.2.3.4:5",
            ErrorKind::MissingRequiredArgument,
            "<SERVICE>",
        ),
        (
            "homing owner 1.2.3.4 5.6.7.8:9",
            ErrorKind::ValueValidation,
            "such as 198.51.100.7:40312",
        ),
        (
            "homing owner 1.2.3.4:5 5.6.7.8:9 --protocol sctp",
            ErrorKind::InvalidValue,
            "tcp",
        ),
        (
            "homing sessions --limit 0",
            ErrorKind::ValueValidation,
            "1..=10000",
        ),
        (
            "homing sessions --after x",
            ErrorKind::ValueValidation,
            "named as next",
        ),
        (
            "homing move 1.2.3.4:5 5.6.7.8:9 0",
            ErrorKind::ValueValidation,
            "not a host's id",
        ),
        (
            "homing move 1.2.3.4:5 5.6.7.8:9 3 --deadline 61s",
            ErrorKind::ValueValidation,
            "from 1ms to 60s",
        ),
        (
            "homing top --interval 99ms",
            ErrorKind::ValueValidation,
            "from 100ms to 1h",
        ),
        (
            "homing stats --watch 2h",
            ErrorKind::ValueValidation,
            "from 100ms to 1h",
        ),
        (
            "homing drain --deadline soon",
            ErrorKind::ValueValidation,
            "whole number and its unit",
        ),
        (
            "homing drain --no-move --rate 5",
            ErrorKind::ArgumentConflict,
            "--rate",
        ),
        (
            "homing drain --status --wait",
            ErrorKind::ArgumentConflict,
            "--wait",
        ),
        (
            "homing unload --instance a/b",
            ErrorKind::ValueValidation,
            "letters",
        ),
        (
            "homing agent --log nonsense=loud",
            ErrorKind::ValueValidation,
            "invalid",
        ),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.kind(), kind, "{line}");
        assert_eq!(error.exit_code(), Exit::Usage as i32, "{line}");
        assert!(error.to_string().contains(reason), "{line}: {error}");
    }
}

#[test]
fn options_may_stand_anywhere() {
    let cli = parsed("homing --json status --socket /tmp/a.sock");
    assert!(cli.json);
    assert_eq!(socket(&cli), Path::new("/tmp/a.sock"));
}

#[test]
fn stats_are_watched_every_second_unless_told_otherwise() {
    for (line, wanted) in [
        ("homing stats --all", None),
        ("homing stats --watch --all", Some(1_000)),
        ("homing stats --watch 100ms", Some(100)),
        ("homing stats --watch=1h", Some(3_600_000)),
    ] {
        let Command::Stats(args) = parsed(line).command else {
            panic!("{line}");
        };
        let wanted = wanted.map(std::time::Duration::from_millis);
        assert_eq!(args.watch, wanted, "{line}");
    }
}

#[test]
fn the_socket_is_the_configured_one() {
    let folder = Folder::new();
    let file = folder.0.join("homing.toml");
    let cli = parsed(&format!("homing --config {} status", file.display()));
    assert_eq!(socket(&cli), Path::new("/run/homing/homing.sock"));
    let example = include_str!("../../../dist/homing.toml");
    std::fs::write(&file, format!("instance = \"h2\"\n{example}")).expect("write");
    assert_eq!(socket(&cli), Path::new("/run/homing/h2.sock"));
}

#[tokio::test]
async fn status_in_words_and_in_json() {
    let served = Served::new();
    let (out, exit, _) = run(&served.path, "homing status").await;
    assert_eq!(exit, Exit::Ok);
    assert!(
        out.contains("members          2 alive, 1 down, 0 left"),
        "{out}"
    );
    assert!(
        out.contains("open to applied  median 180 µs, 99 % within 950 µs"),
        "{out}"
    );
    assert!(out.contains("problem          host 3 is down"), "{out}");
    let carriers =
        "carriers         2 to other hosts, 1 from them, 4352 bytes under way, 1 cannot be opened";
    assert!(out.contains(carriers), "{out}");
    let apps = "applications     1 for 1 services, 3 moves pending; 1 not ready yet";
    assert!(out.contains(apps), "{out}");
    let moves = "moves            2 from here, 1 to here, 40 wait for their turn";
    assert!(out.contains(moves), "{out}");
    let drain = "drain            10 moved, 10 to go (40 a second: 0.2 s), 2 cannot move, 3 in TIME_WAIT; deadline in 60 s";
    assert!(out.contains(drain), "{out}");
    let (out, ..) = run(&served.path, "homing status --json").await;
    let status: api::Status = serde_json::from_str(&out).expect("JSON");
    assert_eq!(status, sample_status());
}

#[tokio::test]
async fn owner_says_how_it_knows_and_exits_4_when_it_does_not() {
    let served = Served::new();
    let ask = "homing owner 198.51.100.7:40312 203.0.113.10:443";
    let (out, exit, _) = run(&served.path, ask).await;
    assert_eq!(exit, Exit::Ok);
    assert!(out.contains("owner    host 3"), "{out}");
    assert!(out.contains("how      host 3 claims it"), "{out}");

    let unknown = "homing owner 198.51.100.7:40313 203.0.113.10:443 --json";
    let (out, exit, message) = run(&served.path, unknown).await;
    assert_eq!((exit, message.as_str()), (Exit::NotFound, ""));
    let owner: api::Owner = serde_json::from_str(&out).expect("JSON");
    assert_eq!(owner.answer, api::Answer::Unknown);

    let no_service = "homing owner 198.51.100.7:40312 203.0.113.10:80";
    let (out, exit, message) = run(&served.path, no_service).await;
    assert_eq!((out.as_str(), exit), ("", Exit::NotFound));
    assert!(message.contains("is no service of this POP"), "{message}");
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_the_agents_to_refuse() {
    let served = Served::new();
    let families = "homing owner [2001:db8::7]:1 203.0.113.10:443";
    let (_, exit, message) = run(&served.path, families).await;
    assert_eq!(exit, Exit::Failed);
    assert!(message.contains("different families"), "{message}");
}

#[tokio::test]
async fn sessions_by_page_and_all() {
    let served = Served::new();
    let (out, ..) = run(&served.path, "homing sessions --limit 10").await;
    assert!(
        out.contains("10 of 25; the next: homing sessions --after '"),
        "{out}"
    );
    assert_eq!(out.lines().count(), 1 + 10 + 1, "{out}");
    let (out, ..) = run(&served.path, "homing sessions --limit 10 --all --json").await;
    let all: api::Sessions = serde_json::from_str(&out).expect("JSON");
    assert_eq!((all.sessions.len(), all.next), (25, None));
    let (out, ..) = run(&served.path, "homing sessions --all").await;
    assert!(out.trim_end().ends_with("25 of 25"), "{out}");
}

#[tokio::test]
async fn what_is_logged_can_be_asked_and_changed() {
    let served = Served::new();
    let (out, exit, _) = run(&served.path, "homing log info,homing_agent::gossip=debug").await;
    assert_eq!(exit, Exit::Ok);
    let changed = "logged is info,homing_agent::gossip=debug; from the next start on, info again";
    assert_eq!(out.trim_end(), changed);
    let (out, ..) = run(&served.path, "homing log").await;
    assert_eq!(out.trim_end(), changed);
    let wrong = Cli::try_parse_from(["homing", "log", "inof"]).expect_err("no level");
    assert!(wrong.to_string().contains("is no level"), "{wrong}");
}

#[tokio::test]
async fn every_command_prints_json_when_asked() {
    let served = Served::new();
    for line in [
        "status",
        "hosts",
        "sessions",
        "carriers",
        "apps",
        "mux status",
        "stats",
        "log",
    ] {
        let (out, exit, _) = run(&served.path, &format!("homing {line} --json")).await;
        assert_eq!(exit, Exit::Ok);
        serde_json::from_str::<serde_json::Value>(&out).expect(line);
    }
}

#[test]
fn a_key_is_made_and_changed_in_three_steps() {
    let folder = Folder::new();
    let file = folder.0.join("pop.key");
    let step = |step: &str| {
        let cli = parsed(&format!(
            "homing key {step} --json --file {}",
            file.display()
        ));
        let mut out = Vec::new();
        execute(cli, async |_, _| Ok(()), &mut out).map_err(|failure| failure.to_string())?;
        Ok::<serde_json::Value, String>(serde_json::from_slice(&out).expect("JSON"))
    };
    let missing = step("show").expect_err("no file");
    assert!(missing.contains("homing key new"), "{missing}");
    let made = step("new").expect("made");
    assert!(step("new").expect_err("exists").contains("it exists"));
    let early = step("promote").expect_err("not begun");
    assert!(early.contains("`homing key begin` is first"), "{early}");
    let begun = step("begin").expect("begun");
    assert_eq!(begun["signs"], made["signs"]);
    let promoted = step("promote").expect("promoted");
    assert_eq!(
        (&promoted["signs"], &promoted["old"]),
        (&begun["next"], &made["signs"])
    );
    assert_eq!(step("show").expect("shown")["old"], made["signs"]);
    let finished = step("finish").expect("finished");
    assert_eq!(finished["signs"], begun["next"]);
    assert!(finished["old"].is_null());
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_named() {
    let folder = Folder::new();
    let path = folder.0.join("none.sock");
    let (out, exit, message) = run(&path, "homing status").await;
    assert_eq!((out.as_str(), exit), ("", Exit::Unreachable));
    let start = format!("cannot reach the agent at {}: ", path.display());
    assert!(message.starts_with(&start), "{message}");
    assert!(
        message.ends_with("is it running? `systemctl status homing`"),
        "{message}"
    );
}

#[tokio::test]
async fn a_reader_that_hangs_up_is_no_error() {
    struct HungUp;
    impl Write for HungUp {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let served = Served::new();
    let cli = parsed(&format!("homing stats --socket {}", served.path.display()));
    let failure = ask(&cli, &mut HungUp).await.expect_err("hung up");
    assert!(failure.is_silent());
    assert_eq!(failure.exit(), Exit::Ok);
}

#[test]
fn hosts_as_a_plain_table() {
    let hosts = api::Hosts {
        hosts: sample_hosts(),
    };
    let text = show::hosts(&hosts, 1_760_000_065_000, Style::Plain);
    let wanted = "\
HOST  DOMAIN  STATE     SINCE      KERNEL                 ADDRESS         TUNNEL      NEXT HOP                     INTERFACE   MTU  CLAIMS  SYNC
   1  rack-1  alive     1 min 5 s  -                      10.1.1.11:7946  10.77.0.16  this host                    -             -      25  in sync
   2  rack-1  draining  1 min 5 s  alive                  10.1.1.12:7946  10.77.0.32  10.1.1.12 02:00:00:00:00:02  eth0       1600      25  in sync
   3  rack-1  down      1 min 5 s  silent, heard 4 s ago  10.1.1.13:7946  10.77.0.48  unresolved                   eth0          -      25  4 missing";
    assert_eq!(text, wanted);
    let lines = show::hosts(&hosts, 0, Style::Lines);
    assert!(lines.starts_with('┌') && lines.ends_with('┘'), "{lines}");
}

#[test]
fn carriers_and_applications_as_plain_tables() {
    let text = show::bases::carriers(&sample_carriers(), Style::Plain);
    let wanted = "\
HOST  WAY   CHANNEL    STATE    CARRIERS  MESSAGES  BYTES  WAITING  PROBLEM
   2  to    migration  open            1         6  81920        0  -
   2  from  -          open            1         4    512        -  -
   3  to    migration  failing         0         6  81920        1  connection refused (for 1 min 15 s)
   3  from  -          idle            0         0      0        -  -
   4  from  -          idle            0         0      0        -  -
3 other hosts; accepted at 10.1.1.11:7946 (TCP), opened with key 5f";
    assert_eq!(text, wanted);
    let text = show::bases::apps(&sample_apps(), 1_760_000_065_000, Style::Plain);
    let wanted = "\
NAME       VERSION  SERVICES          STATE       PROCESS  USER  ASKED  PENDING
line-echo        2  203.0.113.10:443  ready          4712    33      1        2
-                -  -                 connecting        0    33      0        0
socket /run/homing/homing.app.sock, for group www-data; states of up to 1048576 bytes
last turned away: process 4713 of user 33, 1 min 5 s ago: another version of the protocol: this agent speaks version 1";
    assert_eq!(text, wanted);
    let none = api::Apps {
        apps: vec![],
        turned_away: None,
        ..sample_apps()
    };
    let text = show::bases::apps(&none, 0, Style::Plain);
    assert!(
        text.starts_with("no application has registered\n"),
        "{text}"
    );
}

#[test]
fn message_sockets_as_plain_tables() {
    let text = show::bases::mux(&sample_mux(), 1, Style::Plain);
    let wanted = "\
MESSAGE SOCKET  FOR            STATE  SENT  HELD  BLOCKED  UNREAD  WAITING
1000000000007   offers orders  open     12     0        0     300        1
1 of 2 are shown; --limit shows more

";
    assert!(text.starts_with(wanted), "{text}");
    let last = "1160 bytes are held, 300 wait to be read; asked for at \
                /run/homing/homing.mux.sock, by group www-data; messages of up to 1048576 bytes, \
                encrypted";
    assert!(text.ends_with(last), "{text}");
    let text = show::bases::mux(&sample_mux(), 9, Style::Plain);
    assert!(
        text.contains("connected to 2000000000009 of host 2  ending"),
        "{text}"
    );
}

#[test]
fn stats_hide_what_is_zero() {
    let stats = sample_stats();
    let text = show::stats(&stats, None, false, Style::Plain);
    assert!(
        text.contains("forwarded") && text.contains("1234"),
        "{text}"
    );
    assert!(!text.contains("local_cookie"), "{text}");
    assert!(text.contains("eth0 rx_xdp_tx_errors"), "{text}");
    let all = show::stats(&stats, None, true, Style::Plain);
    assert!(all.contains("local_cookie"), "{all}");
    for counter in [
        "carriers opened",
        "apps registered",
        "moves moved",
        "parked held",
    ] {
        assert!(all.contains(counter), "{counter} is not in\n{all}");
        assert!(!text.contains(counter), "{text}");
    }
    let none = show::stats(&api::Stats::default(), None, false, Style::Plain);
    assert_eq!(none, "all counters are zero; --all shows them");
}

#[test]
fn a_claim_by_each_host_is_shown() {
    let tuple = homing_common::session::Tuple::between(
        endpoint("198.51.100.7:40312"),
        endpoint("203.0.113.10:443"),
        homing_common::net::TCP,
    );
    let text = show::owner(&sample_owner(tuple), Style::Plain);
    assert!(text.contains("claim    host 3, generation 0"), "{text}");
}

#[test]
fn agent_checks_its_configuration_before_it_starts() {
    let folder = Folder::new();
    let file = folder.0.join("homing.toml");
    let started = Arc::new(AtomicBool::new(false));
    let run = |args: &str| {
        let cli = parsed(&format!("homing agent --config {} {args}", file.display()));
        let started = Arc::clone(&started);
        let mut out = Vec::new();
        let done = execute(
            cli,
            async move |_, _| {
                started.store(true, Ordering::Relaxed);
                Ok(())
            },
            &mut out,
        );
        (done, String::from_utf8(out).expect("UTF-8"))
    };
    std::fs::write(&file, "colour = 1\n").expect("write");
    let failure = run("").0.expect_err("wrong");
    assert_eq!(failure.exit(), Exit::Config);
    let message = failure.to_string();
    assert!(
        message.contains("homing.toml:1: colour: unknown key"),
        "{message}"
    );

    std::fs::write(&file, include_str!("../../../dist/homing.toml")).expect("write");
    let (done, out) = run("--check-config");
    assert!(done.is_ok());
    assert!(
        out.ends_with("ok: host 1 in rack-1, 2 services, 2 seeds\n"),
        "{out}"
    );
    assert!(!started.load(Ordering::Relaxed));
    assert!(run("").0.is_ok());
    assert!(started.load(Ordering::Relaxed));
}

#[test]
fn completions_name_the_commands() {
    let mut out = Vec::new();
    let cli = parsed("homing completions bash");
    execute(cli, async |_, _| Ok(()), &mut out).expect("script");
    assert!(String::from_utf8_lossy(&out).contains("unload"));
}

/// Names of the pages that a command and those below it must have.
fn wanted_pages(command: &clap::Command, name: &str) -> Vec<String> {
    let commands = command.get_subcommands();
    let below = commands.filter(|command| !command.is_hide_set());
    let below =
        below.flat_map(|command| wanted_pages(command, &format!("{name}-{}", command.get_name())));
    std::iter::once(format!("{name}.1")).chain(below).collect()
}

#[test]
fn every_command_has_a_man_page_that_man_understands() {
    let folder = Folder::new();
    let mut out = Vec::new();
    let cli = parsed(&format!("homing man {}", folder.0.display()));
    execute(cli, async |_, _| Ok(()), &mut out).expect("pages");
    assert!(out.is_empty());
    let mut wanted = wanted_pages(&Cli::command(), "homing");
    wanted.sort();
    let pages = std::fs::read_dir(&folder.0).expect("folder");
    let mut found: Vec<_> = pages
        .map(|page| {
            page.expect("page")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    found.sort();
    assert_eq!(found, wanted);

    for name in &found {
        let path = folder.0.join(name);
        let page = std::fs::read_to_string(&path).expect("page");
        let title = name.trim_end_matches(".1");
        assert!(page.contains(&format!(".TH {title} 1 ")), "{name}:\n{page}");
        // A page that another one refers to is there.
        for (at, _) in page.match_indices("(1)") {
            let before = &page[..at];
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-\\".contains(c);
            let start = before.rfind(|c| !is_name(c)).map_or(0, |at| at + 1);
            let other = before[start..].replace('\\', "");
            let other = other.strip_prefix("fB").unwrap_or(&other).to_owned();
            let ours = other.starts_with("homing");
            let there = found.contains(&format!("{other}.1"));
            assert!(there || (!ours && other == "systemctl"), "{name}: {other}");
        }
        let man = std::process::Command::new("man")
            .args(["--warnings", "-E", "UTF-8", "-l", "-P", "cat"])
            .arg(&path)
            .env("MANWIDTH", "100")
            .output();
        let Ok(man) = man else {
            eprintln!("skipped: there is no man; get one with: apt-get install man-db");
            continue;
        };
        let said = String::from_utf8_lossy(&man.stderr);
        assert!(man.status.success() && said.is_empty(), "{name}: {said}");
        let text = String::from_utf8_lossy(&man.stdout);
        assert!(
            text.contains("SYNOPSIS") && text.contains("SEE ALSO"),
            "{text}"
        );
    }
    let root = std::fs::read_to_string(folder.0.join("homing.1")).expect("page");
    for part in [
        "EXIT CODES",
        "FILES",
        "EXAMPLES",
        "HOMING_CONFIG",
        "homing\\-drain(1)",
    ] {
        assert!(root.contains(part), "{part} is not in\n{root}");
    }
}
