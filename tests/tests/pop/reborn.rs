//! A host begins a new life while others still hold thousands of entries of the old
//! one: the new life gets none of the old one's packets, and the end of the old one's
//! entries takes none of the new one's.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use homing_agent::{datapath::owners::Tables, pop::keys::Keys};
use homing_common::{
    net::{Address, Port},
    outcome::Outcome,
    owners::{Found, look_up},
    session::{Session, SessionId, Tuple},
};
use homing_tests::{
    lab::{Lab, Node, node::in_namespace, plan::UDP_PORT, wait_until},
    packet::{Ip, ethernet, udp},
    program::monotonic_ns,
    raw::{Raw, index_of},
};

use super::{
    common::{PATIENCE, count},
    kernels,
    mtu::mac,
};

/// Sessions of the old life: their entries take others long enough to remove that
/// packets come meanwhile.
const OLD: u16 = 60_000;
/// The client's first port.
const FIRST_PORT: u16 = 2_000;
const UDP: u8 = 17;

/// The flows of the old life: one of each port of a client.
struct Flows {
    client: IpAddr,
    service: SocketAddr,
}

impl Flows {
    fn of(lab: &Lab) -> Self {
        Self {
            client: lab.plan().client_addresses(1).0.into(),
            service: lab.plan().service(UDP_PORT)[0],
        }
    }

    fn tuple(&self, number: u16) -> Tuple {
        Tuple::new(
            Address::from(self.client),
            Port::new(FIRST_PORT + number),
            Address::from(self.service.ip()),
            Port::new(self.service.port()),
            UDP,
        )
    }

    /// Writes them into a host's `SESSIONS`, as if their packets had come there, and
    /// gives their ids.
    fn record(&self, lab: &Lab, host: u16) -> Vec<u64> {
        let key = Keys::read(&lab.folder().join("pop.key"))
            .unwrap()
            .session
            .key;
        let map = lab.map(host, "SESSIONS").unwrap();
        let mut sessions: HashMap<MapData, Tuple, Session> = map.try_into().unwrap();
        let now = monotonic_ns().unwrap();
        let ids = (0..OLD).map(|number| {
            let tuple = self.tuple(number);
            let session = Session {
                id: tuple.id(&key),
                cookie: u64::from(number),
                opened_ns: now,
                // They are not to go idle while the test runs.
                seen_ns: now + Duration::from_secs(3600).as_nanos() as u64,
                generation: 0,
                flags: 0,
            };
            sessions.insert(tuple, session, 0).unwrap();
            session.id.0
        });
        ids.collect()
    }

    /// A packet of one of them, from the router to a host.
    fn frame(&self, number: u16, to: [u8; 6]) -> Vec<u8> {
        let datagram = udp(FIRST_PORT + number, self.service.port(), b"old");
        let packet = Ip::new(self.client, self.service.ip(), UDP, datagram);
        ethernet(to, [2, 0, 0, 0, 0, 0xfe], &[], true, &packet.bytes())
    }
}

/// Entries of a host that can be looked up one by one.
struct Owners(Tables);

impl Owners {
    fn of(lab: &Lab, host: u16) -> Self {
        Self(lab.owners(host).unwrap().unwrap())
    }

    fn leads_to(&self, id: u64, host: u16) -> bool {
        look_up(&self.0, SessionId(id)) == Found::Owner(host)
    }

    fn any(&self, ids: &[u64], host: u16) -> bool {
        ids.iter().any(|id| self.leads_to(*id, host))
    }
}

/// Packets of the old life that come to a host all the time, each flow's in turn; and how
/// many it has sent on, after each few.
struct Probes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u64>>,
}

impl Probes {
    fn start(lab: &Lab, host: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let flows = Flows::of(lab);
        let mac = mac(&lab.plan().host_mac(host));
        let stats: Map = lab.map(host, "STATS").unwrap();
        let stats: PerCpuArray<MapData, u64> = stats.try_into().unwrap();
        let router = lab.namespace(Node::Router);
        let work = move || {
            let (socket, port) = (Raw::sender()?, index_of(&format!("h{host}"))?);
            let sent_on = || -> u64 {
                let per_cpu = stats.get(&Outcome::Forwarded.index(), 0).unwrap();
                per_cpu.iter().sum()
            };
            let mut seen = Vec::new();
            let mut numbers = (0..OLD).cycle();
            while !until.load(Relaxed) {
                for number in numbers.by_ref().take(20) {
                    // Whether there is room on the wire does not matter.
                    socket.send(port, &flows.frame(number, mac)).ok();
                }
                seen.push(sent_on());
                thread::sleep(Duration::from_millis(1));
            }
            Ok(seen)
        };
        Self {
            stop,
            thread: thread::spawn(move || in_namespace(&router, work).unwrap()),
        }
    }

    fn stop(self) -> Vec<u64> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn a_hosts_id_is_not_used_again_before_its_old_lifes_entries_are_gone() {
    let mut pop = kernels::up("reborn", 3, "");
    pop.lab.kill(2).unwrap();
    let old = Flows::of(&pop.lab).record(&pop.lab, 2);
    pop.lab.start(2).unwrap();
    pop.lab.wait_settled(u64::from(OLD), 4 * PATIENCE).unwrap();
    let probes = Probes::start(&pop.lab, 1);

    // As after a reboot; and clients come at once.
    pop.reboot(2, &[2]);
    let others = [1, 3].map(|on| Owners::of(&pop.lab, on));
    pop.lab.launch(2).unwrap();
    let begun = Instant::now();
    let clients = pop.unsettled(30);
    let mut new = BTreeSet::new();
    let mut known = [BTreeSet::new(), BTreeSet::new()];
    let all_known = wait_until(2 * PATIENCE, || {
        if new.len() < 30 {
            // The map may have to be made first.
            new = pop.lab.tables(2).map_or(BTreeSet::new(), |t| t.sessions);
        }
        for (owners, known) in others.iter().zip(&mut known) {
            let now: BTreeSet<u64> = new
                .iter()
                .copied()
                .filter(|id| owners.leads_to(*id, 2))
                .collect();
            let lost = known.difference(&now).count();
            assert_eq!(lost, 0, "entries of the new life went with the old one");
            assert!(
                now.is_empty() || !owners.any(&old, 2),
                "an entry of the new life came before the old ones were gone"
            );
            *known = now;
        }
        Ok(new.len() == 30 && known.iter().all(|known| known.len() == 30))
    });
    assert!(
        all_known.unwrap(),
        "known: {:?} of {}",
        known.map(|known| known.len()),
        new.len()
    );
    println!(
        "all is known {:?} after the new life began",
        begun.elapsed()
    );
    let seen = probes.stop();
    pop.lab.wait_truth(PATIENCE).unwrap();

    // Packets of the old life were sent on as long as it lasted, and none since: the new
    // life got none of them.
    let last = *seen.last().unwrap();
    let since = seen.iter().filter(|sent_on| **sent_on == last).count();
    println!(
        "{last} sent on, and none in the last {since} of {} looks",
        seen.len()
    );
    assert!(last > 0 && since > 10, "{last}, {since}");
    for end in [Outcome::StrippedFlow, Outcome::StrippedFlowNew] {
        assert_eq!(count(&pop, 2, end), 0, "{end:?} by the new life");
    }
    for on in [1, 3] {
        assert_eq!(pop.counter(on, "voided_claims"), u64::from(OLD), "on {on}");
    }
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}
