//! QUIC by 4-tuple: connections of a real implementation go on while ECMP sends their
//! packets from host to host, and break without Homing.
//!
//! Every host has a server of its own, with secrets of its own: none can read, or
//! answer, what belongs to another's connection.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use homing_tests::{
    lab::{
        Lab, Node,
        node::in_namespace,
        plan::{Outer, Tunnel, UDP_PORT},
        unique, wait_until,
    },
    random::{Random, stream},
    workload::down,
};
use quinn::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, RecvStream, SendStream, TokioRuntime,
    TransportConfig,
};
use tokio::{runtime::Runtime, task::JoinHandle};

use super::{
    common::PATIENCE,
    mtu::{NARROW, set_mtu},
};

/// The name that all hosts' certificates are for: which host a connection reaches, ECMP
/// decides.
const NAME: &str = "service.example";
/// Connections, half of them over IPv6.
const CONNECTIONS: usize = 12;
/// The most bytes of one request, and of one answer.
const MAX_LEN: usize = 64 * 1024;
/// Before them, a request says the connection's seed and where its bytes begin.
const HEAD_LEN: usize = 16;
/// Between a connection's exchanges.
const PAUSE: Duration = Duration::from_millis(20);

/// A lab with a QUIC server on each host and connections to them.
struct Quic {
    lab: Lab,
    connections: Vec<(Arc<Record>, JoinHandle<Result<()>>)>,
    stop: Arc<AtomicBool>,
    /// Everything runs in it; each socket was made on its machine.
    runtime: Runtime,
}

/// How a connection fares.
#[derive(Default)]
struct Record {
    exchanges: AtomicU64,
    /// The host that answered last.
    host: AtomicU16,
    /// Answers of another host than before.
    moved: AtomicU64,
    over: AtomicBool,
}

impl Quic {
    /// Servers and connections; a connection of which nothing comes for as long as
    /// `idle` has broken.
    fn up(lab: Lab, idle: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut quic = Self {
            lab,
            connections: Vec::new(),
            stop: Arc::default(),
            runtime,
        };
        quic.start(idle).unwrap();
        quic
    }

    fn start(&mut self, idle: Duration) -> Result<()> {
        let _runtime = self.runtime.enter();
        let services = self.lab.plan().service(UDP_PORT);
        let mut certificates = RootCertStore::empty();
        let transport = Arc::new(transport(idle)?);
        for host in 1..=self.lab.plan().hosts {
            let key = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
            let certificate = CertificateDer::from(key.cert);
            certificates.add(certificate.clone())?;
            let secret = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
            let mut config =
                quinn::ServerConfig::with_single_cert(vec![certificate], secret.into())?;
            config.transport_config(transport.clone());
            for service in services {
                let config = Some(config.clone());
                let endpoint = endpoint(&self.lab, Node::Host(host), service, config)?;
                self.runtime.spawn(serve(endpoint, host));
            }
        }
        let mut config = quinn::ClientConfig::with_root_certificates(Arc::new(certificates))?;
        config.transport_config(transport);
        for (number, service) in services.into_iter().cycle().take(CONNECTIONS).enumerate() {
            let any: IpAddr = match service.is_ipv4() {
                true => std::net::Ipv4Addr::UNSPECIFIED.into(),
                false => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            // A socket each, and so a port each.
            let mut endpoint = endpoint(&self.lab, Node::Client(1), (any, 0).into(), None)?;
            endpoint.set_default_client_config(config.clone());
            let record = Arc::new(Record::default());
            let (theirs, stop) = (record.clone(), self.stop.clone());
            let task = self.runtime.spawn(async move {
                let end = converse(&endpoint, service, number as u64, &theirs, &stop).await;
                theirs.over.store(true, Relaxed);
                endpoint.wait_idle().await;
                end
            });
            self.connections.push((record, task));
        }
        self.wait_rounds(1)?;
        ensure!(
            self.live() == CONNECTIONS,
            "connections could not be opened"
        );
        Ok(())
    }

    /// Connections that have not broken.
    fn live(&self) -> usize {
        let live = self.connections.iter();
        live.filter(|(record, _)| !record.over.load(Relaxed))
            .count()
    }

    /// Waits until each connection has had so many more exchanges, or has broken.
    fn wait_rounds(&self, rounds: u64) -> Result<()> {
        let exchanges = |record: &Record| record.exchanges.load(Relaxed);
        let records = || self.connections.iter().map(|(record, _)| record);
        let wanted: Vec<_> = records().map(|record| exchanges(record) + rounds).collect();
        let done = wait_until(2 * PATIENCE, || {
            Ok(records()
                .zip(&wanted)
                .all(|(record, wanted)| record.over.load(Relaxed) || exchanges(record) >= *wanted))
        })?;
        ensure!(done, "connections neither went on nor broke");
        Ok(())
    }

    /// All connections' packets come to the hosts in turn, and then to all of them in
    /// another order, in the middle of exchanges.
    fn tour(&mut self) {
        for order in [vec![1], vec![2], vec![3], vec![3, 1, 2]] {
            self.lab.set_ecmp(&order).unwrap();
            self.wait_rounds(5).unwrap();
        }
    }

    /// Ends the connections and the lab. Returns how each connection that broke ended,
    /// and how often another host answered than before.
    fn finish(self) -> (Vec<String>, u64) {
        self.stop.store(true, Relaxed);
        let (mut broken, mut moved) = (Vec::new(), 0);
        for (record, task) in self.connections {
            moved += record.moved.load(Relaxed);
            if let Err(error) = self.runtime.block_on(task).unwrap() {
                broken.push(format!("{error:#}"));
            }
        }
        self.runtime.shutdown_background();
        self.lab.down().unwrap();
        (broken, moved)
    }
}

fn transport(idle: Duration) -> Result<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(IdleTimeout::try_from(idle)?));
    Ok(transport)
}

/// An endpoint on a machine of the lab.
fn endpoint(
    lab: &Lab,
    machine: Node,
    address: SocketAddr,
    config: Option<quinn::ServerConfig>,
) -> Result<Endpoint> {
    let socket = in_namespace(&lab.namespace(machine), || Ok(UdpSocket::bind(address)?))
        .with_context(|| format!("cannot bind {address} on {machine}"))?;
    let runtime = Arc::new(TokioRuntime);
    Ok(Endpoint::new(
        EndpointConfig::default(),
        config,
        socket,
        runtime,
    )?)
}

/// A host's server, until the runtime ends.
async fn serve(endpoint: Endpoint, host: u16) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok((answer, request)) = connection.accept_bi().await {
                // What is wrong is not answered: the stream ends with an error.
                if reply(host, request, answer).await.is_err() {
                    connection.close(1u8.into(), b"wrong bytes");
                }
            }
        });
    }
}

/// Checks a request and answers with as many bytes.
async fn reply(host: u16, mut request: RecvStream, mut answer: SendStream) -> Result<()> {
    let request = request.read_to_end(HEAD_LEN + MAX_LEN).await?;
    let (head, bytes) = request.split_at_checked(HEAD_LEN).context("no head")?;
    let (seed, from) = head.split_at(HEAD_LEN / 2);
    let (seed, from) = (
        u64::from_be_bytes(seed.try_into()?),
        u64::from_be_bytes(from.try_into()?),
    );
    ensure!(bytes == part(seed, from, bytes.len()), "wrong bytes");
    answer.write_all(&host.to_be_bytes()).await?;
    let bytes = part(down(seed), from, bytes.len());
    answer.write_all(&bytes).await?;
    Ok(answer.finish()?)
}

/// A client's connection: one exchange after another until it is to stop.
async fn converse(
    endpoint: &Endpoint,
    service: SocketAddr,
    seed: u64,
    record: &Record,
    stop: &AtomicBool,
) -> Result<()> {
    let mut random = Random::new(seed);
    let connection = endpoint.connect(service, NAME)?.await?;
    let mut from = 0;
    while !stop.load(Relaxed) {
        let len = random.below(MAX_LEN as u64 + 1) as usize;
        let host = exchange(&connection, seed, from, len).await?;
        from += len as u64;
        let before = record.host.swap(host, Relaxed);
        let moved = before != 0 && before != host;
        record.moved.fetch_add(u64::from(moved), Relaxed);
        record.exchanges.fetch_add(1, Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
    connection.close(0u8.into(), b"done");
    Ok(())
}

/// One exchange; returns the host that answered.
async fn exchange(connection: &Connection, seed: u64, from: u64, len: usize) -> Result<u16> {
    let (mut request, mut answer) = connection.open_bi().await?;
    request.write_all(&seed.to_be_bytes()).await?;
    request.write_all(&from.to_be_bytes()).await?;
    request.write_all(&part(seed, from, len)).await?;
    request.finish()?;
    let answer = answer.read_to_end(2 + MAX_LEN).await?;
    let (host, bytes) = answer.split_first_chunk().context("no answer")?;
    ensure!(bytes == part(down(seed), from, len), "wrong bytes");
    Ok(u16::from_be_bytes(*host))
}

/// So many bytes of a seed's stream.
fn part(seed: u64, from: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream(seed, from, &mut bytes);
    bytes
}

fn builder(name: &str) -> homing_tests::lab::Builder {
    Lab::builder().name(&unique(name)).hosts(3).racks(2)
}

#[test]
fn quic_connections_go_on_across_reshuffles() {
    let mut quic = Quic::up(builder("quic").up().unwrap(), PATIENCE);
    quic.lab.wait_settled(CONNECTIONS as u64, PATIENCE).unwrap();
    quic.tour();
    assert!(quic.lab.outcomes(&["forwarded"]).unwrap() > 0);
    assert_eq!(quic.finish(), (Vec::new(), 0));
}

/// They look for the path's MTU themselves, and what a handshake says does not bind
/// them: on a fabric without spare MTU, what they found on one way does not fit into
/// the tunnel on another, and they go back to what does.
#[test]
fn quic_connections_go_on_across_reshuffles_without_spare_mtu() {
    let lab = builder("quicnarrow").tunnel(Tunnel::Gue).outer(Outer::V6);
    let lab = lab.up().unwrap();
    set_mtu(&lab, NARROW);
    let mut quic = Quic::up(lab, PATIENCE);
    quic.lab.wait_settled(CONNECTIONS as u64, PATIENCE).unwrap();
    quic.tour();
    let forwarded = quic.lab.outcomes(&["forwarded"]).unwrap();
    let too_big = ["too_big", "too_big_told"];
    let too_big = quic.lab.outcomes(&too_big).unwrap();
    println!("{forwarded} forwarded, {too_big} too big");
    assert!(too_big > 0, "all fits anyway: the test shows nothing");
    assert_eq!(quic.finish(), (Vec::new(), 0));
}

/// The same connections and the same changes on plain hosts.
#[test]
fn without_homing_quic_connections_break() {
    let lab = builder("quicplain").no_homing().up().unwrap();
    let mut quic = Quic::up(lab, Duration::from_secs(2));
    quic.tour();
    let (broken, _) = quic.finish();
    println!("{broken:?}");
    assert!(
        !broken.is_empty(),
        "no connection broke: the test shows nothing"
    );
}
