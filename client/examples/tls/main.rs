//! An HTTPS server whose connections can move to another host, TLS and all: in the middle
//! of an answer, of a request, of a record.
//!
//! ```console
//! $ tls AGENT_SOCKET ADDRESS:PORT NAME CERTIFICATES.pem KEY.pem [CLIENTS_CA.pem]
//! $ curl --cacert CA.pem https://ADDRESS:PORT/who
//! ```
//!
//! It speaks HTTP/1.1, TLS 1.2 and 1.3. `NAME` is what this host calls itself in answers.
//! With `CLIENTS_CA.pem` clients may show a certificate; who they are travels, too.
//! What it answers stands in `http.rs`.

mod http;

use std::{
    collections::{HashMap, hash_map::Entry},
    error::Error,
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use homing_client::{
    Application, Blob, Connection, Exported, Protocol, Reason, Refusal, Registration,
    tls::{
        Acceptor, Begun, Stream,
        s2n_tls::{
            callbacks::VerifyHostNameCallback, config::Config, enums::ClientAuthType,
            security::Policy,
        },
    },
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use http::Talk;

/// What is accepted of TLS: a set that does not change with the library, with both versions.
const POLICY: &str = "20240503";
/// The time for a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Who stops a connection gets what is left of it.
type Stop = oneshot::Sender<oneshot::Sender<(Stream, Talk)>>;

/// A connection of this host.
enum Place {
    /// In its handshake.
    Begins,
    /// Served by a task.
    Served(Stop),
}

#[derive(Clone)]
struct Server {
    name: Arc<str>,
    acceptor: Acceptor,
    connections: Arc<Mutex<HashMap<Connection, Place>>>,
}

impl Server {
    /// Serves a connection that a client opens.
    fn open(&self, connection: Connection, tcp: TcpStream) {
        self.lock().insert(connection, Place::Begins);
        let server = self.clone();
        tokio::spawn(async move {
            let accepted = timeout(HANDSHAKE_MAX, server.acceptor.accept(tcp)).await;
            match accepted {
                Ok(Ok(stream)) => server.start(connection, stream, Talk::new()),
                Ok(Err(error)) => eprintln!("{connection}: no handshake: {error}"),
                Err(_) => eprintln!("{connection}: no handshake in time"),
            }
            // The handshake's own place, if it came to nothing.
            if let Entry::Occupied(entry) = server.lock().entry(connection)
                && matches!(entry.get(), Place::Begins)
            {
                entry.remove();
            }
        });
    }

    fn start(&self, connection: Connection, stream: Stream, talk: Talk) {
        let (stop, stopped) = oneshot::channel();
        self.lock().insert(connection, Place::Served(stop));
        let server = self.clone();
        tokio::spawn(async move {
            let facts = facts(&server.name, &stream);
            if let Some(stream) = serve(stream, talk, &facts, stopped).await {
                // Before it is closed: its tuple may be used again then.
                server.lock().remove(&connection);
                drop(stream);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Connection, Place>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the server can say of a connection, as members of a JSON object.
fn facts(name: &str, stream: &Stream) -> String {
    let session = stream.session();
    let quoted = |text: Option<&[u8]>| match text {
        Some(text) => format!("\"{}\"", text.escape_ascii()),
        None => "null".to_owned(),
    };
    let client = session.client_certificates.first().map(|certificate| {
        let mut hex = String::new();
        for byte in Sha256::digest(certificate) {
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    });
    let version = stream.version().map(|version| format!("{version:?}"));
    format!(
        "\"host\":\"{name}\",\"server_name\":{},\"alpn\":{},\"client\":{},\"version\":\"{}\",\"cipher\":\"{}\"",
        quoted(session.server_name.as_deref().map(str::as_bytes)),
        quoted(session.application_protocol.as_deref()),
        quoted(client.as_deref().map(str::as_bytes)),
        version.unwrap_or_default(),
        stream.cipher_suite().unwrap_or_default(),
    )
}

/// Serves a connection until it ends, or is stopped: then it is somebody else's.
async fn serve(
    mut stream: Stream,
    mut talk: Talk,
    facts: &str,
    mut stop: oneshot::Receiver<oneshot::Sender<(Stream, Talk)>>,
) -> Option<Stream> {
    let mut due = Instant::now();
    loop {
        // A turn waits in one place, and does all else at once: whenever it is dropped,
        // no byte is in between.
        tokio::select! {
            biased;
            stopped = &mut stop => {
                let _ = stopped.ok()?.send((stream, talk));
                return None;
            }
            turn = turn(&mut stream, &mut talk, facts, &mut due) => match turn {
                Ok(true) => {}
                Ok(false) => {
                    // A client that does not read it has itself to blame.
                    let _ = timeout(HANDSHAKE_MAX, stream.shutdown()).await;
                    return Some(stream);
                }
                Err(_) => return Some(stream),
            },
        }
    }
}

/// Writes what is to be written, when it is time, or else reads. False: that was the end.
async fn turn(
    stream: &mut Stream,
    talk: &mut Talk,
    facts: &str,
    due: &mut Instant,
) -> io::Result<bool> {
    if !talk.output().is_empty() {
        let len = stream.write(talk.output()).await?;
        talk.wrote(len);
        return Ok(true);
    }
    if talk.is_paced() {
        stream.flush().await?;
        sleep_until(*due).await;
    }
    if let Some(pause) = talk.fill() {
        *due = Instant::now() + pause;
        return Ok(true);
    }
    if talk.go_on(facts).is_none() {
        return Ok(false);
    }
    if !talk.is_quiet() {
        return Ok(true);
    }
    stream.flush().await?;
    if talk.is_over() {
        return Ok(false);
    }
    let mut buffer = [0; 4096];
    let len = stream.read(&mut buffer).await?;
    talk.take(&buffer[..len]);
    Ok(len > 0)
}

impl Application for Server {
    type Kept = TcpStream;
    type Begun = (Begun, Talk);

    fn unreachable(&self, why: &str) {
        eprintln!("no agent: {why}");
    }

    async fn export(
        &self,
        connection: Connection,
        _within: Duration,
    ) -> Result<Exported<TcpStream>, Refusal> {
        let stop = match self.lock().entry(connection) {
            Entry::Vacant(_) => return Err(Reason::Unknown.into()),
            Entry::Occupied(entry) => match entry.get() {
                Place::Begins => return Err(Reason::Busy.into()),
                Place::Served(_) => entry.remove(),
            },
        };
        let Place::Served(stop) = stop else {
            return Err(Reason::Busy.into());
        };
        let (send, receive) = oneshot::channel();
        // It may have ended just now.
        stop.send(send).map_err(|_| Reason::Unknown)?;
        let (stream, talk) = receive.await.map_err(|_| Reason::Unknown)?;
        let descriptor = match stream.tcp().as_fd().try_clone_to_owned() {
            Ok(descriptor) => descriptor,
            Err(error) => {
                self.start(connection, stream, talk);
                return Err(Refusal::failed(error));
            }
        };
        match stream.export(&talk.encode()) {
            Ok((kept, state)) => Ok(Exported {
                descriptor,
                state,
                kept,
            }),
            Err(refused) => {
                self.start(connection, refused.stream, talk);
                Err(refused.why.into())
            }
        }
    }

    async fn resume(&self, connection: Connection, kept: TcpStream, state: Blob) {
        // It is what this server wrote itself.
        if let Ok((begun, talk)) = self.begin(connection, state).await {
            self.start(connection, begun.adopt(kept), talk);
        }
    }

    async fn begin(&self, _: Connection, state: Blob) -> Result<Self::Begun, Refusal> {
        let begun = self.acceptor.begin(&state)?;
        let talk = Talk::decode(begun.application());
        let talk = talk.ok_or_else(|| Refusal::failed("the state makes no sense"))?;
        Ok((begun, talk))
    }

    async fn adopt(
        &self,
        connection: Connection,
        (begun, mut talk): Self::Begun,
        socket: OwnedFd,
    ) -> Result<(), Refusal> {
        let tcp = TcpStream::from_std(socket.into()).map_err(Refusal::failed)?;
        talk.has_moved();
        self.start(connection, begun.adopt(tcp), talk);
        Ok(())
    }
}

/// Clients are whoever their certificate says; any name will do.
struct AnyName;

impl VerifyHostNameCallback for AnyName {
    fn verify_host_name(&self, _: &str) -> bool {
        true
    }
}

fn acceptor(
    certificates: &str,
    key: &str,
    clients: Option<&String>,
) -> Result<Acceptor, Box<dyn Error>> {
    let mut config = Config::builder();
    config
        .set_security_policy(&Policy::from_version(POLICY)?)?
        .set_application_protocol_preference(["http/1.1"])?
        .with_system_certs(false)?
        .load_pem(&fs::read(certificates)?, &fs::read(key)?)?;
    if let Some(clients) = clients {
        config
            .trust_pem(&fs::read(clients)?)?
            .set_client_auth_type(ClientAuthType::Optional)?
            .set_verify_host_callback(AnyName)?;
    }
    Ok(Acceptor::new(config)?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (agent, service, name, certificates, key, clients) = match arguments.as_slice() {
        [agent, service, name, certificates, key] => {
            (agent, service, name, certificates, key, None)
        }
        [agent, service, name, certificates, key, clients] => {
            (agent, service, name, certificates, key, Some(clients))
        }
        _ => {
            return Err(
                "usage: tls AGENT_SOCKET ADDRESS:PORT NAME CERTIFICATES.pem KEY.pem [CLIENTS_CA.pem]"
                    .into(),
            );
        }
    };
    let service: SocketAddr = service.parse()?;
    let server = Server {
        name: name.as_str().into(),
        acceptor: acceptor(certificates, key, clients)?,
        connections: Arc::default(),
    };
    let listener = TcpListener::bind(service).await?;
    let registration = Registration::new(agent, Protocol::new("https-bytes", 1)).service(service);
    tokio::select! {
        ended = registration.serve(Arc::new(server.clone())) => match ended? {},
        ended = accept(&server, &listener) => Ok(ended?),
    }
}

async fn accept(server: &Server, listener: &TcpListener) -> io::Result<()> {
    loop {
        let (tcp, client) = listener.accept().await?;
        let connection = Connection::new(client, tcp.local_addr()?);
        server.open(connection, tcp);
    }
}
