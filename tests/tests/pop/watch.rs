//! Watches what passes a device, as it stands on the wire.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use homing_tests::{
    lab::{Lab, Node, node::in_namespace},
    raw::{Raw, index_of},
};

/// The longest that one frame is: a link layer before what an IP packet may have.
const LONGEST: usize = 14 + 65_535 + 40;

/// Looks at every frame of a device, and sums up what it sees.
pub struct Watch<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Default + Send + 'static> Watch<T> {
    /// Starts looking.
    pub fn start(
        lab: &Lab,
        node: Node,
        device: &str,
        see: impl Fn(&mut T, &[u8]) + Send + 'static,
    ) -> Self {
        let listener = in_namespace(&lab.namespace(node), || {
            Ok(Raw::listener(index_of(device)?)?)
        })
        .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut sum = T::default();
            let mut buffer = vec![0; LONGEST];
            while !stopped.load(Relaxed) {
                let frame = listener.receive(&mut buffer, Duration::from_millis(50));
                if let Some(frame) = frame.unwrap() {
                    see(&mut sum, frame);
                }
            }
            sum
        });
        Self { stop, thread }
    }

    /// Ends, and gives what was seen.
    pub fn finish(self) -> T {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}
