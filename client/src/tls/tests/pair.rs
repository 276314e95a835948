//! A server's stream, and a client of which every byte on the wire can be held up.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use s2n_tls::{
    callbacks::VerifyHostNameCallback,
    config::{Builder, Config},
    connection::Connection,
    enums::{Blinding, ClientAuthType, Mode, PeerKeyUpdate, Version},
    security::Policy,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::super::{Acceptor, Stream, wire::Wire};

/// Longer than anything takes, on whatever machine.
const LONG: Duration = Duration::from_secs(60);
pub const NAME: &str = "movable.example";

/// TLS 1.2 alone, and TLS 1.3 where the other side has it.
pub const VERSIONS: [(Version, &str); 2] =
    [(Version::TLS12, "20190214"), (Version::TLS13, "20240503")];

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("in vain")
}

/// An authority, and what it has signed: PEM, certificates and key.
pub struct Certificates {
    pub authority: String,
    pub server: (String, String),
    pub client: (String, String),
}

impl Certificates {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
        let signed = |name: &str| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority).expect("signed");
            (certificate.pem(), key.serialize_pem())
        };
        Self {
            authority: authority.pem(),
            server: signed(NAME),
            client: signed("client.example"),
        }
    }

    /// An acceptor that asks for the client's certificate.
    pub fn acceptor(&self) -> Acceptor {
        let mut config = self.config("20240503", Some(&self.server));
        config
            .set_client_auth_type(ClientAuthType::Optional)
            .expect("set")
            .set_verify_host_callback(AnyName)
            .expect("set");
        Acceptor::new(config).expect("an acceptor")
    }

    fn config(&self, policy: &str, own: Option<&(String, String)>) -> Builder {
        let mut config = Config::builder();
        let policy = Policy::from_version(policy).expect("a policy");
        config
            .set_security_policy(&policy)
            .and_then(|c| c.with_system_certs(false))
            .and_then(|c| c.trust_pem(self.authority.as_bytes()))
            .and_then(|c| c.set_application_protocol_preference(["echo/1"]))
            .and_then(|c| c.set_max_blinding_delay(0))
            .expect("set");
        if let Some((certificates, key)) = own {
            config
                .load_pem(certificates.as_bytes(), key.as_bytes())
                .expect("loaded");
        }
        config
    }
}

struct AnyName;

impl VerifyHostNameCallback for AnyName {
    fn verify_host_name(&self, _: &str) -> bool {
        true
    }
}

/// A client.
pub struct Client {
    connection: Connection,
    wire: Wire,
    pub tcp: TcpStream,
}

impl Client {
    fn new(config: Config, tcp: TcpStream) -> Self {
        let mut connection = Connection::new(Mode::Client);
        connection
            .set_config(config)
            .and_then(|c| c.set_server_name(NAME))
            .and_then(|c| c.set_blinding(Blinding::SelfService))
            .expect("set");
        let mut wire = Wire::default();
        wire.input.allow(usize::MAX);
        Self {
            connection,
            wire,
            tcp,
        }
    }

    async fn negotiate(&mut self) {
        loop {
            let done = self
                .wire
                .with(&mut self.connection, |c| c.poll_negotiate().map_ok(drop));
            let output = self.output();
            self.tcp.write_all(&output).await.expect("written");
            match done.expect("a wire") {
                Poll::Ready(done) => return done.expect("a handshake"),
                Poll::Pending => assert!(self.fill().await > 0, "no handshake"),
            }
        }
    }

    /// Reads from the socket.
    async fn fill(&mut self) -> usize {
        let filled = poll_fn(|cx| self.wire.input.poll_fill(&mut self.tcp, cx));
        within(filled).await.expect("filled")
    }

    fn output(&mut self) -> Vec<u8> {
        let output = self.wire.output.left().to_vec();
        self.wire.output = Default::default();
        output
    }

    /// What it would send, encrypted.
    pub fn encrypt(&mut self, data: &[u8]) -> Vec<u8> {
        let sent = self
            .wire
            .with(&mut self.connection, |c| c.poll_send(data))
            .expect("a wire");
        assert!(matches!(sent, Poll::Ready(Ok(len)) if len == data.len()));
        self.output()
    }

    /// Keys change with what is encrypted next.
    pub fn update_keys(&mut self) {
        let update = PeerKeyUpdate::KeyUpdateNotRequested;
        self.connection.request_key_update(update).expect("asked");
    }

    /// That it sends no more.
    pub fn encrypt_close(&mut self) -> Vec<u8> {
        let closed = self.wire.with(&mut self.connection, |c| {
            c.poll_shutdown_send().map_ok(drop)
        });
        assert!(matches!(closed, Ok(Poll::Ready(Ok(())))));
        self.output()
    }

    pub async fn send(&mut self, data: &[u8]) {
        let bytes = self.encrypt(data);
        self.send_bytes(&bytes).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        within(self.tcp.write_all(bytes)).await.expect("written");
    }

    /// Data, or none at the end.
    pub async fn receive(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let received = self
                .wire
                .with(&mut self.connection, |c| c.poll_recv(&mut buffer))
                .expect("a wire");
            match received {
                Poll::Ready(len) => {
                    buffer.truncate(len.expect("whole"));
                    return buffer;
                }
                Poll::Pending => assert!(self.fill().await > 0, "cut off"),
            }
        }
    }

    pub async fn expect(&mut self, data: &[u8]) {
        let mut received = Vec::new();
        while received.len() < data.len() {
            let part = self.receive().await;
            assert!(!part.is_empty(), "an end after {} bytes", received.len());
            received.extend(part);
        }
        assert!(received == data, "other data");
    }
}

/// A client and a server after their handshake.
pub struct Pair {
    pub acceptor: Acceptor,
    pub client: Client,
    pub server: Stream,
}

impl Pair {
    pub async fn new(policy: &str, with_certificate: bool) -> Self {
        let certificates = Certificates::new();
        let acceptor = certificates.acceptor();
        let own = with_certificate.then_some(&certificates.client);
        let config = certificates.config(policy, own).build().expect("built");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let tcp = TcpStream::connect(address).await.expect("connected");
        let mut client = Client::new(config, tcp);
        let (tcp, _) = listener.accept().await.expect("accepted");
        let (server, ()) =
            within(async { tokio::join!(acceptor.accept(tcp), client.negotiate()) }).await;
        Self {
            acceptor,
            client,
            server: server.expect("a handshake"),
        }
    }

    /// Moves the server's side: nothing of it is left but TCP connection and state.
    pub fn moved(self) -> Self {
        let (tcp, state) = match self.server.export(b"the application's") {
            Ok(parts) => parts,
            Err(refused) => panic!("{}", refused.why),
        };
        let begun = self.acceptor.begin(&state).expect("a state");
        assert_eq!(begun.application(), b"the application's");
        Self {
            server: begun.adopt(tcp),
            ..self
        }
    }

    /// What the server reads next, at most so much.
    pub async fn read(&mut self, most: usize) -> Vec<u8> {
        let mut buffer = vec![0; most];
        let len = within(self.server.read(&mut buffer)).await.expect("read");
        buffer.truncate(len);
        buffer
    }

    /// The server reads whatever has come; there is no data in it.
    pub async fn read_nothing(&mut self, unread: usize) {
        loop {
            let mut buffer = [0; 64];
            tokio::select! {
                biased;
                read = self.server.read(&mut buffer) => panic!("data: {read:?}"),
                () = std::future::ready(()) => {}
            }
            if self.server.engine.wire.input.left().len() == unread {
                return;
            }
            within(self.server.tcp.readable()).await.expect("readable");
        }
    }

    pub async fn expect(&mut self, data: &[u8]) {
        let mut received = Vec::new();
        while received.len() < data.len() {
            let part = self.read(1 << 16).await;
            assert!(!part.is_empty(), "an end after {} bytes", received.len());
            received.extend(part);
        }
        assert!(received == data, "other data");
    }

    /// Both say something, and hear it.
    pub async fn talk(&mut self, text: &str) {
        self.client.send(text.as_bytes()).await;
        self.expect(text.as_bytes()).await;
        within(self.write(text.as_bytes())).await.expect("written");
        self.client.expect(text.as_bytes()).await;
    }

    async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.server.write_all(data).await?;
        self.server.flush().await
    }
}
