//! The command line: `homing agent` and the commands that ask a running agent.
//!
//! A command prints what it was asked for on the standard output and nothing
//! else; what goes wrong is one message on the standard error and an [`Exit`]
//! code that scripts can rely on. A reader that hangs up early (`| head`) is no
//! error.

mod args;
mod capture;
mod client;
mod doctor;
mod drain;
mod explain;
mod journal;
mod key;
mod logs;
mod man;
mod moving;
mod rates;
mod show;
mod table;
#[cfg(test)]
mod tests;
mod top;
#[cfg(test)]
mod trouble;
mod unload;
mod watch;

use std::{
    future::Future,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use clap::{CommandFactory, Parser};
use serde::Serialize;

use crate::{
    admin::{Logs, api, server},
    config::{self, Config, Problems},
};
use args::{AgentArgs, Cli, Command, MuxCommand, SessionsArgs};
use client::Agent;

/// How a command ended. The discriminant is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was told.
    Ok = 0,
    /// It failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No agent answers.
    Unreachable = 3,
    /// What was asked about is not known, such as the owner of a session.
    NotFound = 4,
    /// The configuration is wrong.
    Config = 5,
}

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Config(#[from] Problems),
    /// The agent says that it is.
    #[error("{0}")]
    RefusedConfig(String),
    #[error(
        "cannot reach the agent at {}: {why}; is it running? `systemctl status homing`",
        socket.display()
    )]
    Unreachable { socket: PathBuf, why: String },
    #[error("{0}")]
    NotFound(String),
    /// Everything has been printed; the exit code says the rest.
    #[error("not found")]
    PrintedNotFound,
    /// The same, of what failed.
    #[error("failed")]
    PrintedFailed,
    /// The same, of a configuration that is wrong.
    #[error("the configuration is wrong")]
    PrintedConfig,
    /// It is in the log.
    #[error("failed")]
    Logged,
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::RefusedConfig(_) | Self::PrintedConfig => Exit::Config,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::NotFound(_) | Self::PrintedNotFound => Exit::NotFound,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Self::Output(_) | Self::Other(_) | Self::Logged | Self::PrintedFailed => Exit::Failed,
        }
    }

    fn is_silent(&self) -> bool {
        matches!(
            self,
            Self::PrintedNotFound | Self::PrintedFailed | Self::PrintedConfig | Self::Logged
        ) || self.exit() == Exit::Ok
    }
}

/// The `homing` binary; `run` is the daemon that `homing agent` starts.
pub fn main<F>(run: impl FnOnce(Config, Arc<dyn Logs>) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let cli = Cli::parse();
    let mut out = io::stdout().lock();
    let done = execute(cli, run, &mut out).and_then(|()| Ok(out.flush()?));
    let exit = match done {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            if !failure.is_silent() {
                // Problems of a file begin with its name and line, as editors want.
                let by = if failure.exit() == Exit::Config {
                    ""
                } else {
                    "homing: "
                };
                // Nobody is left to tell if this fails too.
                let _ = writeln!(io::stderr(), "{by}{failure}");
            }
            failure.exit()
        }
    };
    ExitCode::from(exit as u8)
}

fn execute<F>(
    cli: Cli,
    run: impl FnOnce(Config, Arc<dyn Logs>) -> F,
    out: &mut dyn Write,
) -> Result<(), Failure>
where
    F: Future<Output = anyhow::Result<()>>,
{
    match cli.command {
        Command::Agent(ref args) => agent(&cli, args, run, out),
        Command::Key(ref args) => {
            let report = key::key(&cli, &args.step, args.file.as_deref())?;
            let view = Output {
                json: cli.json,
                terminal: io::stdout().is_terminal(),
            };
            view.print(out, &report, |_| report.to_string())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "homing", &mut script);
            Ok(out.write_all(&script)?)
        }
        Command::Doctor => block_on(doctor::doctor(&cli, out)),
        Command::Man { folder } => Ok(man::write(&folder)
            .with_context(|| format!("cannot write man pages into {}", folder.display()))?),
        _ => block_on(ask(&cli, out)),
    }
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    runtime.block_on(work)
}

fn agent<F>(
    cli: &Cli,
    args: &AgentArgs,
    run: impl FnOnce(Config, Arc<dyn Logs>) -> F,
    out: &mut dyn Write,
) -> Result<(), Failure>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut config = Config::load(&cli.config)?;
    if let Some(socket) = &cli.socket {
        config.give_socket(socket.clone());
    }
    if args.check_config {
        writeln!(out, "{}", show::checked(&config))?;
        return Ok(());
    }
    let log = logs::init(&args.log)?;
    // One thread: what an event of the kernel sets off passes through several tasks,
    // and with more threads each step wakes another of them (measured: half of all
    // context switches and a tenth of the processor's time). Whatever takes long has
    // threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    let done = runtime.block_on(run(config, log));
    if let Err(error) = &done {
        tracing::error!(
            error = format!("{error:#}"),
            fix = "put right what the error names (`homing doctor` examines this host); systemd starts the agent again, and the kernel goes on forwarding what it knows",
            "the agent ends"
        );
    }
    done.map_err(|_| Failure::Logged)
}

/// The commands that talk to a running agent.
async fn ask(cli: &Cli, out: &mut dyn Write) -> Result<(), Failure> {
    let view = Output {
        json: cli.json,
        terminal: io::stdout().is_terminal(),
    };
    let agent = Agent::new(socket(cli), read_socket(cli));
    match &cli.command {
        Command::Status => {
            let status: api::Status = agent.get("/status").await?;
            view.print(out, &status, |style| show::status(&status, style))
        }
        Command::Hosts => {
            let hosts: api::Hosts = agent.get("/hosts").await?;
            view.print(out, &hosts, |style| {
                show::hosts(&hosts, now_unix_ms(), style)
            })
        }
        Command::Sessions(args) => {
            let sessions = sessions(&agent, args).await?;
            view.print(out, &sessions, |style| show::sessions(&sessions, style))
        }
        Command::Owner(args) => {
            let query = format!(
                "/owner?client={}&service={}&protocol={}",
                args.client, args.service, args.protocol
            );
            let owner: api::Owner = agent.get(&query).await?;
            view.print(out, &owner, |style| show::owner(&owner, style))?;
            match owner.answer {
                api::Answer::Unknown => Err(Failure::PrintedNotFound),
                api::Answer::ThisHost | api::Answer::OtherHost => Ok(()),
            }
        }
        Command::Explain(args) => {
            let explanations = explain::explain(&agent, args).await?;
            view.print(out, &explanations, |style| {
                explain::show(&explanations, args, style)
            })?;
            explain::judge(&explanations)
        }
        Command::Capture(args) => capture::capture(&agent, args).await,
        Command::Apps => {
            let apps: api::Apps = agent.get("/apps").await?;
            view.print(out, &apps, |style| {
                show::bases::apps(&apps, now_unix_ms(), style)
            })
        }
        Command::Carriers => {
            let carriers: api::Carriers = agent.get("/carriers").await?;
            view.print(out, &carriers, |style| {
                show::bases::carriers(&carriers, style)
            })
        }
        Command::Mux(args) => {
            let MuxCommand::Status { limit } = args.what;
            let mux: api::Mux = agent.get("/mux").await?;
            view.print(out, &mux, |style| show::bases::mux(&mux, limit, style))
        }
        Command::Stats(args) => match args.watch {
            Some(interval) => watch::stats(&agent, interval, args.all, &view, out).await,
            None => {
                let stats: api::Stats = agent.get("/stats").await?;
                view.print(out, &stats, |style| {
                    show::stats(&stats, None, args.all, style)
                })
            }
        },
        Command::Top(args) => top::top(&agent, args.interval, &view).await,
        Command::Drain(args) => {
            let drain = drain::drain(&agent, args, cli.json).await?;
            view.print(out, &drain, |style| drain::show(&drain, style))?;
            drain::judge_drain(&drain, args)
        }
        Command::Move(args) => {
            let moved = moving::move_session(&agent, args).await?;
            view.print(out, &moved, |_| moving::show(&moved))?;
            moving::judge(&moved)
        }
        Command::Log { level } => {
            let log: api::Log = match level {
                None => agent.get("/log").await?,
                Some(level) => {
                    let level: String = form_urlencoded::byte_serialize(level.as_bytes()).collect();
                    agent.post(&format!("/log?level={level}")).await?
                }
            };
            view.print(out, &log, |_| show::log(&log))
        }
        Command::Reload { dry_run } => {
            is_its_configuration(cli, &agent).await?;
            let path = format!("/reload?dry_run={dry_run}");
            let reloaded = agent
                .post_within::<api::Reloaded>(&path, server::RELOADED_WITHIN)
                .await;
            let reloaded = reloaded.map_err(|failure| unheard(cli, failure))?;
            view.print(out, &reloaded, |_| show::reloaded(&reloaded))
        }
        Command::Undrain => {
            let drain = drain::undrain(&agent).await?;
            view.print(out, &drain, |style| drain::show(&drain, style))?;
            drain::judge_undrain(&drain)
        }
        Command::Unload(args) => {
            let report = unload::unload(cli, args, &agent).await?;
            view.print(out, &report, |_| report.to_string())
        }
        Command::Agent(_)
        | Command::Key(_)
        | Command::Doctor
        | Command::Completions { .. }
        | Command::Man { .. } => {
            unreachable!("they ask no agent")
        }
    }
}

/// Refuses a reload where a file that is wrong hides which agent it is of, and the one that
/// is asked instead goes by another file.
async fn is_its_configuration(cli: &Cli, agent: &Agent) -> Result<(), Failure> {
    let Err(problems) = Config::load(&cli.config) else {
        return Ok(());
    };
    if cli.socket.is_some() {
        return Ok(());
    }
    let held = agent.get::<api::InForce>("/config").await;
    let held = held.map_err(|failure| unheard(cli, failure))?;
    let same = |path: &std::path::Path| std::fs::canonicalize(path).ok();
    match same(&held.path) == same(&cli.config) {
        // It says itself what is wrong.
        true => Ok(()),
        false => Err(problems.into()),
    }
}

/// Why a reload was not heard of: a configuration that is wrong may be why the agent was
/// looked for at another socket than its own.
fn unheard(cli: &Cli, failure: Failure) -> Failure {
    match (&failure, Config::load(&cli.config)) {
        (Failure::Unreachable { .. }, Err(problems)) if cli.socket.is_none() => problems.into(),
        _ => failure,
    }
}

/// How answers are printed.
struct Output {
    json: bool,
    terminal: bool,
}

impl Output {
    fn print<T: Serialize>(
        &self,
        out: &mut dyn Write,
        answer: &T,
        show: impl FnOnce(table::Style) -> String,
    ) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(answer).map_err(anyhow::Error::from)?
        } else if self.terminal {
            show(table::Style::Lines)
        } else {
            show(table::Style::Plain)
        };
        writeln!(out, "{}", text.trim_end())?;
        Ok(())
    }
}

/// One page of sessions, or all of them in one.
async fn sessions(agent: &Agent, args: &SessionsArgs) -> Result<api::Sessions, Failure> {
    let page = async |after: Option<&str>| {
        let after = after.map(|after| format!("&after={after}"));
        let query = format!(
            "/sessions?limit={}{}",
            args.limit,
            after.unwrap_or_default()
        );
        agent.get::<api::Sessions>(&query).await
    };
    let mut sessions = page(args.after.as_deref()).await?;
    while args.all
        && let Some(next) = sessions.next.take()
    {
        let more = page(Some(&next)).await?;
        sessions.sessions.extend(more.sessions);
        sessions.total = more.total;
        sessions.next = more.next;
    }
    Ok(sessions)
}

/// Where the agent answers those who may only read, if it does: not if a socket was given.
fn read_socket(cli: &Cli) -> Option<PathBuf> {
    let usual = || config::default_read_socket(config::DEFAULT_INSTANCE);
    let configured = || Some(Config::load(&cli.config).ok()?.admin.read_socket);
    (cli.socket.is_none()).then(|| configured().unwrap_or_else(usual))
}

/// The agent's socket: as given, else as configured, else the usual one. A
/// configuration that is missing or wrong is not the business of who only asks.
fn socket(cli: &Cli) -> PathBuf {
    let given = cli.socket.clone();
    let configured = || Some(Config::load(&cli.config).ok()?.admin.socket);
    given
        .or_else(configured)
        .unwrap_or_else(|| config::default_socket(config::DEFAULT_INSTANCE))
}

fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
