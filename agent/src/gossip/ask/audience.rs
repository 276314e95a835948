//! Whom an ask is put to: every host of this domain, and one host in each other
//! domain, which passes it on there.

use std::collections::BTreeMap;

use homing_common::{host::HostId, session::SessionId};

use super::Known;
use crate::{
    gossip::{claims::Claim, machine::Gossip},
    pop::Domain,
};

/// The POP as the asker sees it.
#[derive(Clone, Debug, Default)]
pub struct Audience {
    /// The hosts of this domain that are up.
    pub near: Vec<Near>,
    /// This domain has a multicast group.
    pub multicast: bool,
    /// The other domains with a host that is up, and this host's relays there.
    pub far: BTreeMap<Domain, Vec<HostId>>,
    /// All hosts that are up, and their domains.
    pub domains: BTreeMap<HostId, Domain>,
    /// A host of this domain (or of one unknown) may own sessions but cannot be
    /// asked.
    pub near_blind: bool,
    /// A host of a domain where no host can be asked may own sessions.
    pub far_blind: bool,
    /// All hosts that may own sessions but cannot be asked, as far as the domain of
    /// each is known.
    pub unaskable: BTreeMap<HostId, Domain>,
}

/// A host of this domain.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    /// Which.
    pub host: HostId,
    /// It hears this host's multicast.
    pub hears: bool,
}

impl Audience {
    /// The only host that cannot be asked, if there is just one.
    pub(super) fn only_unaskable(&self) -> Option<(HostId, Domain)> {
        let mut hosts = self.unaskable.iter();
        let (&host, &domain) = hosts.next()?;
        hosts.next().is_none().then_some((host, domain))
    }

    /// Nobody else can own any session.
    pub fn is_alone(&self) -> bool {
        self.domains.is_empty() && !self.near_blind && !self.far_blind
    }
}

impl Gossip {
    /// What to say of a session when it is asked about. What this host was only told
    /// itself it does not tell: such a tale would have no end.
    pub fn known(&self, id: SessionId) -> Known {
        if let Some(generation) = self.core.log.generation(id) {
            return Known::Here(generation);
        }
        let is_unaskable = |claim: &Claim| {
            let peer = self.peers.get(&claim.host);
            peer.is_some_and(|peer| !peer.up && !peer.dead && !peer.voided)
        };
        match self.core.claims.owner(id).filter(is_unaskable) {
            Some(claim) => Known::Unaskable(claim),
            None => Known::Nothing,
        }
    }

    /// Whom an ask is put to, as of now.
    pub fn audience(&self) -> Audience {
        let mine = self.core.settings.domain;
        let relays = self.relays().into_iter();
        let mut audience = Audience {
            multicast: self.core.settings.multicast,
            far: relays
                .map(|(domain, (_, relays))| (domain, relays))
                .collect(),
            ..Audience::default()
        };
        for (&host, peer) in &self.peers {
            match peer.domain {
                _ if peer.dead || peer.voided => {}
                Some(domain) if peer.up => {
                    audience.domains.insert(host, domain);
                    if domain == mine {
                        let hears = peer.hears_us;
                        audience.near.push(Near { host, hears });
                    }
                }
                // Its agent is down but its claims stand: its kernel may serve.
                Some(domain) => {
                    audience.unaskable.insert(host, domain);
                    let no_relay = !audience.far.contains_key(&domain);
                    audience.near_blind |= domain == mine;
                    audience.far_blind |= domain != mine && no_relay;
                }
                None => audience.near_blind = true,
            }
        }
        audience
    }
}
