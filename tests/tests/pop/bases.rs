//! What moves stand on, as the daemon puts it there: carriers, and the applications'
//! socket. A host whose agent is down is stood in for by the test, which has carriers of
//! its own there.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use homing_agent::{
    mux::{Carriers, Fate, Limits, MIGRATION, Options, Peer},
    pop::{Stream, keys::Keys},
};
use homing_client::{
    Protocol,
    seqpacket::Socket,
    wire::{MESSAGE_MAX, Message},
};
use homing_common::host::HostId;
use homing_tests::lab::{Lab, Node, node::in_namespace, unique, wait_until};
use tokio::runtime;

use super::common::{PATIENCE, Pop, problems};

/// The port of agents.
const PORT: u16 = 7946;
/// The host that is stood in for.
const ABSENT: u16 = 3;

fn life(pop: &Pop, host: u16) -> Stream {
    let status = pop.lab.homing_json(host, &["status"]).unwrap();
    Stream {
        incarnation: status["incarnation"].as_u64().unwrap(),
        generation: status["generation"].as_u64().unwrap(),
    }
}

fn keys(pop: &Pop) -> Keys {
    Keys::read(&pop.lab.folder().join("pop.key")).unwrap()
}

/// In the place of the absent agent, in a later life of it.
struct StandIn {
    stream: Stream,
}

impl StandIn {
    /// Sends a message to each of the others, under these keys; gives their fates.
    fn tell(&mut self, pop: &Pop, keys: Keys) -> BTreeMap<u16, Fate> {
        self.stream.generation += 1;
        let address = |host| (pop.lab.plan().fabric_address(host), PORT).into();
        let options = Options {
            host: HostId(ABSENT),
            stream: self.stream,
            address: address(ABSENT),
            keys,
            limits: Limits {
                give_up_after: Duration::from_secs(2),
                ..Limits::default()
            },
            plain: false,
        };
        let others = pop.lab.running();
        let peer = |host: &u16| {
            let stream = Stream::default();
            let address = address(*host);
            (HostId(*host), Peer { address, stream })
        };
        let peers: BTreeMap<HostId, Peer> = others.iter().map(peer).collect();
        let work = move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (carriers, _inboxes) = Carriers::open(options, None)?;
                carriers.set_peers(&peers);
                let mut fates = BTreeMap::new();
                for host in others {
                    // No message of a move: it is dropped there.
                    let body = Bytes::from_static(b"\0nothing");
                    let fate = carriers.send(HostId(host), MIGRATION, body).await;
                    fates.insert(host, fate);
                }
                carriers.stop().await;
                Ok(fates)
            })
        };
        in_namespace(&pop.lab.namespace(Node::Host(ABSENT)), work).unwrap()
    }

    /// The same, and all must have it, in the lives that they say they are in.
    fn is_heard(&mut self, pop: &Pop, when: &str) {
        let fates = self.tell(pop, keys(pop));
        let lives = pop.lab.running().into_iter();
        let wanted: BTreeMap<_, _> = lives
            .map(|host| (host, Fate::Delivered(life(pop, host))))
            .collect();
        assert_eq!(fates, wanted, "{when}");
    }
}

/// Waits until each agent that runs has carriers with the others.
fn wait_peers(pop: &Pop) {
    for host in pop.lab.running() {
        let known = wait_until(PATIENCE, || {
            let carriers = pop.lab.homing_json(host, &["carriers"])?;
            let peers = carriers["peers"].as_array().unwrap();
            let ids: Vec<u64> = peers.iter().filter_map(|p| p["host"].as_u64()).collect();
            Ok((1..=3).filter(|id| *id != u64::from(host)).eq(ids))
        });
        assert!(known.unwrap(), "h{host} does not know all");
    }
}

#[test]
fn carriers_reach_every_agent_across_restarts_keys_and_lives() {
    let lab = Lab::builder().name(&unique("bases")).hosts(3).racks(2);
    let mut lab = lab.no_homing().up().unwrap();
    for host in 1..=3 {
        lab.set_clock(host, 0).unwrap();
    }
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    wait_peers(&pop);
    let mut stand_in = StandIn {
        stream: life(&pop, ABSENT),
    };
    pop.lab.kill(ABSENT).unwrap();
    stand_in.is_heard(&pop, "once its agent is dead");

    // The key changes: what is reloaded is in force for carriers, too.
    let first = keys(&pop);
    for step in ["begin", "promote", "finish"] {
        pop.lab.homing_json(1, &["key", step]).unwrap();
        for host in [1, 2] {
            pop.lab.homing_json(host, &["reload"]).unwrap();
        }
        stand_in.is_heard(&pop, step);
    }
    for (host, fate) in stand_in.tell(&pop, first) {
        assert!(matches!(fate, Fate::NotSent(_)), "h{host}: {fate:?}");
        let stats = pop.lab.homing_json(host, &["stats"]).unwrap();
        let counters = stats["carriers"].as_array().unwrap();
        let refused = counters.iter().find(|c| c["name"] == "refused_key");
        assert!(refused.unwrap()["count"].as_u64() > Some(0), "{stats}");
    }

    // An agent that was killed: the next one knows the members at once.
    let before = life(&pop, 1);
    pop.lab.kill(1).unwrap();
    pop.lab.start(1).unwrap();
    stand_in.is_heard(&pop, "after a kill");
    assert!(life(&pop, 1) > before);

    // A machine that forgets all, and whose clock is in the past: the POP tells it which
    // life it has to begin.
    let before = life(&pop, 2);
    pop.reboot(2, &[1]);
    pop.lab.set_clock(2, -2 * 24 * 3600).unwrap();
    pop.lab.start(2).unwrap();
    assert!(life(&pop, 2).incarnation > before.incarnation);
    stand_in.is_heard(&pop, "in a life that was raised");

    let of_absent = |host| {
        let carriers = pop.lab.homing_json(host, &["carriers"]).unwrap();
        let peers = carriers["peers"].as_array().unwrap().clone();
        let peer = peers.into_iter().find(|peer| peer["host"] == ABSENT);
        peer.unwrap()["from"]["messages"].as_u64().unwrap()
    };
    assert_eq!((of_absent(1), of_absent(2)), (2, 1));
    pop.down();
}

#[test]
fn a_port_that_is_in_use_is_named_at_the_start() {
    let mut pop = Pop::up("basesport");
    pop.lab.stop(ABSENT).unwrap();
    let address = (pop.lab.plan().fabric_address(ABSENT), PORT);
    let namespace = pop.lab.namespace(Node::Host(ABSENT));
    let held = in_namespace(&namespace, || Ok(std::net::TcpListener::bind(address)?)).unwrap();
    // It may have ended before it is looked for.
    let _ = pop.lab.launch(ABSENT);
    let ended = wait_until(PATIENCE, || Ok(pop.lab.agent(ABSENT).is_none())).unwrap();
    let words = pop.lab.last_words(ABSENT);
    assert!(ended, "{words}");
    let port = format!("cannot listen on pop.address {}:{PORT} (TCP)", address.0);
    assert!(words.contains(&port), "{words}");
    drop(held);
    pop.lab.start(ABSENT).unwrap();
    pop.down();
}

/// An application that registers and does nothing else.
struct App {
    socket: Socket,
    runtime: runtime::Runtime,
}

impl App {
    fn connect(pop: &Pop, host: u16) -> Self {
        let runtime = runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let path = pop.lab.sockets(host).apps;
        let connect = async { Socket::connect(&path) };
        let socket = runtime.block_on(connect).unwrap();
        Self { socket, runtime }
    }

    fn send(&self, datagram: &[u8]) {
        let sent = self.socket.send(datagram, None);
        self.runtime.block_on(sent).unwrap();
    }

    /// The next datagram's kind; none at the end.
    fn next(&self) -> Option<u8> {
        let mut buffer = vec![0; MESSAGE_MAX];
        let received = self.socket.receive(&mut buffer);
        let received = self.runtime.block_on(received).unwrap();
        (received.len > 0).then(|| buffer[1])
    }
}

#[test]
fn an_application_registers_is_shown_and_is_turned_away_with_its_reason() {
    let pop = Pop::up("basesapps");
    let service = pop.lab.plan().service(443)[0];
    let register = Message::Register {
        protocol: Protocol::new("idle", 7),
        services: vec![service],
    };
    let app = App::connect(&pop, 1);
    app.send(&register.encode());
    assert!(app.next().is_some());
    app.send(&Message::Ready.encode());
    let shown = wait_until(PATIENCE, || {
        let apps = pop.lab.homing_json(1, &["apps"])?;
        let app = &apps["apps"][0];
        Ok(app["ready"] == true
            && app["name"] == "idle"
            && app["version"] == 7
            && app["pid"] == std::process::id()
            && app["services"][0]["address"] == service.to_string())
    });
    let apps = pop.lab.homing_json(1, &["apps"]).unwrap();
    assert!(shown.unwrap(), "{apps}");
    let named = problems(&pop.lab, 1);
    assert!(
        !named.iter().any(|text| text.contains("application")),
        "{named:?}"
    );

    // One of another version of the agent's protocol, and one that comes second.
    let other = App::connect(&pop, 1);
    other.send(b"\x02nonsense");
    assert!(other.next().is_some());
    let is_named = |word: &str| {
        let named = wait_until(PATIENCE, || {
            Ok(problems(&pop.lab, 1).iter().any(|text| text.contains(word)))
        });
        assert!(named.unwrap(), "{:?}", problems(&pop.lab, 1));
    };
    is_named("was turned away: another version of the protocol");
    let second = App::connect(&pop, 1);
    second.send(&register.encode());
    assert!(second.next().is_some());
    is_named("another application has the service");
    let status = pop.lab.homing_json(1, &["status"]).unwrap();
    assert_eq!(status["apps"]["ready"], 1, "{status}");
    pop.down();
}
