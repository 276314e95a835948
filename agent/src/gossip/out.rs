//! What waits to be sent. Announcements and requests go first; answers to other
//! hosts' requests, of which there may be many after a fault, go when nothing else
//! waits, and are refused when too many do: who asks will ask again.

use std::collections::VecDeque;

use super::core::Outgoing;

/// Announcements are held back in the log while this much waits.
const CONGESTED: usize = 256;
/// Answers that wait at most: some 3 MB.
const ANSWERS_MAX: usize = 2048;

/// The queue of outgoing messages.
#[derive(Default)]
pub(super) struct Out {
    first: VecDeque<Outgoing>,
    answers: VecDeque<Outgoing>,
}

impl Out {
    /// Puts an announcement, a heartbeat or a request at the end of its queue.
    pub fn push(&mut self, outgoing: Outgoing) {
        self.first.push_back(outgoing);
    }

    /// Puts an answer at the end of its queue, if there is room.
    pub fn push_answer(&mut self, outgoing: Outgoing) -> bool {
        let room = self.answers.len() < ANSWERS_MAX;
        if room {
            self.answers.push_back(outgoing);
        }
        room
    }

    /// The next message to send.
    pub fn pop(&mut self) -> Option<Outgoing> {
        self.first.pop_front().or_else(|| self.answers.pop_front())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.answers.is_empty()
    }

    /// Whether so much waits that nothing should be added to it that can wait
    /// elsewhere.
    pub fn is_congested(&self) -> bool {
        self.first.len() >= CONGESTED
    }
}
