//! Who owns a session, and how this host knows.

use homing_common::{
    host::HostId,
    session::{Session, Tuple},
};

use super::{AgentView, blocking};
use crate::{
    admin::{Refusal, api, page},
    gossip::{machine::Owner, task::OwnerStatus},
};

impl AgentView {
    /// Who owns a session.
    pub(super) async fn owner_of(&self, session: Tuple) -> Result<api::Owner, Refusal> {
        let sessions = self.sessions.clone();
        let id = session.id(&self.session_key);
        let local = blocking("SESSIONS", move || sessions.get(&session)).await?;
        let entry = self.owners.get(id);
        let known = self.gossip.owner(id).await?;
        let (owner, how) = explain(self.reload.config().host.id, local, entry, &known);
        let claims = known.claims.iter().map(|claim| api::Claim {
            host: claim.host.0,
            generation: claim.generation.into(),
        });
        Ok(api::Owner {
            name: page::name(&session, id),
            answer: match owner {
                Some(host) if host == self.reload.config().host.id => api::Answer::ThisHost,
                Some(_) => api::Answer::OtherHost,
                None => api::Answer::Unknown,
            },
            owner: owner.map(|host| host.0),
            how,
            claims: claims.collect(),
        })
    }
}

/// The owner by all that this host knows, and how it knows, in a sentence.
fn explain(
    me: HostId,
    local: Option<Session>,
    entry: Option<HostId>,
    known: &OwnerStatus,
) -> (Option<HostId>, String) {
    if let Some(Session { generation, .. }) = local {
        let how = format!("its socket is recorded in SESSIONS here (generation {generation})");
        return (Some(me), how);
    }
    let claim = known.claims.first();
    // What stands in for a claim is what an ask has brought.
    let asked = match known.owner {
        Some(Owner::Other(found)) if claim.is_none() => Some(found.host),
        _ => None,
    };
    match (entry, claim, asked) {
        (Some(host), Some(claim), _) if claim.host == host => (
            Some(host),
            format!(
                "host {host} claims it (generation {}); OWNERS here says so too",
                claim.generation
            ),
        ),
        (Some(host), _, Some(found)) if found == host => (
            Some(host),
            format!("asking the POP led to host {host}, whose claim has not come yet"),
        ),
        (Some(host), ..) => (
            Some(host),
            format!("OWNERS here says host {host}; its claim is about to change"),
        ),
        (None, Some(claim), _) => (
            Some(claim.host),
            format!(
                "host {} claims it (generation {}), but OWNERS here has no entry for it",
                claim.host, claim.generation
            ),
        ),
        (None, None, Some(host)) => (
            Some(host),
            format!("asking the POP led to host {host}, but OWNERS here has no entry for it"),
        ),
        (None, None, None) => (
            None,
            "it is not in SESSIONS here and nobody claims it".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::Claim;

    #[test]
    fn each_way_to_know_has_its_words() {
        let (me, two, three) = (HostId(1), HostId(2), HostId(3));
        let claim = |host| Claim {
            host,
            generation: 4,
        };
        let known = |owner: Option<Claim>, claims: &[Claim]| OwnerStatus {
            owner: owner.map(Owner::Other),
            claims: claims.to_vec(),
        };
        let nobody = known(None, &[]);
        let claimed = known(Some(claim(two)), &[claim(two)]);
        let asked = known(Some(claim(two)), &[]);
        let cases = [
            (
                Some(two),
                &claimed,
                Some(two),
                "claims it (generation 4); OWNERS here says so",
            ),
            (Some(three), &claimed, Some(three), "about to change"),
            (
                None,
                &claimed,
                Some(two),
                "claims it (generation 4), but OWNERS",
            ),
            (Some(two), &asked, Some(two), "led to host 2, whose claim"),
            (Some(three), &asked, Some(three), "about to change"),
            (None, &asked, Some(two), "led to host 2, but OWNERS"),
            (Some(three), &nobody, Some(three), "about to change"),
            (None, &nobody, None, "nobody claims it"),
        ];
        for (entry, known, owner, words) in cases {
            let (found, how) = explain(me, None, entry, known);
            assert_eq!(found, owner, "{how}");
            assert!(how.contains(words), "{how}");
        }
    }
}
