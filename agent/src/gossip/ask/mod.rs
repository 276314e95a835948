//! Ask before reset: what this host does with packets of sessions that nobody here
//! knows, and what it says when others ask.
//!
//! What it promises:
//!
//! - A packet of a session that some host of the POP owns is never handed to the
//!   local stack, which would reset the session, as long as that host can be
//!   asked, or may own sessions without being up.
//! - A packet of a session that nobody owns goes up by the second time it is sent
//!   again, as long as the POP can be asked.
//! - Where one host alone cannot be asked, whose agent is down, a packet of a session
//!   that nobody else owns goes there by the second time it is sent again.
//! - However many packets of unknown sessions come, the datagrams that this causes
//!   are bounded in a second, and so is the memory.
//!
//! How: unknown sessions are asked about in batches, by multicast in this host's
//! domain, and through one relay in each other domain, which asks within its own
//! domain and reports. Every host puts what it is asked to its own kernel and
//! reports that it has heard, and what it found; of a session whose owner cannot be
//! asked, because its agent is down, whoever has heard of its claim tells. A session
//! that another host claims gets a provisional route, until the claim arrives by
//! gossip or a time is over.
//!
//! Sans-IO: parked packets, messages and the time go in; messages, questions to the
//! kernel, claims, and packets to give back come out.

mod answerer;
mod asker;
mod audience;
mod budget;
pub(super) mod driver;
mod recent;
mod rounds;
#[cfg(test)]
mod tests;
mod view;
mod wire;

use std::collections::VecDeque;

use bytes::Bytes;
use homing_common::{
    ask::Question,
    host::HostId,
    session::{SessionId, Tuple},
};

use self::{
    answerer::Answerer,
    asker::{Asker, Heard},
    budget::Budget,
    rounds::{Asked, For, Round, Rounds},
    wire::{Answer, Ask, Message, Report},
};
pub use self::{
    audience::{Audience, Near},
    driver::FastPath,
    view::{Counters, Frame, Known, Load, Lookup, Provisional, Release, Settings, Way},
};
use super::core::Outgoing;
use crate::pop::{MS, seal::To};

/// Asks sent in a second, repeats and those on behalf of others included, and at
/// once: a bound on what this host sends, whatever comes in. One ask has room for
/// 58 sessions of IPv4.
const DATAGRAMS: (u64, u64) = (2_000, 200);
/// Reports sent in a second, and at once, whoever asks. Who misses one asks again, and
/// resets nothing.
const REPORTS: (u64, u64) = (10_000, 1_000);
/// Between two asks, so that what comes close together goes together.
const APART: u64 = MS;
/// Asks of others that wait to be put to the kernel; more are dropped, as by the
/// network.
const LOOKUPS_MAX: usize = 256;

/// Whether bytes are a message of this protocol.
pub fn is_message(body: &[u8]) -> bool {
    wire::decode(body).is_some()
}

/// Asking and being asked, as one host does it.
pub struct Asks {
    settings: Settings,
    audience: Audience,
    asker: Asker,
    answerer: Answerer,
    rounds: Rounds,
    budget: Budget,
    reports: Budget,
    asked_at: Option<u64>,
    lookups: VecDeque<Lookup>,
    out: VecDeque<Outgoing>,
    /// What happened so far.
    pub counters: Counters,
}

impl Asks {
    /// A host that knows of nobody else yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            // Nobody is alone before it has looked around: its kernel may have parked packets
            // of others' sessions for the agent before this one.
            audience: Audience {
                near_blind: true,
                ..Audience::default()
            },
            asker: Asker::new(),
            answerer: Answerer::new(settings.host),
            rounds: Rounds::new(settings.first),
            budget: Budget::new(DATAGRAMS.0, DATAGRAMS.1),
            reports: Budget::new(REPORTS.0, REPORTS.1),
            asked_at: None,
            lookups: VecDeque::new(),
            out: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// The POP has changed, or is seen otherwise.
    pub fn set_audience(&mut self, audience: Audience) {
        self.answerer
            .retain(|host| audience.domains.contains_key(&host));
        self.audience = audience;
    }

    /// The id of a session, by which this host looks it up.
    pub fn id_of(&self, tuple: &Tuple) -> SessionId {
        tuple.id(&self.settings.keys.key)
    }

    /// A packet of an unknown session was parked at a time `at`, of this same
    /// clock. `known`: by now its owner is known.
    pub fn parked(&mut self, now: u64, at: u64, question: Question, frame: Frame, known: bool) {
        let alone = self.audience.is_alone();
        let counters = &mut self.counters;
        self.asker
            .parked(now, at, question, frame, (known, alone), counters);
    }

    /// Whether anybody waits to hear that a session's owner is known.
    pub fn is_idle(&self) -> bool {
        self.asker.is_idle()
    }

    /// A session's owner is known now, or it is this host's.
    pub fn known(&mut self, id: SessionId) {
        if self.asker.is_asking(id) {
            self.asker.known(id, &mut self.counters);
        }
    }

    /// Hears a message that the seal let through.
    pub fn receive(&mut self, now: u64, from: HostId, body: &[u8]) {
        if !self.audience.domains.contains_key(&from) {
            self.counters.ask_not_member += 1;
            return;
        }
        match wire::decode(body) {
            Some(Message::Ask(ask)) => self.hear_ask(now, from, ask),
            Some(Message::Report(report)) => self.hear_report(now, from, &report),
            None => self.counters.ask_malformed += 1,
        }
    }

    fn hear_ask(&mut self, now: u64, asker: HostId, mut ask: Ask) {
        self.counters.asked += 1;
        let room = self.lookups.len() < LOOKUPS_MAX;
        if !room || !self.answerer.admit(now, asker, &ask) {
            self.counters.asked_limited += 1;
            return;
        }
        let Settings { keys, key_ids, .. } = self.settings;
        let key = match ask.key {
            key if key == key_ids[0] => Some(keys.key),
            key if key == key_ids[1] => keys.other,
            _ => None,
        };
        let Some(key) = key else {
            // Whoever asks could make nothing of an answer, and takes no silence for one.
            self.counters.asked_other_key += 1;
            return;
        };
        let ids = ask.questions.iter().map(|question| question.tuple.id(&key));
        let ids = ids.collect();
        for question in &mut ask.questions {
            question.id = self.id_of(&question.tuple).0;
        }
        self.lookups.push_back(Lookup {
            asker,
            number: ask.number,
            pass_on: ask.pass_on,
            key: ask.key,
            ids,
            questions: ask.questions,
        });
    }

    /// The next questions to put to the kernel; give them back with
    /// [`Asks::looked_up`].
    pub fn poll_lookup(&mut self) -> Option<Lookup> {
        self.lookups.pop_front()
    }

    /// The kernel has answered. `known` says what gossip knows of a session.
    pub fn looked_up(&mut self, now: u64, lookup: Lookup, known: impl Fn(SessionId) -> Known) {
        let answers = self.answerer.answers(&lookup, known);
        let Lookup {
            asker,
            number,
            pass_on,
            key,
            ids,
            mut questions,
        } = lookup;
        self.counters.asked_found += answers.len() as u64;
        if !pass_on {
            self.report_heard(now, asker, number, answers);
        } else if let Some(answers) = self.answerer.ended(asker, number) {
            // The asker has not heard the end of it.
            self.report_heard(now, asker, number, answers);
        } else if let Some(round) = self.rounds.of_other(asker, number) {
            // A repeat: what was found so far may have been lost.
            let answers = round.answers().to_vec();
            self.report(now, asker, number, 0, answers);
        } else if self.budget.take(now, 1) {
            self.counters.asked_passed_on += 1;
            self.report(now, asker, number, 0, answers.clone());
            let why = For::Other { asker, number };
            for (question, id) in questions.iter_mut().zip(ids) {
                question.id = id.0;
            }
            self.begin(now, why, key, questions, answers);
        } else {
            self.counters.asked_limited += 1;
        }
    }

    /// Begins a round for which the budget has been asked.
    fn begin(
        &mut self,
        now: u64,
        why: For,
        key: u8,
        questions: Vec<Question>,
        answers: Vec<Answer>,
    ) {
        let asked = Asked {
            why,
            key,
            questions,
        };
        let (audience, out) = (&self.audience, &mut self.out);
        let begun = self.rounds.begin(now, asked, answers, audience, out);
        self.counters.ask_datagrams += begun.sent;
        self.budget.spend(begun.sent.saturating_sub(1));
        if let Some(over) = begun.over {
            self.over(now, over);
        }
    }

    fn hear_report(&mut self, now: u64, from: HostId, report: &Report) {
        if let Some(round) = self.rounds.get(report.base)
            && let For::Other { asker, number } = round.asked.why
        {
            let news = round.add(&report.answers);
            self.report(now, asker, number, 0, news);
        } else {
            for &answer in &report.answers {
                // What this host has itself, it has not been asked about.
                if answer.host != self.settings.host {
                    self.asker.answered(answer, &mut self.counters);
                }
            }
            let asker = &self.asker;
            self.rounds.retain(report.base, |question| {
                asker.is_asking(SessionId(question.id))
            });
        }
        for number in report.heard() {
            if let Some(over) = self.rounds.heard(number, from, &self.audience) {
                self.over(now, over);
            }
        }
    }

    /// A round has ended.
    fn over(&mut self, now: u64, round: Round) {
        let all_heard = round.all_heard();
        match round.asked.why {
            For::Own => {
                let unaskable = self.audience.only_unaskable();
                let heard = match unaskable {
                    _ if all_heard => Heard::All,
                    Some((host, domain)) if round.all_heard_but(domain) => Heard::AllBut(host),
                    _ => Heard::Some,
                };
                for question in &round.asked.questions {
                    let id = SessionId(question.id);
                    self.asker.over(now, id, heard, &mut self.counters);
                }
            }
            For::Other { asker, number } if all_heard => {
                let answers = round.answers().to_vec();
                self.answerer.remember(now, asker, number, answers.clone());
                self.report_heard(now, asker, number, answers);
            }
            For::Other { .. } => {}
        }
    }

    /// Reports that an ask was heard, and all that was found. Both in one datagram:
    /// whoever hears the one without the other would take silence for an answer.
    fn report_heard(&mut self, now: u64, to: HostId, number: u64, answers: Vec<Answer>) {
        if !answers.is_empty() {
            self.report(now, to, number, 1, answers);
        } else if let Some(before) = self.answerer.heard(now, to, number) {
            self.send_report(now, to, &before);
        }
    }

    /// Reports answers to one ask, if there are any.
    fn report(&mut self, now: u64, to: HostId, base: u64, heard: u64, answers: Vec<Answer>) {
        // There is one for each question at most, so there is room.
        if !answers.is_empty() {
            let report = Report {
                base,
                heard,
                answers,
            };
            self.send_report(now, to, &report);
        }
    }

    fn send_report(&mut self, now: u64, to: HostId, report: &Report) {
        if !self.reports.take(now, 1) {
            self.counters.reports_limited += 1;
            return;
        }
        self.counters.reports_sent += 1;
        self.out.push_back(Outgoing {
            to: To::Host(to),
            body: Bytes::from(report.encode()),
        });
    }

    /// When [`Asks::on_time`] must be called next.
    pub fn next_time(&self) -> u64 {
        if !self.out.is_empty() {
            return 0;
        }
        let times = self.rounds.next_time().min(self.answerer.next_time());
        if self.asker.has_waiting() {
            times.min(self.may_ask_at())
        } else {
            times
        }
    }

    fn may_ask_at(&self) -> u64 {
        let apart = self.asked_at.map_or(0, |at| at + APART);
        apart.max(self.budget.free_at())
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: u64) {
        let (budget, audience) = (&mut self.budget, &self.audience);
        let before = self.out.len();
        let over = self.rounds.due(now, audience, budget, &mut self.out);
        self.counters.ask_datagrams += (self.out.len() - before) as u64;
        for round in over {
            self.over(now, round);
        }
        if self.asker.has_waiting() && self.may_ask_at() <= now && self.budget.take(now, 1) {
            self.asked_at = Some(now);
            let questions = self.asker.take_questions(now, &mut self.counters);
            if !questions.is_empty() {
                let key = self.settings.key_ids[0];
                self.begin(now, For::Own, key, questions, Vec::new());
            }
        }
        for (host, report) in self.answerer.due(now) {
            self.send_report(now, host, &report);
        }
    }

    /// The next message to send.
    pub(super) fn poll_outgoing(&mut self) -> Option<Outgoing> {
        self.out.pop_front()
    }

    /// The next claim that was answered.
    pub fn poll_claim(&mut self) -> Option<Provisional> {
        let (id, host, generation) = self.asker.poll_claim()?;
        Some(Provisional {
            id,
            host,
            generation,
        })
    }

    /// The next packet to give back. Call this only when all routes are in force.
    pub fn poll_release(&mut self, now: u64) -> Option<Release> {
        self.asker.poll_release(now)
    }

    /// What the driver counts, too.
    pub(super) fn counters_with(&self, driver: Option<&driver::Driver>) -> Counters {
        let mut counters = self.counters;
        if let Some(driver) = driver {
            driver.count(&mut counters);
        }
        counters
    }

    /// What is going on.
    pub fn load(&self) -> Load {
        let (frames, sessions) = self.asker.held();
        Load {
            frames,
            sessions,
            asks: self.rounds.len(),
        }
    }
}
