//! This host asks: packets of unknown sessions, held until the POP has answered.
//!
//! What becomes of a session's packets:
//!
//! - Someone owns it: they go through the fast path once more, which now knows
//!   the way.
//! - Someone closed it, and nobody owns it: up to the local stack, which resets it.
//! - Nobody says anything: they are dropped, and the sender will send again. When
//!   it does, [`AGAIN_AFTER`] later or more, and is asked about again, and every
//!   host of the POP has reported, the packet goes up. Where one host alone cannot
//!   be asked, the session is presumed to be there: at worst that host drops it.

use std::collections::VecDeque;

use homing_common::{ask::Question, host::HostId, session::SessionId};

use super::{
    Counters, Frame, Release, Way,
    recent::Recent,
    rounds::ROUND,
    wire::{self, Answer, Standing},
};
use crate::{
    gossip::{claims::IdMap, provisional},
    pop::{MS, SECOND},
};

/// Sessions that are asked about at once.
const ASKING_MAX: usize = 8192;
/// Frames that are held at once, and their bytes; as many again may wait to be given
/// back.
const FRAMES_MAX: usize = 8192;
const BYTES_MAX: usize = 8 << 20;
/// Frames of one session that are held at once. What is left out is sent again.
const SESSION_FRAMES_MAX: usize = 16;
/// A session about which nobody said anything is not asked about again, and its
/// packets not believed, before this long after the first of them.
pub(super) const AGAIN_AFTER: u64 = 200 * MS;
/// For how long it is remembered that a session was asked about: longer than
/// most pauses between two retransmissions, and than a route that no claim confirms
/// stands.
const REMEMBERED: u64 = 2 * provisional::LIFETIME;
/// Sessions of which that is remembered.
const REMEMBERED_MAX: usize = 1 << 16;
/// A packet that comes back within this time of its release came back because the
/// kernel's table has no room for its route.
const RETURNS_WITHIN: u64 = SECOND;
const RETURNS_MAX: usize = 1 << 13;

/// A session that is being asked about.
struct Asking {
    question: Question,
    frames: Vec<Frame>,
    since: u64,
    /// It was asked about before, long enough ago.
    again: bool,
    /// The best that was said, short of "open".
    said: Option<Answer>,
}

/// Who has reported on an ask that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    /// Everyone that may own a session.
    All,
    /// Everyone but one host that cannot be asked.
    AllBut(HostId),
    /// Not everyone.
    Some,
}

/// The state of all that is asked by this host.
pub(super) struct Asker {
    asking: IdMap<Asking>,
    /// In the order in which they began; some are over.
    order: VecDeque<SessionId>,
    /// Those that stand in no round yet.
    waiting: VecDeque<SessionId>,
    frames: usize,
    bytes: usize,
    /// Sessions that were asked about in vain, and when.
    silent: Recent<u64>,
    /// Sessions whose packets were given back, and when.
    returned: Recent<u64>,
    /// Packets to give back, and their bytes: they wait while routes are put in
    /// force, of which there may be millions.
    releases: VecDeque<(SessionId, Release)>,
    releasing: usize,
    claims: VecDeque<(SessionId, HostId, u16)>,
}

impl Asker {
    pub fn new() -> Self {
        Self {
            asking: IdMap::default(),
            order: VecDeque::new(),
            waiting: VecDeque::new(),
            frames: 0,
            bytes: 0,
            silent: Recent::new(REMEMBERED, REMEMBERED_MAX),
            returned: Recent::new(RETURNS_WITHIN, RETURNS_MAX),
            releases: VecDeque::new(),
            releasing: 0,
            claims: VecDeque::new(),
        }
    }

    /// A packet of an unknown session was parked, at a time `at`. `known`: since
    /// then its owner has become known; `alone`: there is nobody to ask.
    pub fn parked(
        &mut self,
        now: u64,
        at: u64,
        question: Question,
        frame: Frame,
        (known, alone): (bool, bool),
        counters: &mut Counters,
    ) {
        let id = SessionId(question.id);
        counters.ask_parked += 1;
        if frame.bytes.is_empty() {
            counters.ask_too_long += 1;
        }
        if known {
            if self.returned.get(now, id).is_some_and(|back| back < at) {
                counters.ask_unrouted += 1;
            } else {
                counters.ask_known += 1;
                self.release(id, Way::Reenter, frame, counters);
            }
            return;
        }
        if alone {
            counters.ask_alone += 1;
            self.release(id, Way::Up, frame, counters);
            return;
        }
        if self.asking.contains_key(&id) {
            self.hold(id, frame, counters);
            return;
        }
        let first_at = self.silent.get(now, id);
        if first_at.is_some_and(|first_at| now < first_at + AGAIN_AFTER) {
            counters.ask_early += 1;
            return;
        }
        if self.asking.len() >= ASKING_MAX {
            counters.ask_no_room += 1;
            return;
        }
        let asking = Asking {
            question,
            frames: Vec::new(),
            since: now,
            again: first_at.is_some(),
            said: None,
        };
        self.asking.insert(id, asking);
        self.waiting.push_back(id);
        while let Some(oldest) = self.order.front()
            && !self.asking.contains_key(oldest)
        {
            self.order.pop_front();
        }
        self.order.push_back(id);
        counters.ask_sessions += 1;
        self.hold(id, frame, counters);
    }

    fn hold(&mut self, id: SessionId, frame: Frame, counters: &mut Counters) {
        let Some(asking) = self.asking.get_mut(&id) else {
            return;
        };
        if frame.bytes.is_empty() {
            return;
        }
        if asking.frames.len() >= SESSION_FRAMES_MAX {
            counters.ask_no_room += 1;
            return;
        }
        self.frames += 1;
        self.bytes += frame.bytes.len();
        asking.frames.push(frame);
        // The oldest make room: their senders send again soonest.
        while self.frames > FRAMES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            counters.ask_no_room += self.take_frames(oldest).len() as u64;
        }
    }

    fn take_frames(&mut self, id: SessionId) -> Vec<Frame> {
        let Some(asking) = self.asking.get_mut(&id) else {
            return Vec::new();
        };
        let frames = std::mem::take(&mut asking.frames);
        self.frames -= frames.len();
        self.bytes -= frames.iter().map(|frame| frame.bytes.len()).sum::<usize>();
        frames
    }

    fn release(&mut self, id: SessionId, way: Way, frame: Frame, counters: &mut Counters) {
        let len = frame.bytes.len();
        if len == 0 {
            return;
        }
        if self.releases.len() >= FRAMES_MAX || self.releasing + len > BYTES_MAX {
            counters.ask_no_room += 1;
            return;
        }
        self.releasing += len;
        match way {
            Way::Reenter => counters.ask_returned += 1,
            Way::Up => counters.ask_up += 1,
        }
        self.releases.push_back((id, Release { way, frame }));
    }

    /// Whether there is something to ask.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// As many questions as one datagram has room for, oldest first.
    pub fn take_questions(&mut self, now: u64, counters: &mut Counters) -> Vec<Question> {
        let mut questions = Vec::new();
        let mut room = wire::QUESTIONS_LEN_MAX;
        while let Some(&id) = self.waiting.front() {
            let Some(asking) = self.asking.get_mut(&id) else {
                self.waiting.pop_front();
                continue;
            };
            if asking.since + ROUND <= now {
                // It has waited for so long that it would be answered too late.
                self.waiting.pop_front();
                counters.ask_unasked += 1;
                self.drop_session(id, counters);
                continue;
            }
            let len = wire::question_len(&asking.question);
            if len > room {
                break;
            }
            room -= len;
            questions.push(asking.question);
            self.waiting.pop_front();
        }
        questions
    }

    fn drop_session(&mut self, id: SessionId, counters: &mut Counters) {
        counters.ask_dropped += self.take_frames(id).len() as u64;
        self.asking.remove(&id);
    }

    /// Whether a session still waits for its answer.
    pub fn is_asking(&self, id: SessionId) -> bool {
        self.asking.contains_key(&id)
    }

    /// Whether any session does.
    pub fn is_idle(&self) -> bool {
        self.asking.is_empty()
    }

    /// Someone answered.
    pub fn answered(&mut self, answer: Answer, counters: &mut Counters) {
        let id = answer.id;
        let Some(asking) = self.asking.get_mut(&id) else {
            if answer.standing == Standing::Open && self.silent.remove(id) {
                counters.ask_late += 1;
                self.claims.push_back((id, answer.host, answer.generation));
            }
            return;
        };
        if answer.standing == Standing::Open {
            counters.ask_answered += 1;
            self.claims.push_back((id, answer.host, answer.generation));
            self.known(id, counters);
        } else if asking
            .said
            .is_none_or(|said| answer.standing < said.standing)
        {
            // Somebody else may have it or have opened it anew, so this waits.
            asking.said = Some(answer);
        }
    }

    /// A session's owner is known now: its packets go back.
    pub fn known(&mut self, id: SessionId, counters: &mut Counters) {
        for frame in self.take_frames(id) {
            self.release(id, Way::Reenter, frame, counters);
        }
        self.asking.remove(&id);
        self.silent.remove(id);
    }

    /// A session was asked about, and nobody said that it has it.
    pub fn over(&mut self, now: u64, id: SessionId, heard: Heard, counters: &mut Counters) {
        let Some(asking) = self.asking.get(&id) else {
            return;
        };
        let (since, again) = (asking.since, asking.again);
        match asking.said {
            Some(Answer {
                standing: Standing::Closed,
                ..
            }) => {
                counters.ask_closed += 1;
                self.up(id, counters);
            }
            Some(answer) => {
                match answer.standing {
                    Standing::Told => counters.ask_told += 1,
                    _ => counters.ask_closing += 1,
                }
                self.claims.push_back((id, answer.host, answer.generation));
                self.known(id, counters);
            }
            None if again && heard == Heard::All => {
                counters.ask_nobody += 1;
                self.up(id, counters);
                // A reset may be lost: the next packet needs only one ask.
                self.silent.insert(now, id, since);
            }
            None if again && let Heard::AllBut(host) = heard => {
                counters.ask_presumed += 1;
                self.claims.push_back((id, host, 0));
                self.known(id, counters);
                // Whoever has it after all may say so late, and when the route has had
                // its time, one ask is enough.
                self.silent.insert(now, id, since);
            }
            None => {
                match heard {
                    Heard::All => counters.ask_silent += 1,
                    Heard::AllBut(_) | Heard::Some => counters.ask_unheard += 1,
                }
                self.drop_session(id, counters);
                self.silent.insert(now, id, since);
            }
        }
    }

    fn up(&mut self, id: SessionId, counters: &mut Counters) {
        for frame in self.take_frames(id) {
            self.release(id, Way::Up, frame, counters);
        }
        self.asking.remove(&id);
    }

    /// A claim that was answered: a session, its owner and its generation.
    pub fn poll_claim(&mut self) -> Option<(SessionId, HostId, u16)> {
        self.claims.pop_front()
    }

    /// The next packet to give back, once all routes are in force.
    pub fn poll_release(&mut self, now: u64) -> Option<Release> {
        let (id, release) = self.releases.pop_front()?;
        self.releasing -= release.frame.bytes.len();
        if release.way == Way::Reenter {
            self.returned.insert(now, id, now);
        }
        Some(release)
    }

    /// Frames held, and sessions asked about.
    pub fn held(&self) -> (usize, usize) {
        (self.frames, self.asking.len())
    }
}
