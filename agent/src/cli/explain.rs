//! `homing explain`: packets made of what the command line says, or read from a file, and
//! what becomes of them.

mod file;

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, anyhow};

use super::{
    Failure,
    args::ExplainArgs,
    client::Agent,
    table::{Style, Table, list},
};
use crate::admin::api::{ExplainOrder, ExplainPacket, Explained, Explanations};

/// Asks what becomes of the packets that `args` name.
pub(super) async fn explain(agent: &Agent, args: &ExplainArgs) -> Result<Explanations, Failure> {
    let packets = match args.service {
        Some(service) => vec![made(args, service)?],
        None => {
            let frames = file::read(Path::new(&args.what), args.skip, args.count.into())?;
            frames.into_iter().map(ExplainPacket::Frame).collect()
        }
    };
    let order = ExplainOrder {
        interface: args.interface.clone(),
        packets,
    };
    agent.query("/explain", &order).await
}

fn made(args: &ExplainArgs, service: SocketAddr) -> Result<ExplainPacket, Failure> {
    let client: SocketAddr = args.what.parse().with_context(|| {
        format!(
            "{}: not an address and port, such as 198.51.100.7:40312 or [2001:db8::7]:40312",
            args.what
        )
    })?;
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    if client.is_ipv4() != service.is_ipv4() {
        return Err(
            anyhow!("client {client} and service {service} are of different families").into(),
        );
    }
    Ok(ExplainPacket::Made {
        client,
        service,
        kind: args.kind,
        from: args.from.map(|host| host.0),
    })
}

/// What became of them: of one all that is known, of several a line each.
pub(super) fn show(explanations: &Explanations, args: &ExplainArgs, style: Style) -> String {
    match explanations.packets.as_slice() {
        [explained] => one(&explanations.interface, explained),
        all => several(all, args.skip, style),
    }
}

/// Fails if a packet could not be tried.
pub(super) fn judge(explanations: &Explanations) -> Result<(), Failure> {
    match explanations
        .packets
        .iter()
        .all(|packet| packet.outcome.is_some())
    {
        true => Ok(()),
        false => Err(Failure::PrintedFailed),
    }
}

fn one(interface: &str, explained: &Explained) -> String {
    let mut rows = vec![
        ("packet", explained.packet.clone()),
        ("comes by", interface.to_owned()),
    ];
    if let Some(session) = &explained.session {
        rows.push(("session", session.id.clone()));
    }
    rows.extend(
        explained
            .facts
            .iter()
            .map(|fact| (fact.name.as_str(), fact.text.clone())),
    );
    rows.push(("outcome", outcome(explained)));
    rows.push(("means", explained.means.clone()));
    rows.extend(explained.goes.iter().map(|goes| ("goes", goes.clone())));
    rows.extend(explained.advice.iter().map(|advice| ("do", advice.clone())));
    list(&rows)
}

fn outcome(explained: &Explained) -> String {
    match (&explained.outcome, &explained.verdict) {
        (Some(outcome), Some(verdict)) => format!("{outcome} ({verdict})"),
        _ => "none".to_owned(),
    }
}

fn several(all: &[Explained], skipped: u64, style: Style) -> String {
    let mut table = Table::new(style, &[">N", "OUTCOME", "PACKET"]);
    let mut outcomes: Vec<(&str, u64, &Explained)> = Vec::new();
    for (number, explained) in (skipped + 1..).zip(all) {
        let goes = explained.goes.iter().map(|goes| format!(" => {goes}"));
        table.row([
            number.to_string(),
            outcome(explained),
            format!("{}{}", explained.packet, goes.collect::<String>()),
        ]);
        let name = explained.outcome.as_deref().unwrap_or(&explained.means);
        match outcomes.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, count, _)) => *count += 1,
            None => outcomes.push((name, 1, explained)),
        }
    }
    let mut text = vec![table.text()];
    for (_, count, explained) in outcomes {
        let mut rows = vec![
            (
                "outcome",
                format!("{}, {count} packets", outcome(explained)),
            ),
            ("means", explained.means.clone()),
        ];
        rows.extend(explained.advice.iter().map(|advice| ("do", advice.clone())));
        text.push(list(&rows));
    }
    text.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(outcome: Option<&str>) -> Explained {
        Explained {
            packet: "a > b: TCP SYN".to_owned(),
            outcome: outcome.map(str::to_owned),
            verdict: outcome.map(|_| "drop".to_owned()),
            means: "What it means.".to_owned(),
            advice: Some("what to do".to_owned()),
            session: None,
            facts: vec![crate::admin::api::Fact {
                name: "owner".to_owned(),
                text: "host 3".to_owned(),
            }],
            goes: Some("c".to_owned()),
            frame: None,
        }
    }

    fn args() -> ExplainArgs {
        ExplainArgs {
            what: "a.pcap".to_owned(),
            service: None,
            kind: crate::packet::Kind::Ack,
            from: None,
            interface: None,
            skip: 7,
            count: 10,
        }
    }

    #[test]
    fn one_packet_has_all_that_is_known() {
        let explanations = Explanations {
            interface: "eth0".to_owned(),
            packets: vec![explained(Some("no_way"))],
        };
        let text = show(&explanations, &args(), Style::Plain);
        assert_eq!(
            text,
            "packet    a > b: TCP SYN\ncomes by  eth0\nowner     host 3\noutcome   no_way (drop)\n\
             means     What it means.\ngoes      c\ndo        what to do"
        );
        assert!(judge(&explanations).is_ok());
    }

    #[test]
    fn of_several_each_outcome_is_told_once() {
        let explanations = Explanations {
            interface: "eth0".to_owned(),
            packets: vec![
                explained(Some("no_way")),
                explained(None),
                explained(Some("no_way")),
            ],
        };
        let text = show(&explanations, &args(), Style::Plain);
        assert!(text.contains("8  no_way (drop)"), "{text}");
        assert!(text.contains("no_way (drop), 2 packets"), "{text}");
        assert_eq!(text.matches("What it means.").count(), 2, "{text}");
        assert!(judge(&explanations).is_err());
    }
}
