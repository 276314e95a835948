//! `homing doctor`: examines this host, with and without a running agent.

use std::io::{self, IsTerminal, Write};

use super::{
    Failure, Output,
    args::Cli,
    client::Agent,
    read_socket, socket,
    table::{Style, Table},
};
use crate::{
    admin::api,
    config::Config,
    doctor::{self, AgentFacts, Finding, Level, Report},
};

/// Examines the host and prints what was found.
pub(super) async fn doctor(cli: &Cli, out: &mut dyn Write) -> Result<(), Failure> {
    let agent = Agent::new(socket(cli), read_socket(cli));
    let answers = ask(&agent).await.map_err(|failure| failure.to_string());
    let config = Config::load(&cli.config);
    let is_wrong = config.is_err();
    let report = doctor::examine(&doctor::gather(config, answers));
    let view = Output {
        json: cli.json,
        terminal: io::stdout().is_terminal(),
    };
    view.print(out, &report, |style| show(&report, style))?;
    judge(&report, is_wrong)
}

/// What a running agent says.
async fn ask(agent: &Agent) -> Result<AgentFacts, Failure> {
    let status: api::Status = agent.get("/status").await?;
    Ok(AgentFacts {
        pid: agent.pid().await,
        // One of an earlier version does not tell.
        in_force: agent.get("/config").await.ok(),
        status,
        hosts: agent.get("/hosts").await?,
    })
}

/// How the command ends.
fn judge(report: &Report, config_is_wrong: bool) -> Result<(), Failure> {
    match report.worst {
        _ if config_is_wrong => Err(Failure::PrintedConfig),
        Level::Ok | Level::Note => Ok(()),
        Level::Warning | Level::Error => Err(Failure::PrintedFailed),
    }
}

/// All checks, a line each; then what is not well, the worst first.
fn show(report: &Report, style: Style) -> String {
    let mut table = Table::new(style, &["CHECK", "LEVEL", "SEEN"]);
    for finding in &report.findings {
        let Finding {
            name, level, seen, ..
        } = finding;
        table.row([name.clone(), level.label().to_owned(), seen.clone()]);
    }
    let mut text = table.text();
    let mut bad: Vec<_> = report
        .findings
        .iter()
        .filter(|f| f.level > Level::Ok)
        .collect();
    bad.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    for finding in bad {
        let (level, name, seen) = (finding.level.label(), &finding.name, &finding.seen);
        text += &format!("\n\n{level}: {name}: {seen}");
        if let Some(why) = &finding.why {
            text += &format!("\n  why  {why}");
        }
        if let Some(fix) = &finding.fix {
            text += &format!("\n  fix  {fix}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::{
        admin::{fake::Folder, tests::Served},
        cli::Exit,
    };

    /// What the command prints with the example configuration, and how it ends.
    async fn run(text: &str, args: &str) -> (Report, Exit) {
        let folder = Folder::new();
        let file = folder.0.join("homing.toml");
        std::fs::write(&file, text).expect("write");
        let line = format!("homing doctor --json --config {} {args}", file.display());
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("command line");
        let mut out = Vec::new();
        let exit = match doctor(&cli, &mut out).await {
            Ok(()) => Exit::Ok,
            Err(failure) => {
                assert!(failure.is_silent(), "{failure}");
                failure.exit()
            }
        };
        (serde_json::from_slice(&out).expect("JSON"), exit)
    }

    #[tokio::test]
    async fn a_host_is_examined_with_and_without_an_agent_and_a_configuration() {
        let example = include_str!("../../../dist/homing.toml");
        let of = |report: &Report, name: &str| {
            let of = report
                .findings
                .iter()
                .filter(|finding| finding.name == name);
            of.cloned().collect::<Vec<_>>()
        };
        let (report, exit) = run(example, "--socket /nowhere/homing.sock").await;
        // No machine that tests run on has the example's addresses.
        assert_eq!(exit, Exit::Failed);
        assert_eq!(of(&report, "agent")[0].level, Level::Note);
        assert_eq!(of(&report, "configuration")[0].level, Level::Ok);
        assert_eq!(of(&report, "service_addresses").len(), 2);
        assert_eq!(of(&report, "problem"), []);

        let served = Served::new();
        let (report, exit) = run(example, &format!("--socket {}", served.path.display())).await;
        assert_eq!(exit, Exit::Failed);
        assert!(of(&report, "agent")[0].seen.contains("2 hosts alive"));
        assert!(of(&report, "problem")[0].seen.starts_with("host 3 is down"));

        let (report, exit) = run("x = 1", "--socket /nowhere/homing.sock").await;
        assert_eq!(exit, Exit::Config);
        assert!(!of(&report, "configuration").is_empty());
        assert_eq!(of(&report, "service_addresses"), []);
        assert_eq!(of(&report, "clock").len(), 1);
    }

    fn finding(name: &str, level: Level) -> Finding {
        let is_bad = level > Level::Ok;
        Finding {
            name: name.to_owned(),
            level,
            seen: "seen".to_owned(),
            why: is_bad.then(|| "it matters".to_owned()),
            fix: is_bad.then(|| "a command".to_owned()),
        }
    }

    fn report(levels: &[Level]) -> Report {
        Report {
            worst: *levels.iter().max().expect("some"),
            findings: levels.iter().map(|level| finding("mtu", *level)).collect(),
        }
    }

    #[test]
    fn every_check_is_in_the_help_and_in_the_manual() {
        let help = Cli::command()
            .find_subcommand_mut("doctor")
            .expect("command")
            .render_long_help()
            .to_string();
        let manual = include_str!("../../../docs/operating.md");
        for name in doctor::names() {
            let in_help = help
                .lines()
                .any(|line| line.split(' ').any(|word| word == name));
            assert!(in_help, "{name} is not in\n{help}");
            assert!(manual.contains(&format!("| `{name}` |")), "{name}");
        }
    }

    #[test]
    fn warnings_fail_and_notes_do_not() {
        let exit = |levels: &[Level], wrong| match judge(&report(levels), wrong) {
            Ok(()) => Exit::Ok,
            Err(failure) => failure.exit(),
        };
        assert_eq!(exit(&[Level::Ok, Level::Note], false), Exit::Ok);
        assert_eq!(exit(&[Level::Ok, Level::Warning], false), Exit::Failed);
        assert_eq!(exit(&[Level::Error, Level::Ok], false), Exit::Failed);
        assert_eq!(exit(&[Level::Error], true), Exit::Config);
    }

    #[test]
    fn the_worst_stands_first_below_the_table() {
        let report = report(&[Level::Note, Level::Ok, Level::Error]);
        let text = show(&report, Style::Plain);
        let wanted = "\
CHECK  LEVEL  SEEN
mtu    note   seen
mtu    ok     seen
mtu    error  seen

error: mtu: seen
  why  it matters
  fix  a command

note: mtu: seen
  why  it matters
  fix  a command";
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines.join("\n"), wanted);
    }
}
