//! The handshake of both sides, over real connections.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Unintroduced},
    plain::Role,
    preamble::{Hello, PREAMBLE_LEN, Preamble, VERDICT_LEN, Verdict},
    shared::{Accepted, Shared, Target},
};
use crate::pop::{Stream, keys::CarrierKey};

/// Why a carrier could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(
        "cannot connect to {0} (TCP): {1}; is its agent up, and does the fabric let TCP through?"
    )]
    Connect(SocketAddr, io::Error),
    #[error("refused by {0}: {1}")]
    Refused(SocketAddr, Verdict),
    #[error("what answers at {0} is no agent's carrier")]
    Garbage(SocketAddr),
    #[error(
        "{0} did not prove the POP's key: {1}; compare the ids of the keys in `homing hosts`, and \
         `pop.key_file` of both hosts"
    )]
    Unproven(SocketAddr, io::Error),
    #[error("{0} has ended the handshake: {1}")]
    Ended(SocketAddr, io::Error),
    #[error("{0} is an earlier life of its host than the one that is known")]
    Stale(SocketAddr),
    #[error("the handshake with {0} took too long")]
    Timeout(SocketAddr),
}

/// A carrier that was opened.
pub(super) struct Opened {
    pub stream: Connection,
    /// The life of the other host's agent, and what ends with it.
    pub peer: Stream,
    pub life: CancellationToken,
}

/// Opens a carrier.
pub(super) async fn open(shared: &Shared, target: &Target) -> Result<Opened, OpenError> {
    let to = target.address;
    let tcp = connect(shared.address, to).await;
    let mut tcp = tcp.map_err(|error| OpenError::Connect(to, error))?;
    let ended = |error| OpenError::Ended(to, error);
    tcp.write_all(&target.preamble.encode())
        .await
        .map_err(ended)?;
    let mut verdict = [0; VERDICT_LEN];
    tcp.read_exact(&mut verdict).await.map_err(ended)?;
    match Verdict::decode(verdict).ok_or(OpenError::Garbage(to))? {
        Verdict::Welcome => {}
        refusal => return Err(OpenError::Refused(to, refusal)),
    }
    let (preamble, key) = (&target.preamble, &target.key.key);
    let unproven = |error| OpenError::Unproven(to, error);
    let stream = Unintroduced::begin(&shared.tls, tcp, Role::Dialer, preamble, key);
    let mut stream = stream.await.map_err(unproven)?;
    let hello = Hello {
        verdict: Verdict::Welcome,
        stream: target.ours,
    };
    // The acceptor's part of the proof is complete; that it took this side's shows now.
    stream.say(&hello.encode()).await.map_err(unproven)?;
    let answer = stream.hear().await.map_err(unproven)?;
    let answer = Hello::decode(&answer).ok_or(OpenError::Garbage(to))?;
    if answer.verdict != Verdict::Welcome {
        return Err(OpenError::Refused(to, answer.verdict));
    }
    let life = shared.meet(target.preamble.acceptor, answer.stream);
    Ok(Opened {
        stream: stream.introduced(),
        peer: answer.stream,
        life: life.ok_or(OpenError::Stale(to))?,
    })
}

/// Connects from the fabric address, by which the other host knows this one.
async fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match from {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(from.ip(), 0))?;
    let tcp = socket.connect(to).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Why a connection did not become a carrier.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcceptError {
    #[error("it does not begin like a carrier")]
    Garbage,
    #[error("host {host} with key {key:02x} was told: {1}", host = .0.dialer.0, key = .0.key)]
    Refused(Preamble, Verdict),
    #[error(
        "host {host} did not prove the POP's key with the id {key:02x}: {1}; compare \
         `pop.key_file` of both hosts",
        host = .0.dialer.0, key = .0.key
    )]
    Unproven(Preamble, io::Error),
    #[error("it took too long")]
    Timeout,
}

/// A connection that begins like a carrier, and whose dialer was welcomed.
pub(super) struct Greeted {
    /// Of no runtime yet.
    tcp: std::net::TcpStream,
    pub preamble: Preamble,
    key: CarrierKey,
}

/// A carrier that was accepted.
pub(super) struct Carrier {
    pub stream: Connection,
    pub preamble: Preamble,
    pub key: CarrierKey,
    pub accepted: Accepted,
}

/// Hears what a connection is for.
pub(super) async fn greet(
    shared: &Shared,
    mut tcp: TcpStream,
    source: SocketAddr,
) -> Result<Greeted, AcceptError> {
    let garbage = |_: io::Error| AcceptError::Garbage;
    tcp.set_nodelay(true).map_err(garbage)?;
    let mut preamble = [0; PREAMBLE_LEN];
    tcp.read_exact(&mut preamble).await.map_err(garbage)?;
    let preamble = Preamble::decode(&preamble).ok_or(AcceptError::Garbage)?;
    let key = match shared.judge(&preamble, source.ip()) {
        Ok(key) => key,
        Err(verdict) => {
            // It is refused whether it hears that or not.
            let _ = tcp.write_all(&verdict.encode()).await;
            return Err(AcceptError::Refused(preamble, verdict));
        }
    };
    tcp.write_all(&Verdict::Welcome.encode())
        .await
        .map_err(garbage)?;
    let tcp = tcp.into_std().map_err(garbage)?;
    Ok(Greeted { tcp, preamble, key })
}

/// Accepts a carrier, on the runtime that it stays on.
pub(super) async fn accept(shared: &Arc<Shared>, greeted: Greeted) -> Result<Carrier, AcceptError> {
    let Greeted { tcp, preamble, key } = greeted;
    let unproven = |error| AcceptError::Unproven(preamble, error);
    let tcp = TcpStream::from_std(tcp).map_err(unproven)?;
    let stream = Unintroduced::begin(&shared.tls, tcp, Role::Acceptor, &preamble, &key.key);
    let mut stream = stream.await.map_err(unproven)?;
    let hello = stream.hear().await.map_err(unproven)?;
    let hello = Hello::decode(&hello).ok_or(AcceptError::Garbage)?;
    let admitted = shared.admit(&preamble, hello.stream);
    let answer = Hello {
        verdict: match admitted {
            Ok(_) => Verdict::Welcome,
            Err(verdict) => verdict,
        },
        stream: shared.stream(),
    };
    let told = stream.say(&answer.encode()).await;
    let accepted = admitted.map_err(|verdict| AcceptError::Refused(preamble, verdict))?;
    told.map_err(unproven)?;
    Ok(Carrier {
        stream: stream.introduced(),
        preamble,
        key,
        accepted,
    })
}
