//! A thread with a runtime of its own.

use std::{io, thread};

use anyhow::{Context as _, Result};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// A thread that runs tasks, and nothing else does: what they do for long holds up each
/// other only. It ends when this is dropped.
pub(super) struct Thread {
    handle: Handle,
    /// Dropped first: the thread ends.
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Thread {
    /// Starts one. The kernel shows at most 15 bytes of its name.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn start(name: &'static str) -> Result<Self> {
        let start = || -> io::Result<Self> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let (end, ended) = oneshot::channel();
            let named = thread::Builder::new().name(name.to_owned());
            // That it was dropped is what is waited for.
            let thread = named.spawn(move || {
                drop(runtime.block_on(ended));
            })?;
            Ok(Self {
                handle,
                end: Some(end),
                thread: Some(thread),
            })
        };
        start().with_context(|| format!("cannot start the thread {name:?}"))
    }

    /// Where its tasks are spawned.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            // Its tasks' panics are theirs.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_tasks_and_ends_with_them() {
        let started = Thread::start("test").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        started.handle().spawn(async move {
            let name = thread::current().name().map(str::to_owned);
            tell.send(name).unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(told.recv(), Ok(Some("test".to_owned())));
        drop(started);
        // The task was dropped, and what it owned.
        assert!(told.recv().is_err());
    }
}
