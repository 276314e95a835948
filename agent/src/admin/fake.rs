//! For tests: an agent that makes its answers up.

pub(crate) mod drain;
mod samples;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use homing_common::{
    outcome::{Hook, Outcome},
    session::{Session, SessionId, Tuple},
};

pub(crate) use samples::*;

use super::{
    api::{Change, *},
    counts, page, *,
};
use crate::{
    config::Config,
    datapath::{
        flows::FlowCounters, held::HeldCounters, moving::park::ParkCounters, sockets::WatchCounters,
    },
    gossip,
    migration::{self, app},
    mux,
};

/// A folder of a test's own.
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("homing-test-{}-{n}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An agent that makes its answers up.
#[derive(Default)]
pub(crate) struct Fake {
    pub hangs: AtomicBool,
    pub unhealthy: AtomicBool,
    /// What a reload reads; the example unless it is set.
    pub config: Mutex<Option<String>>,
    pub left: Mutex<Option<Option<Duration>>>,
    pub draining: AtomicBool,
    /// Sessions that are open; asking how draining goes ends one.
    pub open: AtomicU32,
    /// How the draining stands.
    pub drain: drain::Script,
    /// What is logged.
    pub level: Mutex<String>,
}

pub(crate) fn endpoint(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}

impl View for Fake {
    async fn status(&self) -> Result<Status, Refusal> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending().await
        }
        let mut status = sample_status();
        status.draining = self.draining.load(Ordering::Relaxed);
        Ok(status)
    }

    async fn hosts(&self) -> Result<Vec<Host>, Refusal> {
        Ok(sample_hosts())
    }

    async fn sessions(&self, after: Option<Tuple>, limit: usize) -> Result<Sessions, Refusal> {
        let mut page = page::Page::new(after, limit);
        for n in 0..SESSIONS {
            let client = SocketAddr::from(([198, 51, 100, 7], 40_000 + n));
            let tuple = Tuple::between(client, endpoint("203.0.113.10:443"), 6);
            let session = Session {
                id: SessionId(n.into()),
                cookie: n.into(),
                opened_ns: 0,
                seen_ns: 0,
                generation: 0,
                flags: 0,
            };
            page.offer(tuple, session);
        }
        Ok(page.finish(90_000_000_000))
    }

    async fn owner(&self, session: Tuple) -> Result<Owner, Refusal> {
        match session.service_port.number() {
            443 => Ok(sample_owner(session)),
            _ => Err(Refusal::NotFound(
                "203.0.113.10:80 is no service of this POP".to_owned(),
            )),
        }
    }

    async fn explain(&self, order: ExplainOrder) -> Result<Explanations, Refusal> {
        Ok(sample_explanations(&order))
    }

    async fn capture(&self, order: CaptureOrder) -> Result<Captured, Refusal> {
        let (to, pieces) = mpsc::channel(2);
        for piece in [format!("{order:?}"), "the end".to_owned()] {
            to.try_send(piece.into()).expect("there is room");
        }
        Ok(Captured { number: 7, pieces })
    }

    fn end_capture(&self, number: Option<u64>) -> bool {
        number.is_none_or(|number| number == 7)
    }

    async fn carriers(&self) -> Result<Carriers, Refusal> {
        Ok(sample_carriers())
    }

    async fn apps(&self) -> Result<Apps, Refusal> {
        Ok(sample_apps())
    }

    async fn mux(&self) -> Result<Mux, Refusal> {
        Ok(sample_mux())
    }

    async fn stats(&self) -> Result<Stats, Refusal> {
        Ok(sample_stats())
    }

    async fn health(&self) -> Result<Health, Refusal> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending().await
        }
        if self.unhealthy.load(Ordering::Relaxed) {
            let why = anyhow::anyhow!("no such map").context("cannot read STATS");
            return Err(why.into());
        }
        Ok(Health {
            healthy: true,
            problems: vec![],
        })
    }

    fn log(&self) -> Log {
        Log {
            level: self.level.lock().expect("not poisoned").clone(),
            at_start: "info".to_owned(),
        }
    }

    fn set_log(&self, level: &str) -> Result<(), String> {
        if level.is_empty() {
            return Err("it is empty".to_owned());
        }
        level.clone_into(&mut self.level.lock().expect("not poisoned"));
        Ok(())
    }

    async fn leave(&self, hold: Option<Duration>) -> Result<(), Refusal> {
        *self.left.lock().expect("not poisoned") = Some(hold);
        Ok(())
    }

    async fn reload(&self, dry: bool) -> Result<Reloaded, Refusal> {
        let file = self.config.lock().expect("not poisoned").clone();
        let config = match file.map(|text| Config::parse("homing.toml".as_ref(), &text)) {
            None => example(),
            Some(read) => read.map_err(Refusal::Config)?,
        };
        let changes = example().differences(&config);
        if changes.iter().any(|change| change.takes == Takes::Restart) {
            let path = config.path;
            return Err(Refusal::Restart { path, changes });
        }
        if self.unhealthy.load(Ordering::Relaxed) {
            return Err(
                anyhow::anyhow!("the POP's key file /etc/homing/pop.key must hold a key").into(),
            );
        }
        Ok(Reloaded {
            path: config.path,
            dry_run: dry,
            changed: true,
            changes: changes.iter().map(Change::of).collect(),
            keys: sample_status().keys,
            keys_changed: true,
        })
    }

    fn config(&self) -> InForce {
        InForce::of(&example())
    }

    async fn drain(&self) -> Result<Drain, Refusal> {
        Ok(self.drain_told())
    }

    async fn begin_drain(&self, order: DrainOrder) -> Result<Drain, Refusal> {
        Ok(self.drain_begun(order))
    }

    async fn end_drain(&self) -> Result<Drain, Refusal> {
        Ok(self.drain_ended())
    }

    async fn move_session(
        &self,
        session: Tuple,
        target: HostId,
        within: Duration,
    ) -> Result<Moved, Refusal> {
        self.session_moved(session, target, within)
    }
}
