//! The crate's own end, with an application in this process that a test holds up.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use homing_agent::migration::app::{Failure, Reason};
use homing_client::{Application, Blob, Connection, Exported, Protocol, Refusal, Registration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, mpsc},
    task::JoinHandle,
};

use super::common::*;

/// What the application was told.
#[derive(PartialEq, Eq, Debug)]
enum Told {
    Export,
    Resume(Blob),
    Committed,
    Begin(Blob),
}

struct App {
    streams: Mutex<Vec<TcpStream>>,
    /// So many exports and looks at states go on.
    permits: Semaphore,
    told: mpsc::UnboundedSender<Told>,
    state: Blob,
    unreachable: Notify,
}

impl Application for App {
    type Kept = TcpStream;
    type Begun = ();

    fn unreachable(&self, _: &str) {
        self.unreachable.notify_one();
    }

    async fn export(&self, _: Connection, _: Duration) -> Result<Exported<TcpStream>, Refusal> {
        self.told.send(Told::Export).expect("heard");
        self.permits.acquire().await.expect("open").forget();
        let kept = self.streams.lock().expect("whole").pop();
        let kept = kept.ok_or(Reason::Unknown)?;
        Ok(Exported {
            descriptor: kept.as_fd().try_clone_to_owned().expect("a descriptor"),
            state: self.state.clone(),
            kept,
        })
    }

    async fn resume(&self, _: Connection, kept: TcpStream, state: Blob) {
        self.streams.lock().expect("whole").push(kept);
        self.told.send(Told::Resume(state)).expect("heard");
    }

    async fn committed(&self, _: Connection, _: TcpStream) {
        self.told.send(Told::Committed).expect("heard");
    }

    async fn begin(&self, _: Connection, state: Blob) -> Result<(), Refusal> {
        self.told.send(Told::Begin(state)).expect("heard");
        self.permits.acquire().await.expect("open").forget();
        Ok(())
    }

    async fn adopt(&self, _: Connection, (): (), _: OwnedFd) -> Result<(), Refusal> {
        Err(Reason::NoRoom.into())
    }
}

/// An agent, an application in this process, and a client of it.
struct Bench {
    agent: Agent,
    app: Arc<App>,
    told: mpsc::UnboundedReceiver<Told>,
    client: Client,
    serving: JoinHandle<()>,
}

impl Bench {
    async fn start(state: Vec<u8>) -> Self {
        let endpoint = new_service();
        let mut agent = Agent::start(endpoint);
        let listener = TcpListener::bind(endpoint).await.expect("a listener");
        let client = Client::connect(endpoint).await;
        let (stream, _) = listener.accept().await.expect("accepted");
        let (sender, told) = mpsc::unbounded_channel();
        let app = Arc::new(App {
            streams: Mutex::new(vec![stream]),
            permits: Semaphore::new(0),
            told: sender,
            state: state.into(),
            unreachable: Notify::new(),
        });
        let registration =
            Registration::new(agent.path(), Protocol::new("line-echo", 1)).service(endpoint);
        let serving = Arc::clone(&app);
        let serving = tokio::spawn(async move {
            match registration.serve(serving).await {
                Ok(never) => match never {},
                Err(error) => panic!("{error}"),
            }
        });
        agent.registered().await;
        Self {
            agent,
            app,
            told,
            client,
            serving,
        }
    }

    async fn told(&mut self) -> Told {
        let told = tokio::time::timeout(LONG, self.told.recv()).await;
        told.expect("in vain: a call")
            .expect("the application lives")
    }

    /// Asks for the only connection.
    fn export(&self, number: u64) -> JoinHandle<Result<(), Failure>> {
        let (apps, session) = (self.agent.apps.clone(), self.agent.session(&self.client));
        tokio::spawn(async move { apps.export(number, session).await.map(drop) })
    }

    fn end(self) {
        self.serving.abort();
        self.agent.end();
    }
}

fn refused(reason: Reason) -> Result<(), Failure> {
    let text = String::new();
    Err(Failure::Refused { reason, text })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_taken_back_is_resumed_and_answered() {
    let mut bench = Bench::start(b"state".to_vec()).await;
    let export = bench.export(1);
    assert_eq!(bench.told().await, Told::Export);
    bench.agent.apps.resume(1, None).expect("asked");
    assert_eq!(export.await.expect("joined"), Err(Failure::NotPending));
    // Until the answer has come the connection is taken.
    assert_eq!(bench.export(2).await.expect("joined"), Err(Failure::Busy));
    bench.app.permits.add_permits(1);
    assert_eq!(bench.told().await, Told::Resume(b"state".to_vec().into()));
    homing_tests::sandbox::eventually("the answer has come", || {
        bench.agent.apps.counters().late == 1
    });
    bench.app.permits.add_permits(1);
    assert_eq!(bench.export(3).await.expect("joined"), Ok(()));
    assert_eq!(bench.told().await, Told::Export);
    bench.agent.apps.committed(3).expect("pending");
    assert_eq!(bench.told().await, Told::Committed);
    bench.client.ended().await;
    bench.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_the_agent_did_not_live_to_see_did_not_happen() {
    let mut bench = Bench::start(b"state".to_vec()).await;
    let export = bench.export(1);
    assert_eq!(bench.told().await, Told::Export);
    bench.agent = bench.agent.restart().await;
    bench.app.unreachable.notified().await;
    export.abort();
    // It is resumed by itself, and nothing is told as pending.
    bench.app.permits.add_permits(1);
    assert_eq!(bench.told().await, Told::Resume(b"state".to_vec().into()));
    bench.agent.registered().await;
    assert_eq!(bench.agent.apps.counters().told_pending, 0);
    bench.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_too_long_is_refused_and_the_connection_goes_on() {
    let state = vec![1; (1 << 20) + 1];
    let mut bench = Bench::start(state.clone()).await;
    bench.app.permits.add_permits(1);
    assert_eq!(
        bench.export(1).await.expect("joined"),
        refused(Reason::TooLarge)
    );
    assert_eq!(bench.told().await, Told::Export);
    assert_eq!(bench.told().await, Told::Resume(state.into()));
    assert_eq!(bench.agent.apps.held_bytes(), 0);
    bench.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_dropped_while_its_state_is_looked_at_is_answered() {
    let mut bench = Bench::start(Vec::new()).await;
    let state = Blob::from(b"state".to_vec());
    drop(bench.agent.import(1).await);
    let (apps, given) = (bench.agent.apps.clone(), state.clone());
    let give = tokio::spawn(async move { apps.give(1, given).await });
    assert_eq!(bench.told().await, Told::Begin(state.clone()));
    bench.agent.apps.drop_import(1).expect("pending");
    assert_eq!(give.await.expect("joined"), Err(Failure::NotPending));
    bench.app.permits.add_permits(1);
    homing_tests::sandbox::eventually("the answer has come", || {
        bench.agent.apps.counters().late == 1
    });

    // One that goes on until the application cannot adopt it after all.
    let socket = bench.agent.import(2).await;
    bench.app.permits.add_permits(1);
    bench.agent.apps.give(2, state).await.expect("kept");
    let mut client = Client::of(&socket).await;
    drop(socket);
    assert_eq!(bench.agent.apps.adopt(2).await, refused(Reason::NoRoom));
    client.ended().await;
    bench.end();
}
