//! Moves, carriers and applications as people read them.

use crate::{
    admin::api::{
        App, Apps, AppsSum, CarrierPeer, CarrierState, Carriers, CarriersSum, MovesSum, Mux, MuxSum,
    },
    cli::table::{Style, Table},
};

use super::{dash, span};

/// All carriers, in a line.
pub(super) fn carriers_line(sum: &CarriersSum) -> String {
    let mut text = format!("{} to other hosts, {} from them", sum.to, sum.from);
    if sum.queued_bytes > 0 {
        text += &format!(", {} bytes under way", sum.queued_bytes);
    }
    if sum.failing > 0 {
        text += &format!(", {} cannot be opened", sum.failing);
    }
    text
}

/// All applications, in a line.
pub(super) fn apps_line(sum: &AppsSum) -> String {
    let mut text = format!(
        "{} for {} services, {} moves pending",
        sum.ready, sum.services, sum.pending
    );
    if sum.connecting > 0 {
        text += &format!("; {} not ready yet", sum.connecting);
    }
    text
}

/// Moves that are under way, in a line.
pub(in crate::cli) fn moves_line(sum: &MovesSum) -> String {
    let mut text = format!("{} from here, {} to here", sum.from_here, sum.to_here);
    if sum.waiting > 0 {
        text += &format!(", {} wait for their turn", sum.waiting);
    }
    text
}

/// All message sockets, in a line.
pub(super) fn mux_line(sum: &MuxSum) -> String {
    let mut text = format!(
        "message sockets: {} for services, {} connected to one",
        sum.services, sum.connected
    );
    if sum.blocked > 0 {
        text += &format!(", {} wait for readers", sum.blocked);
    }
    if sum.starved > 0 {
        text += &format!(", {} for memory", sum.starved);
    }
    text
}

pub(in crate::cli) fn mux(mux: &Mux, limit: usize, style: Style) -> String {
    let columns = [
        "MESSAGE SOCKET",
        "FOR",
        "STATE",
        ">SENT",
        ">HELD",
        ">BLOCKED",
        ">UNREAD",
        ">WAITING",
    ];
    let mut table = Table::new(style, &columns);
    for socket in mux.sockets.iter().take(limit) {
        let of = match (&socket.offers, socket.host, socket.peer) {
            (Some(name), ..) => format!("offers {name}"),
            (None, Some(host), Some(peer)) => format!("connected to {peer:x} of host {host}"),
            (None, ..) => dash(),
        };
        table.row([
            format!("{:x}", socket.id),
            of,
            if socket.ending { "ending" } else { "open" }.to_owned(),
            socket.sent.to_string(),
            socket.held_bytes.to_string(),
            socket.blocked.to_string(),
            socket.unread_bytes.to_string(),
            socket.waiting.to_string(),
        ]);
    }
    let mut text = match mux.sockets.is_empty() {
        true => "no application has a message socket".to_owned(),
        false => table.text(),
    };
    if mux.sockets.len() > limit {
        text += &format!(
            "\n{limit} of {} are shown; --limit shows more",
            mux.sockets.len()
        );
    }
    if !mux.peers.is_empty() {
        text += &format!("\n\n{}", peers(&mux.peers, style));
    }
    text + &format!(
        "\n{} bytes are held, {} wait to be read; asked for at {}, by group {}; messages of up \
         to {} bytes, {}",
        mux.sum.held_bytes,
        mux.sum.unread_bytes,
        mux.socket.display(),
        mux.group,
        mux.message_max_bytes,
        if mux.encryption {
            "encrypted"
        } else {
            "in clear text"
        },
    )
}

pub(in crate::cli) fn carriers(carriers: &Carriers, style: Style) -> String {
    let hosts = carriers.peers.len();
    format!(
        "{}\n{hosts} other hosts; accepted at {} (TCP), opened with key {}",
        peers(&carriers.peers, style),
        carriers.address,
        carriers.key
    )
}

/// The carriers to and from hosts.
fn peers(peers: &[CarrierPeer], style: Style) -> String {
    let columns = [
        ">HOST",
        "WAY",
        "CHANNEL",
        "STATE",
        ">CARRIERS",
        ">MESSAGES",
        ">BYTES",
        ">WAITING",
        "PROBLEM",
    ];
    let mut table = Table::new(style, &columns);
    for peer in peers {
        for to in &peer.to {
            let problem = to.problem.as_ref().map(|why| match to.failing_s {
                Some(seconds) => format!("{why} (for {})", span(seconds)),
                None => why.clone(),
            });
            table.row([
                peer.host.to_string(),
                "to".to_owned(),
                to.channel.clone(),
                to.state.label().to_owned(),
                to.carriers.to_string(),
                to.messages.to_string(),
                to.bytes.to_string(),
                to.queued.to_string(),
                problem.unwrap_or_else(dash),
            ]);
        }
        let state = match peer.from.carriers {
            0 => CarrierState::Idle,
            _ => CarrierState::Open,
        };
        table.row([
            peer.host.to_string(),
            "from".to_owned(),
            dash(),
            state.label().to_owned(),
            peer.from.carriers.to_string(),
            peer.from.messages.to_string(),
            peer.from.bytes.to_string(),
            dash(),
            dash(),
        ]);
    }
    table.text()
}

pub(in crate::cli) fn apps(apps: &Apps, now_unix_ms: u64, style: Style) -> String {
    let columns = [
        "NAME", ">VERSION", "SERVICES", "STATE", ">PROCESS", ">USER", ">ASKED", ">PENDING",
    ];
    let mut table = Table::new(style, &columns);
    for app in &apps.apps {
        table.row([
            app.name.clone().unwrap_or_else(dash),
            app.version.map_or_else(dash, |version| version.to_string()),
            services(app),
            if app.ready { "ready" } else { "connecting" }.to_owned(),
            app.pid.to_string(),
            app.uid.to_string(),
            app.asked.to_string(),
            app.pending.to_string(),
        ]);
    }
    let mut text = match apps.apps.is_empty() {
        true => "no application has registered".to_owned(),
        false => table.text(),
    };
    text += &format!(
        "\nsocket {}, for group {}; states of up to {} bytes",
        apps.socket.display(),
        apps.group,
        apps.state_max_bytes
    );
    if let Some(away) = &apps.turned_away {
        let ago = span(now_unix_ms.saturating_sub(away.at_unix_ms) / 1_000);
        text += &format!(
            "\nlast turned away: process {} of user {}, {ago} ago: {}",
            away.pid, away.uid, away.why
        );
    }
    text
}

fn services(app: &App) -> String {
    if app.services.is_empty() {
        return dash();
    }
    let services = app
        .services
        .iter()
        .map(|service| service.address.to_string());
    services.collect::<Vec<_>>().join(" ")
}
