//! Answers as people read them.

pub(super) mod bases;
mod stats;

use crate::{
    admin::api::{
        Answer, Asks, Change, Host, HostState, Hosts, KernelState, Keys, Latency, Log, Members,
        NextHop, Owner, Reloaded, Sessions, Status, SyncState,
    },
    config::Config,
};

use super::{
    drain,
    table::{Style, Table, list},
};
pub(super) use stats::stats;

/// What a good configuration says, in one line.
pub(super) fn checked(config: &Config) -> String {
    format!(
        "{}: ok: host {} in {}, {} services, {} seeds",
        config.path.display(),
        config.host.id,
        config.host.domain,
        config.services.len(),
        config.pop.seeds.len()
    )
}

pub(super) fn status(status: &Status, _: Style) -> String {
    let interfaces = status.interfaces.iter();
    let interfaces: Vec<_> = interfaces
        .map(|i| match i.egress {
            true => format!("{} ({})", i.name, i.mode),
            false => format!("{} ({}, no egress program)", i.name, i.mode),
        })
        .collect();
    let services = status.services.iter();
    let services: Vec<_> = services
        .map(|s| format!("{} {}", s.protocol, s.address))
        .collect();
    let multicast = match status.multicast {
        Some(group) => format!("multicast {group}"),
        None => "no multicast".to_owned(),
    };
    let sync = if status.gossip.in_sync {
        "in sync"
    } else {
        "catching up"
    };
    let mut rows = vec![
        (
            "host",
            format!(
                "{} in {}, instance {}",
                status.host, status.domain, status.instance
            ),
        ),
        (
            "agent",
            format!(
                "version {}, process {}, up {}, start {} of this kernel",
                status.version,
                status.pid,
                span(status.uptime_s),
                status.generation
            ),
        ),
        ("incarnation", status.incarnation.to_string()),
        ("fabric", format!("{}, {multicast}", status.address)),
        (
            "tunnel",
            format!(
                "{} in {}, here {} of {}, hop limit {}",
                status.tunnel.encapsulation,
                status.tunnel.network,
                status.tunnel.address,
                status.tunnel.prefix,
                status.tunnel.hop_limit
            ),
        ),
        ("interfaces", interfaces.join(", ")),
        ("cgroup", status.cgroup.display().to_string()),
        ("services", services.join(", ")),
        ("members", members(&status.members)),
        ("keys", keys(&status.keys)),
        (
            "sessions",
            format!(
                "{} here, room for {}{}",
                status.sessions.count,
                status.sessions.limit,
                if status.draining {
                    "; draining: new ones go elsewhere"
                } else {
                    ""
                }
            ),
        ),
        (
            "foreign",
            format!(
                "{} on other hosts, room for {}",
                status.foreign.count, status.foreign.limit
            ),
        ),
        (
            "gossip",
            format!(
                "{sync}, {} announced, {} applied",
                status.gossip.announced, status.gossip.applied
            ),
        ),
        (
            "open to applied",
            latency(&status.gossip.open_to_applied_us),
        ),
        ("unknown packets", unknown(status).to_owned()),
        ("asks", asks(&status.gossip.asks)),
        ("carriers", bases::carriers_line(&status.carriers)),
        ("applications", bases::apps_line(&status.apps)),
        ("messages", bases::mux_line(&status.mux)),
        ("moves", bases::moves_line(&status.moves)),
    ];
    if let Some(run) = &status.drain {
        rows.push(("drain", drain::line(run)));
    }
    if status.problems.is_empty() {
        rows.push(("problems", "none".to_owned()));
    }
    rows.extend(
        status
            .problems
            .iter()
            .map(|problem| ("problem", problem.clone())),
    );
    list(&rows)
}

/// How many hosts are in which state.
pub(super) fn members(members: &Members) -> String {
    format!(
        "{} alive, {} down, {} left",
        members.alive, members.down, members.left
    )
}

/// What becomes of packets of sessions that nobody is known to own.
fn unknown(status: &Status) -> &'static str {
    match (status.gossip.synced, status.draining, status.gossip.full) {
        (false, _, _) => "sent to other hosts: the sessions of the whole POP are not known here",
        (true, true, _) => "sent to other hosts: this one drains",
        (true, false, true) => "sent to other hosts: there is no room here for all sessions",
        (true, false, false) => "asked about",
    }
}

pub(super) fn asks(asks: &Asks) -> String {
    format!(
        "{} sessions, {} found, {} reset, {} open",
        asks.asked, asks.found, asks.reset, asks.open
    )
}

pub(super) fn latency(latency: &Latency) -> String {
    match (latency.p50, latency.p99) {
        (Some(p50), Some(p99)) => {
            format!(
                "median {p50} µs, 99 % within {p99} µs ({} samples)",
                latency.samples
            )
        }
        _ => "no samples yet".to_owned(),
    }
}

/// A time span in its two largest units.
pub(super) fn span(seconds: u64) -> String {
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s} s"),
        (0, 0, _) => format!("{m} min {s} s"),
        (0, ..) => format!("{h} h {m} min"),
        _ => format!("{d} d {h} h"),
    }
}

/// Keys by their public ids.
fn keys(keys: &Keys) -> String {
    let mut text = format!("{} signs", keys.signs);
    if let Some(other) = &keys.accepts {
        text += &format!(", {other} is accepted too");
    }
    if let Some(other) = &keys.session_other {
        let session = &keys.session;
        text += &format!("; sessions are looked up by {session}, and told by {other} too");
    }
    text
}

pub(super) fn log(log: &Log) -> String {
    match log.level == log.at_start {
        true => format!("logged is {}", log.level),
        false => format!(
            "logged is {}; from the next start on, {} again",
            log.level, log.at_start
        ),
    }
}

pub(super) fn reloaded(reloaded: &Reloaded) -> String {
    let mut text = String::new();
    for Change { key, from, to, .. } in &reloaded.changes {
        text += &format!("{key}: from {from} to {to}\n");
    }
    let path = reloaded.path.display();
    text += &match (reloaded.changed, reloaded.dry_run) {
        (false, _) => format!("{path} and the key file were read; they hold what is in force"),
        (true, false) => format!("{path} and the key file were read and are in force"),
        (true, true) => format!("{path} and the key file were read; a reload would do that"),
    };
    let would = match (reloaded.keys_changed, reloaded.dry_run) {
        (true, false) => "the POP's key has changed: ",
        (true, true) => "the POP's key would change: ",
        (false, _) => "the POP's key is as before: ",
    };
    text + "\n" + would + &keys(&reloaded.keys)
}

pub(super) fn hosts(hosts: &Hosts, now_unix_ms: u64, style: Style) -> String {
    let columns = [
        ">HOST",
        "DOMAIN",
        "STATE",
        "SINCE",
        "KERNEL",
        "ADDRESS",
        "TUNNEL",
        "NEXT HOP",
        "INTERFACE",
        ">MTU",
        ">CLAIMS",
        "SYNC",
    ];
    let mut table = Table::new(style, &columns);
    for host in &hosts.hosts {
        let since_s = now_unix_ms.saturating_sub(host.since_unix_ms) / 1_000;
        let (via, interface, mtu) = next_hop(host);
        table.row([
            host.host.to_string(),
            host.domain.clone().unwrap_or_else(dash),
            state(host).to_owned(),
            span(since_s),
            kernel(host, now_unix_ms),
            host.address
                .map_or_else(|| "-".to_owned(), |address| address.to_string()),
            host.tunnel_address.to_string(),
            via,
            interface,
            mtu,
            host.claims.to_string(),
            sync(host.sync),
        ]);
    }
    table.text()
}

pub(super) fn kernel(host: &Host, now_unix_ms: u64) -> String {
    let heard = host.kernel_heard_unix_ms;
    let ago = heard.map(|heard| span(now_unix_ms.saturating_sub(heard) / 1_000));
    match (host.kernel, ago) {
        _ if host.this_host => dash(),
        (KernelState::Silent | KernelState::Voided, Some(ago)) => {
            format!("{}, heard {ago} ago", host.kernel.label())
        }
        (state, _) => state.label().to_owned(),
    }
}

pub(super) fn state(host: &Host) -> &'static str {
    match host.state {
        HostState::Alive if host.draining => "draining",
        state => state.label(),
    }
}

pub(super) fn dash() -> String {
    "-".to_owned()
}

pub(super) fn next_hop(host: &Host) -> (String, String, String) {
    let Some(hop) = &host.next_hop else {
        let via = if host.this_host { "this host" } else { "-" };
        return (via.to_owned(), dash(), dash());
    };
    let NextHop {
        resolved,
        via,
        mac,
        interface,
        vlan,
        mtu,
    } = hop;
    let via = via.map(|via| via.to_string());
    let to = match (resolved, mac) {
        (true, Some(mac)) => [via.as_deref(), Some(mac)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
        _ => "unresolved".to_owned(),
    };
    let interface = interface.clone().map(|name| match vlan {
        Some(vlan) => format!("{name} vlan {vlan}"),
        None => name,
    });
    let mtu = mtu.map(|mtu| mtu.to_string());
    (to, interface.unwrap_or_else(dash), mtu.unwrap_or_else(dash))
}

pub(super) fn sync(sync: SyncState) -> String {
    match sync {
        SyncState::InSync => "in sync".to_owned(),
        SyncState::Gap { missing } => format!("{missing} missing"),
        SyncState::Syncing => "syncing".to_owned(),
        SyncState::Waiting => "waiting".to_owned(),
    }
}

pub(super) fn sessions(page: &Sessions, style: Style) -> String {
    let mut table = Table::new(
        style,
        &["CLIENT", "SERVICE", "PROTOCOL", "ID", ">AGE", ">MOVES"],
    );
    for session in &page.sessions {
        table.row([
            session.name.client.to_string(),
            session.name.service.to_string(),
            session.name.protocol.clone(),
            session.name.id.clone(),
            span(session.age_s as u64),
            session.generation.to_string(),
        ]);
    }
    let shown = page.sessions.len();
    let foot = match &page.next {
        Some(next) => format!(
            "{shown} of {}; the next: homing sessions --after '{next}'; all: --all",
            page.total
        ),
        None => format!("{shown} of {}", page.total),
    };
    format!("{}\n{foot}", table.text())
}

pub(super) fn owner(owner: &Owner, _: Style) -> String {
    let name = &owner.name;
    let session = format!(
        "{} > {} {}, id {}",
        name.client, name.service, name.protocol, name.id
    );
    let who = match (owner.answer, owner.owner) {
        (Answer::ThisHost, Some(host)) => format!("this host ({host})"),
        (Answer::ThisHost, None) => "this host".to_owned(),
        (Answer::OtherHost, Some(host)) => format!("host {host}"),
        (Answer::OtherHost, None) | (Answer::Unknown, _) => "unknown".to_owned(),
    };
    let mut rows = vec![
        ("session", session),
        ("owner", who),
        ("how", owner.how.clone()),
    ];
    let claims = owner.claims.iter();
    rows.extend(claims.map(|claim| {
        let text = format!("host {}, generation {}", claim.host, claim.generation);
        ("claim", text)
    }));
    list(&rows)
}
