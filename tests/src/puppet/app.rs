//! The application itself.

use std::{
    collections::HashMap,
    net::{Shutdown, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use homing_client::{
    Application, Blob, Connection, Exported, Protocol, Reason, Refusal, Registration,
};
use nix::unistd::{ForkResult, fork};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    Answer, Ask, ECHO, How, Moment, PATIENCE, STILL, Told,
    conn::{Conn, Served, State, Stop},
};
use crate::lab::plan::{SERVICE_V4, SERVICE_V6};

/// The name of the form of its states.
const PROTOCOL: &str = "puppet";

/// A connection that it has.
enum Entry {
    /// It serves it.
    Served(Stop),
    /// It leaves it alone.
    Still(Conn),
}

#[derive(Default)]
struct Inner {
    connections: HashMap<Connection, Entry>,
    behaves: [How; 3],
    told: Told,
    /// More descriptors of connections.
    copies: Vec<OwnedFd>,
}

/// The application: one thread, which waits where it awaits and nowhere else.
#[derive(Clone, Default)]
struct Server {
    inner: Arc<Mutex<Inner>>,
    /// A connection has come.
    came: Arc<Notify>,
}

/// Serves, and does what standard input says, until that ends.
pub async fn run(agent: PathBuf) -> Result<()> {
    let server = Server::default();
    let services = services();
    let mut registration = Registration::new(agent, Protocol::new(PROTOCOL, 1));
    for service in &services {
        registration = registration.service(*service);
    }
    let mut listeners = listen(&server, &services).await?;
    let registered = registration.serve(Arc::new(server.clone()));
    tokio::pin!(registered);
    let mut lines = lines();
    say(&Answer::Done)?;
    loop {
        let line = tokio::select! {
            ended = &mut registered => match ended? {},
            line = lines.recv() => line,
        };
        let Some(line) = line else { return Ok(()) };
        let ask: Ask = serde_json::from_str(&line)?;
        let answered = if ask == Ask::Listen {
            listeners.iter().for_each(|task| task.abort());
            for task in listeners {
                // It is gone once its listener is closed.
                task.await.ok();
            }
            listeners = listen(&server, &services).await?;
            Ok(Answer::Done)
        } else {
            tokio::select! {
                ended = &mut registered => match ended? {},
                answer = server.answer(ask) => answer,
            }
        };
        say(&answered.unwrap_or_else(|error| Answer::Failed(format!("{error:#}"))))?;
    }
}

/// What a child does: it has a descriptor, and waits until it is killed.
fn wait_with(descriptor: RawFd) -> ! {
    let one = descriptor as libc::c_uint;
    for [first, last] in [[0, one - 1], [one + 1, libc::c_uint::MAX]] {
        // SAFETY: nothing of this process uses its descriptors any more.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
    loop {
        // SAFETY: the call takes nothing, and waits for a signal.
        unsafe { libc::pause() };
    }
}

fn services() -> Vec<SocketAddr> {
    let ports = [ECHO, STILL];
    let of = |port| [(SERVICE_V4, port).into(), (SERVICE_V6, port).into()];
    ports.into_iter().flat_map(of).collect()
}

/// What comes by standard input.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (send, receive) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

fn say(answer: &Answer) -> Result<()> {
    println!("{}", serde_json::to_string(answer)?);
    Ok(())
}

async fn listen(
    server: &Server,
    services: &[SocketAddr],
) -> Result<Vec<tokio::task::JoinHandle<()>>> {
    let mut tasks = Vec::new();
    for service in services {
        let listener = TcpListener::bind(service).await;
        let listener = listener.with_context(|| format!("cannot listen on {service}"))?;
        let server = server.clone();
        tasks.push(tokio::spawn(async move {
            loop {
                let Ok((stream, client)) = listener.accept().await else {
                    // It ended before it was accepted.
                    continue;
                };
                let Ok(service) = stream.local_addr() else {
                    continue;
                };
                server.take(Conn {
                    connection: Connection::new(client, service),
                    stream,
                    state: State::default(),
                });
            }
        }));
    }
    Ok(tasks)
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a connection from now on.
    fn take(&self, conn: Conn) {
        conn.stream.set_nodelay(true).ok();
        let connection = conn.connection;
        if connection.service.port() == ECHO {
            let (stop, stopped) = oneshot::channel();
            let entry = Entry::Served(stop);
            self.lock().connections.insert(connection, entry);
            let server = self.clone();
            tokio::spawn(async move {
                let (conn, wrong) = match conn.echo(stopped).await {
                    Served::Stopped => return,
                    Served::Ended(conn) => (conn, None),
                    Served::Wrong(conn, why) => (conn, Some(why)),
                };
                // Before it is closed: its tuple may be used again then.
                server.lock().connections.remove(&connection);
                if let Some(why) = wrong {
                    server.wrong(why);
                }
                drop(conn);
            });
        } else {
            let entry = Entry::Still(conn);
            self.lock().connections.insert(connection, entry);
        }
        self.came.notify_waiters();
    }

    /// Gives a connection up, at a boundary.
    async fn give(&self, connection: Connection) -> Option<Conn> {
        let entry = self.lock().connections.remove(&connection)?;
        match entry {
            Entry::Still(conn) => Some(conn),
            Entry::Served(stop) => {
                let (send, receive) = oneshot::channel();
                // It may have ended just now.
                stop.send(send).ok()?;
                receive.await.ok()
            }
        }
    }

    fn wrong(&self, why: String) {
        eprintln!("{why}");
        self.lock().told.wrong.push(why);
    }

    fn find(&self, client: SocketAddr) -> Option<Connection> {
        let inner = self.lock();
        let mut all = inner.connections.keys();
        all.find(|connection| connection.client == client).copied()
    }

    /// Answers as it is told to at this moment.
    async fn behave(&self, moment: Moment) -> Result<(), Refusal> {
        let how = self.lock().behaves[moment as usize];
        match how {
            How::Well => {}
            How::Refuse => return Err(Refusal::failed("it was told to refuse")),
            How::Slowly(ms) => sleep(Duration::from_millis(ms)).await,
        }
        Ok(())
    }

    async fn answer(&self, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::Here(client) => timeout(PATIENCE, self.wait(client))
                .await
                .with_context(|| format!("no connection of {client}"))?,
            Ask::Has(client) => return Ok(Answer::Count(self.find(client).is_some().into())),
            Ask::Behave(moment, how) => self.lock().behaves[moment as usize] = how,
            Ask::Told => return Ok(Answer::Told(self.lock().told.clone())),
            // The loop does it, which has the listeners.
            Ask::Listen => bail!("not here"),
            Ask::Read(client, _)
            | Ask::Write(client, _)
            | Ask::Shut(client)
            | Ask::End(client)
            | Ask::Close(client)
            | Ask::Abort(client)
            | Ask::Queues(client)
            | Ask::Hold(client, ..) => {
                let connection = self.find(client);
                let connection =
                    connection.with_context(|| format!("no connection of {client}"))?;
                let conn = self.give(connection).await;
                let conn = conn.context("the connection has just ended")?;
                let (conn, answer) = self.handle(conn, &ask).await;
                if let Some(conn) = conn {
                    self.take(conn);
                }
                return answer;
            }
        }
        Ok(Answer::Done)
    }

    /// Does something with a connection; gives it back unless it is gone then.
    async fn handle(&self, mut conn: Conn, ask: &Ask) -> (Option<Conn>, Result<Answer>) {
        let answer = match ask {
            Ask::Read(_, len) => conn.read_all(*len).await.map(|()| Answer::Done),
            Ask::Write(_, len) => conn.write_most(*len).map(Answer::Count),
            Ask::End(_) => conn.read_end().await.map(|()| Answer::Done),
            Ask::Queues(_) => conn.queues().map(Answer::Queues),
            Ask::Hold(_, copies, children) => self.hold(&conn, *copies, *children),
            Ask::Shut(_) => SockRef::from(&conn.stream)
                .shutdown(Shutdown::Write)
                .map(|()| Answer::Done)
                .map_err(Into::into),
            Ask::Abort(_) => {
                let set = conn.stream.set_zero_linger();
                return (None, set.map(|()| Answer::Done).map_err(Into::into));
            }
            _ => return (None, Ok(Answer::Done)),
        };
        (Some(conn), answer)
    }

    /// Makes more holders of a connection.
    fn hold(&self, conn: &Conn, copies: usize, children: usize) -> Result<Answer> {
        for _ in 0..copies {
            let copy = conn.stream.as_fd().try_clone_to_owned()?;
            self.lock().copies.push(copy);
        }
        for _ in 0..children {
            // SAFETY: the child makes system calls alone, and does not return.
            match unsafe { fork() }? {
                ForkResult::Parent { .. } => {}
                ForkResult::Child => wait_with(conn.stream.as_raw_fd()),
            }
        }
        Ok(Answer::Done)
    }

    async fn wait(&self, client: SocketAddr) {
        loop {
            let came = self.came.notified();
            if self.find(client).is_some() {
                return;
            }
            came.await;
        }
    }
}

impl Application for Server {
    type Kept = Conn;
    type Begun = State;

    fn registered(&self) {
        self.lock().told.is_registered = true;
    }

    fn unreachable(&self, why: &str) {
        eprintln!("no agent: {why}");
        self.lock().told.is_registered = false;
    }

    async fn export(
        &self,
        connection: Connection,
        _within: Duration,
    ) -> Result<Exported<Conn>, Refusal> {
        self.lock().told.exports += 1;
        self.behave(Moment::Export).await?;
        let conn = self.give(connection).await.ok_or(Reason::Unknown)?;
        let descriptor = conn.stream.as_fd().try_clone_to_owned();
        match (descriptor, conn.state.to_blob()) {
            (Ok(descriptor), Ok(state)) => Ok(Exported {
                descriptor,
                state,
                kept: conn,
            }),
            (Err(error), _) => {
                self.take(conn);
                Err(Refusal::failed(error))
            }
            (_, Err(error)) => {
                self.take(conn);
                Err(Refusal::failed(error))
            }
        }
    }

    async fn resume(&self, _: Connection, kept: Conn, state: Blob) {
        self.lock().told.resumed += 1;
        // It goes on from what it gave, as it would elsewhere.
        match State::from_blob(&state) {
            Ok(state) => self.take(Conn { state, ..kept }),
            Err(error) => self.wrong(format!("a state came back changed: {error:#}")),
        }
    }

    async fn committed(&self, _: Connection, kept: Conn) {
        self.lock().told.committed += 1;
        drop(kept);
    }

    async fn begin(&self, _: Connection, state: Blob) -> Result<State, Refusal> {
        self.lock().told.begun += 1;
        self.behave(Moment::Begin).await?;
        State::from_blob(&state).map_err(Refusal::failed)
    }

    async fn adopt(
        &self,
        connection: Connection,
        state: State,
        socket: OwnedFd,
    ) -> Result<(), Refusal> {
        self.lock().told.adopted += 1;
        self.behave(Moment::Adopt).await?;
        let stream = std::net::TcpStream::from(socket);
        let stream = TcpStream::from_std(stream).map_err(Refusal::failed)?;
        self.take(Conn {
            connection,
            stream,
            state,
        });
        Ok(())
    }
}
