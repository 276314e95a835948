//! Keeps `MEMBERS` in step with membership, and reads what an agent before left in
//! it: so an agent that starts while all others are down still knows where their
//! kernels can be asked, and whom to call.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};

use homing_common::{
    host::{DOMAIN_LEN_MAX, HostId},
    maps::KnownMember,
    net::Port,
};
use tokio::sync::watch;

use crate::{
    datapath::members::MembersMap,
    gossip::task::HostStatus,
    pop::{Domain, Fingerprint, Member, Stream, membership::State},
};

/// The members that are written down, other than this host.
pub(super) fn read(map: &MembersMap, me: HostId) -> io::Result<Vec<Member>> {
    let known = map.read()?.into_iter().filter(|(host, _)| *host != me);
    Ok(known
        .filter_map(|(host, known)| to_member(host, &known))
        .collect())
}

/// Writes down whoever is up or down. Who left is forgotten; of whom nothing is heard
/// yet stays as it is.
pub(super) async fn follow(
    mut hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
    mut map: MembersMap,
) -> io::Result<()> {
    let mut written: BTreeMap<HostId, KnownMember> = map.read()?.into_iter().collect();
    loop {
        for (host, known) in news(&hosts.borrow_and_update(), &written) {
            map.write(host, known)?;
            match known {
                Some(known) => written.insert(host, known),
                None => written.remove(&host),
            };
        }
        if hosts.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// What must be written so that the map says what is known.
fn news(
    hosts: &[HostStatus],
    written: &BTreeMap<HostId, KnownMember>,
) -> Vec<(HostId, Option<KnownMember>)> {
    let wanted = hosts.iter().filter_map(|host| {
        let member = host.member?;
        let stays = matches!(host.state, Some(State::Alive | State::Down));
        Some((host.host, stays.then(|| to_known(&member))))
    });
    let is_news =
        |(host, wanted): &(HostId, Option<KnownMember>)| written.get(host).copied() != *wanted;
    wanted.filter(is_news).collect()
}

fn to_known(member: &Member) -> KnownMember {
    let mut domain = [0; DOMAIN_LEN_MAX];
    let name = member.domain.as_str().as_bytes();
    domain[..name.len()].copy_from_slice(name);
    KnownMember {
        incarnation: member.stream.incarnation,
        generation: member.stream.generation,
        address: member.address.ip().into(),
        port: Port::new(member.address.port()),
        renewal: member.renewal,
        network: member.fingerprint.network,
        services: member.fingerprint.services,
        session_keys: member.fingerprint.session_keys,
        fragments_key: member.fingerprint.fragments_key,
        zero: 0,
        addresses: member.fingerprint.addresses,
        domain,
    }
}

/// None, if what is written is no member.
fn to_member(host: HostId, known: &KnownMember) -> Option<Member> {
    let len = known.domain.iter().position(|byte| *byte == 0);
    let name = &known.domain[..len.unwrap_or(DOMAIN_LEN_MAX)];
    let domain = Domain::try_from(std::str::from_utf8(name).ok()?).ok()?;
    let stream = Stream {
        incarnation: known.incarnation,
        generation: known.generation,
    };
    let address = SocketAddr::new(known.address.into(), known.port.number());
    let fingerprint = Fingerprint {
        network: known.network,
        services: known.services,
        addresses: known.addresses,
        session_keys: known.session_keys,
        fragments_key: known.fragments_key,
    };
    Some(Member {
        renewal: known.renewal,
        ..Member::starting(host, stream, address, domain, fingerprint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(host: u16, state: State) -> HostStatus {
        let domain = "d".repeat(usize::from(host));
        let stream = Stream {
            incarnation: 7,
            generation: 3,
        };
        let member = Member {
            renewal: 2,
            ..Member::starting(
                HostId(host),
                stream,
                "10.0.0.1:7946".parse().unwrap(),
                Domain::try_from(domain.as_str()).unwrap(),
                Fingerprint {
                    network: 9,
                    services: 8,
                    addresses: 7,
                    session_keys: [6, 5],
                    fragments_key: 4,
                },
            )
        };
        HostStatus {
            member: Some(member),
            state: Some(state),
            ..HostStatus::unheard(HostId(host))
        }
    }

    #[test]
    fn a_member_is_read_as_it_was_written() {
        for host in [1, 5, 32] {
            let member = status(host, State::Alive).member.unwrap();
            assert_eq!(to_member(HostId(host), &to_known(&member)), Some(member));
        }
        assert_eq!(to_member(HostId(1), &KnownMember::default()), None);
    }

    #[test]
    fn who_is_up_or_down_is_written_down_and_who_left_is_forgotten() {
        let mut written = BTreeMap::new();
        let (up, down) = (status(1, State::Alive), status(2, State::Down));
        let hosts = [up, down, HostStatus::unheard(HostId(3))];
        let first = news(&hosts, &written);
        assert_eq!(first.len(), 2);
        for (host, known) in first {
            written.insert(host, known.unwrap());
        }
        assert!(news(&hosts, &written).is_empty());
        // Draining is asked of the host itself.
        let mut draining = hosts[0].clone();
        draining.member.as_mut().unwrap().draining = true;
        assert!(news(&[draining], &written).is_empty());
        let gone = news(
            &[status(1, State::Left), status(2, State::Mismatched)],
            &written,
        );
        assert!(gone.iter().all(|(_, known)| known.is_none()) && gone.len() == 2);
    }
}
