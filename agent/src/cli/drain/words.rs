//! How a drain goes, and went, in words.

use crate::{
    admin::api::{CommandState, Drain, DrainEnd, DrainRun, Why},
    cli::table::{Style, Table},
};

/// One line, while it goes on.
pub(super) fn progress(drain: &Drain) -> String {
    let command = drain.command.as_ref();
    if let Some(command) = command.filter(|command| command.state == CommandState::Running) {
        return format!("drain.{} runs", command.name);
    }
    match &drain.run {
        Some(run) if run.end.is_none() => line(run),
        _ => format!("{} sessions left", drain.sessions),
    }
}

/// How the moving of sessions goes, in one line.
pub(in crate::cli) fn line(run: &DrainRun) -> String {
    let to_go = run.queued + run.moving;
    let mut text = format!("{} moved", run.moved);
    if run.ended > 0 {
        text += &format!(", {} ended", run.ended);
    }
    text += &match run.end {
        None => format!(", {to_go} to go"),
        Some(DrainEnd::Stopped) => ", stopped".to_owned(),
        Some(_) => String::new(),
    };
    if let (None, Some(rest_s)) = (run.end, run.rest_s) {
        text += &format!(" ({:.0} a second: {})", run.per_s, seconds(rest_s));
    }
    for (count, what) in [
        (
            run.left(),
            if run.end.is_none() {
                "cannot move"
            } else {
                "are left"
            },
        ),
        (sum(&run.gone), "gone"),
        (sum(&run.lost), "lost"),
        (run.arriving, "arriving"),
        (run.time_wait, "in TIME_WAIT"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    if let (None, Some(remaining_s)) = (run.end, run.remaining_s) {
        text += &format!("; deadline in {}", seconds(remaining_s));
    }
    text
}

/// How things stand, in full.
pub(in crate::cli) fn show(drain: &Drain, style: Style) -> String {
    let mut parts = vec![new_sessions(drain)];
    if let Some(run) = &drain.run {
        parts.push(match run.end {
            Some(_) => format!("{}, in {}", line(run), seconds(run.elapsed_s)),
            None => line(run),
        });
        if let (Some(p50), Some(p99)) = (run.frozen_us.p50, run.frozen_us.p99) {
            parts.push(format!(
                "a session that moved stood still for {p50} µs (median), 99 % for {p99} µs at most"
            ));
        }
        for (whys, title) in [
            (&run.lost, "LOST BECAUSE"),
            (&run.gone, "GONE, WHILE"),
            (&run.left, "LEFT BECAUSE"),
            (&run.failed, "MOVES FAILED BECAUSE"),
        ] {
            if !whys.is_empty() {
                parts.push(table(whys, title, style));
            }
        }
    }
    parts.join("\n")
}

fn new_sessions(drain: &Drain) -> String {
    let Drain {
        draining,
        sessions,
        takers,
        ..
    } = *drain;
    if !draining {
        return format!("this host takes new sessions; {sessions} are open");
    }
    let open = match sessions {
        0 => "none is open".to_owned(),
        1 => "1 is still open".to_owned(),
        more => format!("{more} are still open"),
    };
    if takers == 0 {
        return format!(
            "this host drains, but no other host takes new sessions: they are opened here all \
             the same; {open}"
        );
    }
    format!("this host takes no new sessions, {takers} others do; {open}")
}

fn table(whys: &[Why], title: &str, style: Style) -> String {
    let mut table = Table::new(style, &[">SESSIONS", "REASON", title]);
    for why in whys {
        table.row([
            why.sessions.to_string(),
            why.reason.clone(),
            why.meaning.clone(),
        ]);
    }
    table.text()
}

fn sum(whys: &[Why]) -> u64 {
    whys.iter().map(|why| why.sessions).sum()
}

fn seconds(seconds: f64) -> String {
    match seconds {
        under if under < 10.0 => format!("{under:.1} s"),
        under if under < 120.0 => format!("{under:.0} s"),
        more => format!("{:.0} min", more / 60.0),
    }
}
