//! Hosts, outcomes and other counters as lists that can be moved through.

use std::cmp::Ordering;

use ratatui::{style::Style, text::Line};

use super::{BAD, BOLD, Body, ODD, PLAIN, grid::Grid};
use crate::{
    admin::api::{Host, HostState, KernelState, Outcome, SyncState},
    cli::{
        rates::{self, OUTCOMES},
        show::{dash, kernel, next_hop, span, state, sync},
        top::model::{Model, Picture},
    },
};

/// What ends packets, in the words of JSON and of the screen.
pub(super) const VERDICTS: [(&str, &str); 3] = [
    ("pass", "passed"),
    ("forward", "forwarded"),
    ("drop", "dropped"),
];

/// What matters most stands first: a narrow terminal cuts off the rest.
const HOST_COLUMNS: [&str; 12] = [
    ">HOST",
    "STATE",
    "SYNC",
    ">CLAIMS",
    "SINCE",
    "KERNEL",
    "DOMAIN",
    "NEXT HOP",
    "INTERFACE",
    ">MTU",
    "ADDRESS",
    "TUNNEL",
];

/// All hosts by their ids.
pub(super) fn hosts(model: &Model, picture: &Picture, now_unix_ms: u64, room: usize) -> Body {
    let hosts: Vec<_> = picture.watch.hosts.iter().collect();
    list_of_hosts(model, &hosts, now_unix_ms, room)
}

/// These hosts, in this order.
pub(super) fn list_of_hosts(model: &Model, hosts: &[&Host], now_unix_ms: u64, room: usize) -> Body {
    let mut grid = Grid::new(&HOST_COLUMNS);
    for host in visible(model, hosts, room) {
        let (via, interface, mtu) = next_hop(host);
        let since_s = now_unix_ms.saturating_sub(host.since_unix_ms) / 1_000;
        let address = host.address.map(|address| address.to_string());
        let cells = [
            host.host.to_string(),
            state(host).to_owned(),
            sync(host.sync),
            host.claims.to_string(),
            span(since_s),
            kernel(host, now_unix_ms),
            host.domain.clone().unwrap_or_else(dash),
            via,
            interface,
            mtu,
            address.unwrap_or_else(dash),
            host.tunnel_address.to_string(),
        ];
        grid.row(style_of(host), cells);
    }
    body(grid, hosts.len())
}

/// How packets ended, by verdict, and in each by falling rate.
pub(super) fn outcomes(model: &Model, picture: &Picture, room: usize) -> Body {
    let rows = outcome_rows(picture, model.shows_zeros(), usize::MAX);
    let mut grid = Grid::new(&["OUTCOME", ">PER S", ">PACKETS", "MEANING"]);
    for (style, cells) in visible(model, &rows, room) {
        grid.row(*style, cells.clone());
    }
    body(grid, rows.len())
}

/// The rows of outcomes: of each verdict its sum, and at most `most` outcomes.
pub(super) fn outcome_rows(
    picture: &Picture,
    zeros: bool,
    most: usize,
) -> Vec<(Style, [String; 4])> {
    let mut rows = Vec::new();
    for (verdict, label) in VERDICTS {
        let (per_s, packets) = sum(picture, verdict);
        let cells = [
            label.to_owned(),
            rates::shown(per_s),
            packets.to_string(),
            String::new(),
        ];
        rows.push((BOLD, cells));
        let outcomes = picture.watch.stats.outcomes.iter();
        let mut of_verdict: Vec<_> = outcomes
            .filter(|outcome| outcome.verdict == verdict && (zeros || outcome.packets > 0))
            .map(|outcome| (rate(picture, outcome), outcome))
            .collect();
        of_verdict.sort_by(|a, b| by_rate(b, a));
        rows.extend(of_verdict.into_iter().take(most).map(|(per_s, outcome)| {
            let cells = [
                format!("  {}", outcome.name),
                rates::shown(per_s),
                outcome.packets.to_string(),
                outcome.help.clone(),
            ];
            (PLAIN, cells)
        }));
    }
    rows
}

/// How often packets ended with this verdict in a second, if that can be told, and how many
/// did in all.
pub(super) fn sum(picture: &Picture, verdict: &str) -> (Option<f64>, u64) {
    let outcomes = picture.watch.stats.outcomes.iter();
    let of_verdict = outcomes.filter(|outcome| outcome.verdict == verdict);
    of_verdict.fold((None, 0), |(per_s, packets), outcome| {
        let more = rate(picture, outcome);
        let per_s = per_s.map_or(more, |sum: f64| Some(sum + more.unwrap_or(0.0)));
        (per_s, packets.saturating_add(outcome.packets))
    })
}

fn rate(picture: &Picture, outcome: &Outcome) -> Option<f64> {
    picture.rates.of(OUTCOMES, &outcome.name)
}

/// By rate; where that is the same, by how often it was in all.
fn by_rate(a: &(Option<f64>, &Outcome), b: &(Option<f64>, &Outcome)) -> Ordering {
    let rates = a.0.unwrap_or(0.0).total_cmp(&b.0.unwrap_or(0.0));
    rates.then(a.1.packets.cmp(&b.1.packets))
}

/// All other counters.
pub(super) fn counters(model: &Model, picture: &Picture, room: usize) -> Body {
    let counted = rates::counters(&picture.watch.stats);
    let counted = counted.filter(|counted| model.shows_zeros() || counted.count > 0);
    let counted: Vec<_> = counted.collect();
    let mut grid = Grid::new(&["COUNTER", ">PER S", ">COUNT", "MEANING"]);
    for counted in visible(model, &counted, room) {
        let cells = [
            counted.full_name().into_owned(),
            rates::shown(picture.rates.of(counted.part, &counted.name)),
            counted.count.to_string(),
            counted.help.to_owned(),
        ];
        grid.row(PLAIN, cells);
    }
    body(grid, counted.len())
}

/// The rows of a list for which there is room below the names of its columns.
fn visible<'a, T>(model: &Model, rows: &'a [T], room: usize) -> &'a [T] {
    let room = room.saturating_sub(1).min(rows.len());
    let first = model.at().min(rows.len() - room);
    &rows[first..first + room]
}

/// A list whose visible rows are in the grid.
fn body(grid: Grid, rows: usize) -> Body {
    let mut lines = grid.lines().into_iter();
    let head: Vec<Line<'static>> = lines.by_ref().take(1).collect();
    Body {
        fixed: head,
        shown: lines.collect(),
        rows,
    }
}

/// Whether something is the matter with a host, and how much.
pub(super) fn style_of(host: &Host) -> Style {
    let way = host.this_host || host.next_hop.as_ref().is_some_and(|hop| hop.resolved);
    match host.state {
        HostState::Down => BAD,
        _ if host.kernel == KernelState::Voided => BAD,
        HostState::Left => ODD,
        HostState::Alive if !way || host.draining => ODD,
        HostState::Alive if host.kernel != KernelState::Alive => ODD,
        HostState::Alive if host.sync != SyncState::InSync => ODD,
        HostState::Alive => PLAIN,
    }
}
