//! What becomes of packets here: what the fast path does with each, and what this host knows
//! that bears on it.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, anyhow};
use homing_common::{
    host::HostId,
    moving::{Moving, Phase},
    outcome::{Outcome, Verdict},
    session::Tuple,
};
use tokio::task::spawn_blocking;

use super::AgentView;
use crate::{
    admin::{
        Refusal,
        advice::advice,
        api::{self, ExplainPacket, Explained, Fact},
        page,
    },
    datapath::{
        beside::trial::{Trial, Tried},
        interface,
        resolver::{State, Way},
    },
    packet::{Probe, SourceHost, describe},
};

impl AgentView {
    /// Tries packets, and says what is known about each.
    pub(super) async fn explained(
        &self,
        order: api::ExplainOrder,
    ) -> Result<api::Explanations, Refusal> {
        let interface = order.interface;
        let interface =
            interface.unwrap_or_else(|| self.reload.config().host.interfaces[0].clone());
        let ifindex = interface::look_up(&interface)
            .map_err(|error| {
                let why = format!("interface {interface}: {error}; name one of host.interfaces");
                Refusal::NotFound(why)
            })?
            .index;
        let frames = order.packets.iter().map(|packet| self.frame(packet));
        let frames: Vec<_> = frames.collect::<Result<_, _>>()?;
        let tried = self.tried(ifindex, frames.clone()).await?;
        let mut facts = Facts::of(self).await?;
        let mut packets = Vec::with_capacity(frames.len());
        for (frame, tried) in frames.iter().zip(tried) {
            packets.push(facts.explain(frame, tried).await?);
        }
        Ok(api::Explanations { interface, packets })
    }

    fn frame(&self, packet: &ExplainPacket) -> Result<Vec<u8>, Refusal> {
        match packet {
            ExplainPacket::Frame(digits) => unhex(digits).ok_or_else(|| {
                Refusal::Conflict("a frame must be an even number of hexadecimal digits".into())
            }),
            ExplainPacket::Made {
                client,
                service,
                kind,
                from,
            } => {
                let probe = Probe {
                    client: *client,
                    service: *service,
                    kind: *kind,
                    from: from.map(|host| self.source(host)).transpose()?,
                };
                probe.frame().ok_or_else(|| {
                    let why = format!("{client} and {service} are of different families");
                    Refusal::Conflict(why)
                })
            }
        }
    }

    /// The outer header of what a host sends here.
    fn source(&self, host: u16) -> Result<SourceHost, Refusal> {
        let config = self.reload.config();
        let tunnel = &config.tunnel;
        let id =
            HostId::try_from(host).map_err(|error| Refusal::Conflict(format!("from: {error}")))?;
        Ok(SourceHost {
            address: tunnel.network.address_of(id).into(),
            to: config.tunnel_address().into(),
            encapsulation: tunnel.encapsulation,
            hop_limit: tunnel.hop_limit,
        })
    }

    /// One trial at a time: each takes some megabytes.
    async fn tried(
        &self,
        ifindex: u32,
        frames: Vec<Vec<u8>>,
    ) -> Result<Vec<std::io::Result<Tried>>, Refusal> {
        // It goes where the work goes: who asked may go away in the midst of it.
        let one = self.trial.clone().lock_owned().await;
        let (ground, sessions) = (self.ground.clone(), self.sessions.clone());
        let tried = spawn_blocking(move || {
            let _one = one;
            let mut trial = Trial::begin(&ground, &sessions)?;
            let tried = frames.iter().map(|frame| trial.run(ifindex, frame));
            Ok::<_, crate::datapath::Error>(tried.collect())
        });
        let tried = tried.await.context("a trial")?;
        tried.map_err(|error| Refusal::Failed(anyhow!(error).context("cannot try packets")))
    }
}

/// What this host knows, asked for once for each session.
struct Facts<'a> {
    view: &'a AgentView,
    /// What holds for the whole host.
    host: Vec<Fact>,
    known: BTreeMap<Tuple, (api::SessionName, Vec<Fact>)>,
}

impl<'a> Facts<'a> {
    async fn of(view: &'a AgentView) -> Result<Self, Refusal> {
        let status = view.gossip.status().await?;
        let mut host = Vec::new();
        if view.drain.is_on() {
            host.push(fact(
                "host",
                "it is drained: new sessions go to other hosts",
            ));
        }
        if !status.synced {
            let text = "it does not know the sessions of the whole POP yet: what it does not know \
                        goes to the rendezvous host";
            host.push(fact("host", text));
        }
        if status.full {
            let text = "its table of owners is full: a session without an entry may be another's";
            host.push(fact("host", text));
        }
        Ok(Self {
            view,
            host,
            known: BTreeMap::new(),
        })
    }

    async fn explain(
        &mut self,
        frame: &[u8],
        tried: std::io::Result<Tried>,
    ) -> Result<Explained, Refusal> {
        let packet = describe(frame);
        let (session, mut facts) = match packet.session {
            Some(session) => self.about(session).await?,
            None => (None, Vec::new()),
        };
        facts.extend(self.host.iter().cloned());
        let mut explained = Explained {
            packet: packet.text,
            outcome: None,
            verdict: None,
            means: String::new(),
            advice: None,
            session,
            facts,
            goes: None,
            frame: None,
        };
        match tried {
            Ok(tried) => {
                let outcome = tried.outcome;
                explained.outcome = Some(outcome.label().to_owned());
                explained.verdict = Some(verdict(outcome).to_owned());
                explained.means = outcome.help().trim().to_owned();
                explained.advice = advice(outcome).map(str::to_owned);
                if tried.frame != frame {
                    explained.goes = Some(describe(&tried.frame).text);
                    explained.frame = Some(hex(&tried.frame));
                }
            }
            Err(error) => explained.means = format!("it cannot be tried: {error}"),
        }
        Ok(explained)
    }

    async fn about(
        &mut self,
        session: Tuple,
    ) -> Result<(Option<api::SessionName>, Vec<Fact>), Refusal> {
        if !self.known.contains_key(&session) {
            let about = self.ask(session).await?;
            self.known.insert(session, about);
        }
        let (name, facts) = &self.known[&session];
        Ok((Some(name.clone()), facts.clone()))
    }

    async fn ask(&self, session: Tuple) -> Result<(api::SessionName, Vec<Fact>), Refusal> {
        let view = self.view;
        let service = session.service();
        let is_service = view.reload.config().services.contains(&service);
        let is = if is_service {
            "a service"
        } else {
            "no service"
        };
        let protocol = page::protocol_label(service.protocol);
        let endpoint = service.endpoint();
        let mut facts = vec![fact(
            "service",
            &format!("{protocol} {endpoint} is {is} of the POP"),
        )];
        let moving = view.moving.get(&session);
        if let Some(moving) = moving.context("cannot read MOVING")? {
            facts.push(fact("move", &of_move(&moving)));
        }
        let owner = view.owner_of(session).await?;
        let named = match owner.owner {
            Some(host) if host == view.reload.config().host.id.0 => "this host".to_owned(),
            Some(host) => format!("host {host}"),
            None => "not known".to_owned(),
        };
        facts.push(fact("owner", &format!("{named}: {}", owner.how)));
        if let (api::Answer::OtherHost, Some(host)) = (owner.answer, owner.owner) {
            let ways = view.resolver.ways();
            let way = ways.get(&HostId(host));
            facts.push(fact("way", &of_way(HostId(host), way)));
        }
        Ok((owner.name, facts))
    }
}

fn fact(name: &str, text: &str) -> Fact {
    Fact {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

fn verdict(outcome: Outcome) -> &'static str {
    match outcome.verdict() {
        Verdict::Pass => "pass",
        Verdict::Forward => "forward",
        Verdict::Drop => "drop",
    }
}

fn of_move(moving: &Moving) -> String {
    let peer = moving.peer();
    match moving.phase() {
        Some(Phase::Awaiting | Phase::Prepared) => {
            format!(
                "it is moving here from host {peer}: what comes for it is held until it is served"
            )
        }
        Some(Phase::Frozen) => {
            format!("it is moving to host {peer}: what comes for it is sent there")
        }
        Some(Phase::Released) => {
            format!("it has moved to host {peer}: what comes for it is sent there")
        }
        None => format!("host {peer} takes part in a move of it that a later version began"),
    }
}

fn of_way(host: HostId, way: Option<&Way>) -> String {
    let Some(way) = way else {
        return format!("host {host} is no member: there is no way to it");
    };
    let by = way.interface.as_deref().unwrap_or("no interface");
    let next: IpAddr = way.next_hop.unwrap_or(way.address);
    match way.state {
        State::Resolved => format!(
            "host {host} at {}: by {by}, next hop {next}, packets of {} bytes at most",
            way.address,
            way.mtu.unwrap_or_default()
        ),
        state => format!(
            "host {host} at {}: {state}, by {by}, next hop {next}",
            way.address
        ),
    }
}

/// Bytes in hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for.
fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    let byte = |pair: &[u8]| {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)
    };
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_bytes() {
        assert_eq!(unhex("00fFa1"), Some(vec![0, 255, 161]));
        assert_eq!(hex(&[0, 255, 161]), "00ffa1");
        assert_eq!((unhex("0"), unhex("0x"), unhex("+1")), (None, None, None));
        assert_eq!(unhex(""), Some(Vec::new()));
    }
}
