//! `homing stats --watch`: the counters again and again, with rates.

use std::{collections::HashMap, io::Write, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{Failure, Output, client::Agent, rates::Rates, show, table::Style};
use crate::admin::api::Stats;

/// How long the agent is waited for each time.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Where the cursor is put before a screen is written over.
const HOME: &str = "\x1b[H";
/// Clears all of the screen.
const CLEAR: &str = "\x1b[2J";
/// Clears what is left of a line, and of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// What ends a command that goes on: it has done what it was told.
pub(super) struct Stop {
    signals: Vec<Signal>,
}

impl Stop {
    pub(super) fn new() -> Result<Self, Failure> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let signals = kinds.into_iter().map(signal).collect::<Result<_, _>>();
        Ok(Self {
            signals: signals.context("cannot listen to signals")?,
        })
    }

    /// Returns once one of the signals has come.
    pub(super) async fn wait(&mut self) {
        let each = self
            .signals
            .iter_mut()
            .map(|signal| Box::pin(signal.recv()));
        futures_util::future::select_all(each).await;
    }
}

/// Prints the counters each `every` until it is stopped, or its reader hangs up.
pub(super) async fn stats(
    agent: &Agent,
    every: Duration,
    all: bool,
    view: &Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut printer = Printer {
        view,
        all,
        is_first: true,
    };
    let ask = || agent.get_within::<Stats>("/stats", ANSWER_WITHIN);
    let mut before = tokio::select! {
        answer = ask() => answer?,
        () = stop.wait() => return Ok(()),
    };
    printer.print(out, &before, &Rates::default())?;
    let mut is_silent = false;
    loop {
        let answer = tokio::select! {
            answer = async { ticks.tick().await; ask().await } => answer,
            () = stop.wait() => return Ok(()),
        };
        match answer {
            Ok(now) => {
                is_silent = false;
                printer.print(out, &now, &Rates::between(&before, &now))?;
                before = now;
            }
            Err(failure) if is_silent => drop(failure),
            Err(failure) => {
                is_silent = true;
                // Nobody is left to tell if this fails too.
                let _ = writeln!(std::io::stderr(), "homing: {failure}; it is asked again");
            }
        }
    }
}

/// Prints counters in the form that is wanted.
struct Printer<'a> {
    view: &'a Output,
    all: bool,
    is_first: bool,
}

impl Printer<'_> {
    fn print(&mut self, out: &mut dyn Write, now: &Stats, rates: &Rates) -> Result<(), Failure> {
        if self.view.json {
            writeln!(out, "{}", line(now, rates)?)?;
        } else if self.view.terminal {
            if self.is_first {
                write!(out, "{CLEAR}")?;
            }
            let text = show::stats(now, Some(rates), self.all, Style::Plain);
            let room = crossterm::terminal::size().unwrap_or((80, 24));
            write!(out, "{}", in_place(&text, room))?;
        } else {
            let text = show::stats(now, Some(rates), self.all, Style::Plain);
            writeln!(out, "{text}\n")?;
        }
        self.is_first = false;
        Ok(out.flush()?)
    }
}

/// One line of JSON.
fn line(now: &Stats, rates: &Rates) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(flatten)]
        stats: &'a Stats,
        over_s: Option<f64>,
        per_s: &'a HashMap<&'static str, HashMap<String, f64>>,
    }
    let line = Line {
        stats: now,
        over_s: rates.over_s(),
        per_s: rates.by_part(),
    };
    Ok(serde_json::to_string(&line).map_err(anyhow::Error::from)?)
}

/// What writes a text over what the terminal shows: as much of it as there is room for.
fn in_place(text: &str, (columns, rows): (u16, u16)) -> String {
    let (columns, rows) = (usize::from(columns), usize::from(rows));
    let lines: Vec<_> = text.lines().collect();
    // The last line of the terminal stays free: there the cursor waits.
    let mut shown = rows.saturating_sub(1).min(lines.len());
    let mut foot = None;
    if shown < lines.len() {
        shown = shown.saturating_sub(1);
        foot = Some(format!(
            "{} lines more: make the terminal larger, or use `homing top`",
            lines.len() - shown
        ));
    }
    let mut screen = HOME.to_owned();
    for line in lines.into_iter().take(shown).chain(foot.as_deref()) {
        screen.extend(line.chars().take(columns));
        screen += CLEAR_LINE;
        screen.push('\n');
    }
    screen + CLEAR_BELOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::fake::sample_stats, cli::rates::tests::later};

    #[test]
    fn a_line_has_the_document_and_the_rates() {
        let first = line(&sample_stats(), &Rates::default()).expect("JSON");
        let first: serde_json::Value = serde_json::from_str(&first).expect("JSON");
        assert!(first["over_s"].is_null(), "{first}");
        assert_eq!(first["per_s"], serde_json::json!({}));
        let now = later(2, 9);
        let rates = Rates::between(&sample_stats(), &now);
        let second = line(&now, &rates).expect("JSON");
        assert!(!second.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&second).expect("JSON");
        assert_eq!(value["over_s"], 2.0);
        assert_eq!(value["per_s"]["outcomes"]["forwarded"], 4.5);
        assert_eq!(value["per_s"]["gossip"]["records_applied"], 4.5);
        let stats: Stats = serde_json::from_str(&second).expect("the document is in it");
        assert_eq!(stats, now);
    }

    #[test]
    fn tables_have_a_column_of_rates_when_they_are_watched() {
        let now = later(2, 9);
        let rates = Rates::between(&sample_stats(), &now);
        let text = show::stats(&now, Some(&rates), false, Style::Plain);
        let outcomes = "\
OUTCOME    VERDICT  PACKETS  PER S  MEANING
forwarded  forward     1243    4.5  ";
        assert!(text.starts_with(outcomes), "{text}");
        assert!(
            text.contains("gossip records_applied         99    4.5  "),
            "{text}"
        );
        let first = show::stats(&now, Some(&Rates::default()), false, Style::Plain);
        assert!(first.contains("forward     1243      -  "), "{first}");
    }

    #[test]
    fn what_has_no_room_is_cut_off_and_told() {
        let text = "one\ntwo and more\nthree\nfour";
        let screen = in_place(text, (7, 9));
        assert_eq!(
            screen,
            "\x1b[Hone\x1b[K\ntwo and\x1b[K\nthree\x1b[K\nfour\x1b[K\n\x1b[J"
        );
        let screen = in_place(text, (9, 4));
        assert_eq!(
            screen,
            "\x1b[Hone\x1b[K\ntwo and m\x1b[K\n2 lines m\x1b[K\n\x1b[J"
        );
        for size in [(0, 0), (1, 1), (0, 9), (9, 2)] {
            in_place(text, size);
        }
    }
}
