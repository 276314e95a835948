//! The driver, with moves that end when they are told to.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use homing_common::net::{Address, Port, TCP};
use tokio::{sync::oneshot, time::sleep};

use super::*;
use crate::{
    migration::drain::{End, Found, Why},
    pop::{Domain, Fingerprint, Member, Stream, membership::State},
};

type Waiting = BTreeMap<Tuple, oneshot::Sender<Outcome>>;

/// Moves whose end is told from outside, and the host that they leave.
#[derive(Clone, Default)]
struct World(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: Mutex<BTreeMap<Tuple, Found>>,
    waiting: Mutex<Waiting>,
    called_off: AtomicUsize,
    /// Moves end at once, well.
    eager: AtomicBool,
    /// What waits for the next move dies.
    dies: AtomicBool,
}

fn tuple(number: u16) -> Tuple {
    let any = Address::v4([10, 0, 0, 1]);
    Tuple::new(any, Port::new(number), any, Port::new(443), TCP)
}

impl World {
    fn with(sessions: u16, hindrance: Option<Why>) -> Self {
        let world = Self::default();
        for number in 0..sessions {
            let found = Found {
                tuple: tuple(number),
                cookie: number.into(),
                key: u64::from(number) << 50,
                hindrance,
            };
            world.0.open.lock().unwrap().insert(found.tuple, found);
        }
        world
    }

    /// So many moves are waited for.
    async fn waits_for(&self, moves: usize) {
        while self.0.waiting.lock().unwrap().len() != moves {
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn end_all(&self, outcome: Outcome) {
        for (_, waiting) in std::mem::take(&mut *self.0.waiting.lock().unwrap()) {
            let _ = waiting.send(outcome);
        }
    }
}

impl Mover for World {
    async fn move_session(
        &self,
        tuple: Tuple,
        target: HostId,
        _: Duration,
    ) -> Result<Report, Stopped> {
        assert!(!self.0.dies.swap(false, Ordering::Relaxed), "told to die");
        let outcome = if self.0.eager.load(Ordering::Relaxed) {
            Outcome::Moved
        } else {
            let (end, ended) = oneshot::channel();
            self.0.waiting.lock().unwrap().insert(tuple, end);
            ended.await.map_err(|_| Stopped)?
        };
        if outcome == Outcome::Moved {
            self.0.open.lock().unwrap().remove(&tuple);
        }
        let ended = Ended {
            tuple,
            target,
            number: Some(1),
            outcome,
            frozen_us: 100,
        };
        Ok(Report {
            ended,
            detail: None,
        })
    }

    async fn call_off(&self, tuple: Tuple) {
        self.0.called_off.fetch_add(1, Ordering::Relaxed);
        if let Some(waiting) = self.0.waiting.lock().unwrap().remove(&tuple) {
            let _ = waiting.send(Outcome::Aborted(Step::Sending, Reason::CalledOff));
        }
    }

    async fn arriving(&self) -> Result<usize, Stopped> {
        Ok(0)
    }
}

impl Here for World {
    async fn look(&self) -> io::Result<Look> {
        Ok(Look {
            sessions: self.0.open.lock().unwrap().values().copied().collect(),
            ..Look::default()
        })
    }
}

fn host(id: u16, draining: bool) -> HostStatus {
    let member = Member {
        draining,
        ..Member::starting(
            HostId(id),
            Stream::default(),
            "10.0.0.1:7946".parse().unwrap(),
            Domain::try_from("d").unwrap(),
            Fingerprint::default(),
        )
    };
    HostStatus {
        member: Some(member),
        state: Some(State::Alive),
        ..HostStatus::unheard(HostId(id))
    }
}

fn start(
    world: &World,
    hosts: Vec<HostStatus>,
    options: Options,
) -> (Run, watch::Sender<Arc<Vec<HostStatus>>>) {
    let (told, hosts) = watch::channel(Arc::new(hosts));
    let run = Run::start(
        world.clone(),
        world.clone(),
        hosts,
        options,
        || 3,
        Duration::ZERO,
    );
    (run, told)
}

#[tokio::test(start_paused = true)]
async fn sessions_move_to_hosts_that_take_them_until_none_is_left() {
    let world = World::with(10, None);
    let hosts = vec![host(2, false), host(3, true)];
    let (run, _told) = start(&world, hosts, Options::default());
    world.waits_for(3).await;
    assert!(run.is_live());
    world.0.eager.store(true, Ordering::Relaxed);
    world.end_all(Outcome::Moved);
    let progress = run.ended().await;
    assert_eq!(progress.end, Some(End::Drained));
    assert_eq!((progress.counts.seen, progress.counts.moved), (10, 10));
    assert!(!run.is_live());
    // One that is over minds nothing.
    run.stop();
    run.replace(Wanted::default());
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_host_that_takes_sessions_and_for_other_options() {
    let world = World::with(1, None);
    let options = Options {
        wait: true,
        ..Options::default()
    };
    let (run, told) = start(&world, vec![host(3, true)], options);
    sleep(Duration::from_secs(3)).await;
    let why = run.progress().left.keys().next().copied();
    assert_eq!(why, Some(Why::NoTarget));
    told.send_replace(Arc::new(vec![host(3, false), host(4, false)]));
    world.waits_for(1).await;
    run.replace(Wanted {
        to: Some([HostId(4)].into()),
        ..Wanted::default()
    });
    world.end_all(Outcome::Aborted(Step::Asking, Reason::Timeout));
    world.waits_for(1).await;
    assert_eq!(run.progress().options.to, [HostId(4)].into());
    assert!(run.progress().options.wait);
    world.end_all(Outcome::Moved);
    assert_eq!(run.ended().await.end, Some(End::Drained));
}

#[tokio::test(start_paused = true)]
async fn stopped_it_calls_off_what_is_under_way_and_leaves_the_rest() {
    let world = World::with(10, None);
    let (run, _told) = start(&world, vec![host(2, false)], Options::default());
    world.waits_for(3).await;
    run.stop();
    let progress = run.ended().await;
    assert_eq!(progress.end, Some(End::Stopped));
    assert_eq!(world.0.called_off.load(Ordering::Relaxed), 3);
    assert_eq!((progress.counts.moved, progress.here()), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_move_may_die_and_the_session_is_tried_again() {
    let world = World::with(1, None);
    world.0.eager.store(true, Ordering::Relaxed);
    world.0.dies.store(true, Ordering::Relaxed);
    let (run, _told) = start(&world, vec![host(2, false)], Options::default());
    let progress = run.ended().await;
    assert_eq!(progress.end, Some(End::Drained));
    let failed: Vec<_> = progress.counts.failed.keys().copied().collect();
    assert_eq!(failed, [Why::Move(Reason::Restarted)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_at_the_deadline_is_told() {
    let world = World::with(2, Some(Why::Udp));
    let options = Options {
        wait: true,
        deadline: Some(Duration::from_secs(2)),
        ..Options::default()
    };
    let begun = Instant::now();
    let (run, _told) = start(&world, vec![host(2, false)], options);
    let progress = run.ended().await;
    assert_eq!(progress.end, Some(End::Left));
    assert_eq!(progress.left, [(Why::Udp, 2)].into());
    assert!(begun.elapsed() >= Duration::from_secs(2));
}
