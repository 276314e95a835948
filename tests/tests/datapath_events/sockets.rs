//! Sessions that the hooks missed are found in the kernel's socket tables.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, atomic::Ordering},
};

use homing_agent::datapath::{
    Datapath, LoadOptions,
    local::News,
    sessions::Sessions,
    sockets::{WatchCounters, Watcher},
    stats::Stats,
};
use homing_common::{
    outcome::Hook,
    session::{Session, Tuple},
};
use homing_tests::sandbox::{self, Sandbox, eventually};
use tokio::{
    runtime,
    sync::{mpsc, watch},
};

use crate::common::{KEY, KEYS, SERVICES, Server, View, eventually_async, ids, recorded};

/// Runs `test` with an agent's part in this at work: the watcher, which has compared
/// once, and the reader of events.
fn with_watcher<F: Future<Output = ()>>(
    options: &LoadOptions,
    test: impl FnOnce(mpsc::Receiver<News>, Facts) -> F,
) {
    let mut datapath = Datapath::load(options).unwrap();
    datapath.services.sync(&SERVICES).unwrap();
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        let (to, from) = mpsc::channel(16);
        let finder = datapath.events.finder();
        let (sessions, stats) = (datapath.sessions.clone(), datapath.stats.clone());
        let moving = datapath.moving.clone();
        let services = watch::Sender::new(Arc::new(SERVICES.into())).subscribe();
        let watcher = Watcher::open(sessions, moving, stats, KEY, services, finder);
        let mut watcher = watcher.unwrap();
        watcher.audit().await.unwrap();
        let facts = Facts {
            sessions: datapath.sessions.clone(),
            stats: datapath.stats.clone(),
            counters: watcher.counters(),
        };
        let watcher = tokio::spawn(watcher.run());
        let reader = tokio::spawn(datapath.events.run(KEYS, to));
        test(from, facts).await;
        reader.await.unwrap().unwrap();
        watcher.await.unwrap().unwrap();
    });
}

struct Facts {
    sessions: Arc<Sessions>,
    stats: Arc<Stats>,
    counters: Arc<WatchCounters>,
}

impl Facts {
    fn adopted(&self) -> BTreeSet<Tuple> {
        let mut adopted = BTreeSet::new();
        let each = |tuple, session: Session| {
            if session.flags & Session::ADOPTED != 0 {
                adopted.insert(tuple);
            }
        };
        self.sessions.scan(each).unwrap();
        adopted
    }
}

/// Detaches the hooks, as nothing in the product does: what happens to sockets from
/// now on is not recorded.
fn detach_hooks(sandbox: &Sandbox, options: &LoadOptions) {
    fs::remove_file(options.pin_dir.join("links/sockops")).unwrap();
    let attached = || {
        let output = std::process::Command::new("bpftool")
            .args(["cgroup", "show"])
            .arg(&sandbox.cgroup)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).contains("homing_sockops")
    };
    eventually("the hooks are detached", || !attached());
}

#[test]
fn sockets_older_than_the_first_load_are_found_and_their_end_is_told() {
    sandbox::run(|sandbox| {
        let mut server = Server::new();
        server.connect();
        server.connect();
        server.connect();
        with_watcher(&sandbox.options(&[]), async |mut from, facts| {
            let mut view = View::default();
            view.until(&mut from, &ids(&server.tuples())).await;
            assert_eq!(facts.adopted(), server.tuples());
            // One that the hooks see, among them.
            server.connect();
            view.until(&mut from, &ids(&server.tuples())).await;
            assert_eq!(facts.adopted().len(), 3);
            server.reset();
            view.until(&mut from, &ids(&server.tuples())).await;
            server.reset();
            view.until(&mut from, &ids(&server.tuples())).await;
            for client_first in [true, false] {
                server.close(client_first);
                view.until(&mut from, &ids(&server.tuples())).await;
            }
            assert!(recorded(&facts.sessions).is_empty());
            assert_eq!(facts.stats.hook(Hook::Closed).unwrap(), 1);
        });
    });
}

#[test]
fn what_was_adopted_stays_so_through_a_restart() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut server = Server::new();
        server.connect();
        server.connect();
        with_watcher(&options, async |mut from, _| {
            let mut view = View::default();
            view.until(&mut from, &ids(&server.tuples())).await;
        });
        // Nobody is told of the end of this one.
        server.reset();
        with_watcher(&options, async |mut from, facts| {
            let mut view = View::default();
            view.until(&mut from, &ids(&server.tuples())).await;
            assert_eq!(facts.counters.forgotten.load(Ordering::Relaxed), 1);
            assert_eq!(facts.counters.adopted.load(Ordering::Relaxed), 0);
            server.reset();
            view.until(&mut from, &ids(&server.tuples())).await;
            assert!(recorded(&facts.sessions).is_empty());
        });
    });
}

#[test]
fn what_opened_and_closed_without_the_hooks_is_found_at_the_start() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut server = Server::new();
        with_watcher(&options, async |mut from, _| {
            let mut view = View::default();
            for _ in 0..4 {
                server.connect();
            }
            view.until(&mut from, &ids(&server.tuples())).await;
        });
        detach_hooks(sandbox, &options);
        let closed = server.reset();
        let reused = server.reset();
        server.connect_from(reused.client_endpoint());
        let opened = server.connect();
        with_watcher(&options, async |mut from, facts| {
            // The very first thing that is told is the truth.
            let mut view = View::default();
            view.take(from.recv().await.unwrap().events);
            assert_eq!(view.0, ids(&server.tuples()));
            assert!(facts.sessions.get(&closed).unwrap().is_none());
            assert_eq!(facts.adopted(), [reused, opened].into());
            while !server.open.is_empty() {
                server.reset();
                view.until(&mut from, &ids(&server.tuples())).await;
            }
        });
    });
}

#[test]
fn what_found_no_room_is_recorded_once_there_is_room() {
    sandbox::run(|sandbox| {
        let mut options = sandbox.options(&[]);
        options.sessions_entries = 2;
        let mut server = Server::new();
        with_watcher(&options, async |mut from, facts| {
            let mut view = View::default();
            for _ in 0..6 {
                server.connect();
            }
            let full = facts.stats.hook(Hook::SessionsFull).unwrap();
            assert!(full >= 4, "{full}");
            let unrecorded = || facts.counters.unrecorded.load(Ordering::Relaxed);
            eventually_async("the lack of room is known", || {
                unrecorded() == 6 - recorded(&facts.sessions).len() as u64 && unrecorded() > 0
            })
            .await;
            // Room for all that are left, whichever was recorded.
            for _ in 0..5 {
                server.reset();
            }
            assert_eq!(server.open.len(), 1);
            view.until(&mut from, &ids(&server.tuples())).await;
            eventually_async("nothing is unrecorded", || unrecorded() == 0).await;
            assert_eq!(recorded(&facts.sessions), server.tuples());
        });
    });
}
