//! Packets given back: a frame that was held goes through this host's programs
//! once more, or up to the local stack.
//!
//! Both are `BPF_PROG_TEST_RUN` with live frames: the kernel makes a packet of
//! the bytes, runs an XDP program on it as if it had come in by an interface, and
//! does what the program says. So a packet that is given back is decided on by
//! the same program as all others, counted as all others, and needs no device of
//! its own. It may be overtaken by packets that come in meanwhile; of several that one
//! thread gives back for one session, none overtakes another.
//!
//! What the kernel does with a packet after the program is not told here. To send
//! one (`XDP_TX`), the interface's driver must be able to send XDP frames, as for
//! `xdp_mode = "native"`.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::sys;

/// Gives packets back. Clones share the programs and the counters.
#[derive(Clone)]
pub struct Injector(Arc<Inner>);

struct Inner {
    main: RwLock<OwnedFd>,
    up: OwnedFd,
    counters: InjectCounters,
}

/// What giving back counts.
#[derive(Default, Debug)]
pub struct InjectCounters {
    /// Frames that went through the main program once more.
    pub reentered: AtomicU64,
    /// Frames that went up to the local stack.
    pub up: AtomicU64,
    /// Frames lost because the kernel refused: their interface has gone, say.
    pub refused: AtomicU64,
}

impl Injector {
    pub(super) fn new(main: BorrowedFd<'_>, up: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            main: RwLock::new(main.try_clone_to_owned()?),
            up: up.try_clone_to_owned()?,
            counters: InjectCounters::default(),
        })))
    }

    /// What giving back counts.
    pub fn counters(&self) -> &InjectCounters {
        &self.0.counters
    }

    /// Runs a frame through the main program, as if it had just come in by the
    /// interface. Takes some ten microseconds.
    pub fn reenter(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let Inner { main, counters, .. } = &*self.0;
        // Whoever panicked with it held a descriptor, and left one.
        let main = main.read().unwrap_or_else(PoisonError::into_inner);
        self.run(&main, ifindex, frame, &counters.reentered)
    }

    /// Frames go through this program from now on, in the place of the main one.
    pub(super) fn run_by(&self, program: OwnedFd) {
        let main = self.0.main.write();
        *main.unwrap_or_else(PoisonError::into_inner) = program;
    }

    /// Hands a frame to the local stack, as if it had just come in by the
    /// interface and the main program had let it pass.
    pub fn up(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let Inner { up, counters, .. } = &*self.0;
        self.run(up, ifindex, frame, &counters.up)
    }

    fn run(
        &self,
        program: &OwnedFd,
        ifindex: u32,
        frame: &[u8],
        counter: &AtomicU64,
    ) -> io::Result<()> {
        let result = sys::run_live(program.as_fd(), ifindex, frame);
        let counter = match &result {
            Ok(()) => counter,
            Err(_) => &self.0.counters.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }
}
