//! The screen that shows something of everything.

use ratatui::{
    style::Style,
    text::{Line, Span},
};

use super::{
    BAD, BOLD, Body, ODD, PLAIN,
    grid::Grid,
    lists::{VERDICTS, list_of_hosts, outcome_rows, style_of, sum},
};
use crate::{
    admin::api::Usage,
    cli::{
        drain,
        rates::{self, GOSSIP, HOOKS},
        show::{asks, bases, latency},
        top::model::{Model, Picture},
    },
};

/// Outcomes may take one line of so many that facts leave.
const OUTCOMES_SHARE: usize = 2;

/// Which hosts stand first.
const ORDER: [Style; 3] = [BAD, ODD, PLAIN];

/// Facts, the outcomes of most packets, and hosts: first those that something is the matter
/// with.
pub(super) fn body(model: &Model, picture: &Picture, now_unix_ms: u64, room: usize) -> Body {
    let mut fixed = facts(picture);
    let left = room.saturating_sub(fixed.len());
    // The names of the columns, and an empty line on both sides.
    let for_outcomes = (left / OUTCOMES_SHARE).saturating_sub(3);
    if let Some(most) = (for_outcomes / VERDICTS.len()).checked_sub(1) {
        let mut grid = Grid::new(&["OUTCOME", ">PER S", ">PACKETS", "MEANING"]);
        for (style, cells) in outcome_rows(picture, false, most) {
            grid.row(style, cells);
        }
        fixed.push(Line::default());
        fixed.extend(grid.lines());
        fixed.push(Line::default());
    }
    let mut hosts: Vec<_> = picture.watch.hosts.iter().collect();
    hosts.sort_by_key(|host| ORDER.iter().position(|style| *style == style_of(host)));
    // A list without room for a host or two tells less than the facts do.
    let left = room.saturating_sub(fixed.len());
    let list = list_of_hosts(model, &hosts, now_unix_ms, left);
    fixed.extend(list.fixed);
    Body { fixed, ..list }
}

/// A line each.
fn facts(picture: &Picture) -> Vec<Line<'static>> {
    let status = &picture.watch.status;
    let gossip = &status.gossip;
    let hook = |name| rates::shown(picture.rates.of(HOOKS, name));
    let of_gossip = |name| picture.rates.of(GOSSIP, name);
    let per_s = |name| rates::shown(of_gossip(name));
    let packets = VERDICTS.map(|(verdict, label)| {
        let (per_s, _) = sum(picture, verdict);
        format!("{label} {}/s", rates::shown(per_s))
    });
    let announced = match (of_gossip("opened_here"), of_gossip("closed_here")) {
        (Some(opened), Some(closed)) => Some(opened + closed),
        _ => None,
    };
    let in_sync = match gossip.in_sync {
        true => "in sync",
        false => "catching up",
    };
    let mut facts = vec![
        (
            "sessions",
            format!(
                "{} here, opened {}/s, closed {}/s; {} on other hosts",
                status.sessions.count,
                hook("sessions_opened"),
                hook("sessions_closed"),
                status.foreign.count
            ),
        ),
        (
            "tables",
            format!(
                "own {}, owners {}",
                filled(&status.sessions),
                filled(&status.foreign)
            ),
        ),
        ("packets", packets.join(", ")),
        (
            "gossip",
            format!(
                "{in_sync}, announced {}/s, applied {}/s, repairs asked {}/s",
                rates::shown(announced),
                per_s("records_applied"),
                per_s("repairs_asked"),
            ),
        ),
        (
            "datagrams",
            format!(
                "heard {}/s ({}), sent {}/s ({})",
                per_s("datagrams_received"),
                bytes_per_s(of_gossip("received_bytes")),
                per_s("datagrams_sent"),
                bytes_per_s(of_gossip("sent_bytes")),
            ),
        ),
        ("lag", latency(&gossip.open_to_applied_us)),
        (
            "asks",
            format!("{}/s, {}", per_s("ask_sessions"), asks(&gossip.asks)),
        ),
        ("moves", bases::moves_line(&status.moves)),
    ];
    if let Some(run) = &status.drain {
        facts.push(("drain", drain::line(run)));
    }
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = facts.into_iter().map(|(name, text)| {
        let name = Span::styled(format!("{name:width$}  "), BOLD);
        Line::from(vec![name, Span::raw(text)])
    });
    lines.collect()
}

/// How full a table is.
fn filled(usage: &Usage) -> String {
    let share = match usage.limit {
        0 => "no room".to_owned(),
        limit => format!("{:.1} %", usage.count as f64 * 100.0 / limit as f64),
    };
    format!("{} of {} ({share})", usage.count, usage.limit)
}

fn bytes_per_s(per_s: Option<f64>) -> String {
    match per_s {
        None => "-".to_owned(),
        Some(per_s) if per_s < 1e3 => format!("{per_s:.0} B/s"),
        Some(per_s) if per_s < 1e6 => format!("{:.1} kB/s", per_s / 1e3),
        Some(per_s) => format!("{:.1} MB/s", per_s / 1e6),
    }
}
