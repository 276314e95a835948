//! This host is asked: whose questions are put to its kernel, and what is said in
//! return.
//!
//! What was found is said at once. That nothing was found is said too, because
//! only silence of everyone that has heard allows a reset; but it can wait a
//! little, so that a flood of asks does not become a flood of reports.

use std::collections::{BTreeMap, VecDeque};

use homing_common::{
    ask::{Found, Question},
    host::HostId,
    session::SessionId,
};

use super::{
    Known, Lookup,
    budget::Budget,
    wire::{Answer, Ask, Report, Standing},
};
use crate::{
    datapath::answer::found,
    pop::{MS, SECOND},
};

/// Questions of one host, and of all, that are put to the kernel in a second, and
/// at once. The kernel answers some millions of them in a second and core.
const PER_HOST: (u64, u64) = (25_000, 5_000);
const ALL: (u64, u64) = (100_000, 20_000);
/// Reports to one host that say only what was heard are this far apart.
const REPORTS_APART: u64 = 10 * MS;
/// Asks that were passed on are remembered for so long, for their repeats.
const REMEMBERED: u64 = SECOND;
const REMEMBERED_MAX: usize = 4096;

/// What is kept of one host that asks.
struct From {
    budget: Budget,
    report: Report,
    report_at: u64,
    reported_at: Option<u64>,
}

/// The end of an ask that was passed on.
struct Ended {
    at: u64,
    answers: Vec<Answer>,
}

/// The state of all that this host is asked.
pub(super) struct Answerer {
    host: HostId,
    all: Budget,
    from: BTreeMap<HostId, From>,
    /// Asks that were passed on and heard by everyone.
    ended: BTreeMap<(HostId, u64), Ended>,
    ended_order: VecDeque<(u64, HostId, u64)>,
}

impl Answerer {
    pub fn new(host: HostId) -> Self {
        Self {
            host,
            all: Budget::new(ALL.0, ALL.1),
            from: BTreeMap::new(),
            ended: BTreeMap::new(),
            ended_order: VecDeque::new(),
        }
    }

    /// Whether a host's ask may be put to the kernel now.
    pub fn admit(&mut self, now: u64, asker: HostId, ask: &Ask) -> bool {
        let from = self.from.entry(asker).or_insert_with(|| From {
            budget: Budget::new(PER_HOST.0, PER_HOST.1),
            report: Report::default(),
            report_at: u64::MAX,
            reported_at: None,
        });
        let count = ask.questions.len() as u64;
        from.budget.take(now, count) && self.all.take(now, count)
    }

    /// The answers that follow from what the kernel found, or else from what is
    /// known of hosts that cannot be asked.
    pub fn answers(&self, lookup: &Lookup, known: impl Fn(SessionId) -> Known) -> Vec<Answer> {
        let asked = lookup.questions.iter().zip(&lookup.ids);
        let found = asked.filter_map(|(question, &id)| {
            let known = known(SessionId(question.id));
            let (host, standing, generation) = match (standing(question), known) {
                (Some(standing), Known::Here(generation)) => (self.host, standing, generation),
                (Some(standing), _) => (self.host, standing, 0),
                (None, Known::Unaskable(claim)) => (claim.host, Standing::Told, claim.generation),
                (None, _) => return None,
            };
            Some(Answer {
                id,
                host,
                standing,
                generation,
            })
        });
        found.collect()
    }

    /// Notes that an ask was heard, to be reported soon. Gives a report that must
    /// go first.
    pub fn heard(&mut self, now: u64, asker: HostId, number: u64) -> Option<Report> {
        let from = self.from.get_mut(&asker)?;
        let distance = number.wrapping_sub(from.report.base);
        if from.report.heard != 0 && distance < 64 {
            from.report.heard |= 1 << distance;
            return None;
        }
        let before = std::mem::replace(
            &mut from.report,
            Report {
                base: number,
                heard: 1,
                answers: Vec::new(),
            },
        );
        if before.heard != 0 {
            from.reported_at = Some(now);
        }
        let free_at = from.reported_at.map_or(now, |at| at + REPORTS_APART);
        from.report_at = now.max(free_at);
        (before.heard != 0).then_some(before)
    }

    /// When [`Answerer::due`] has something.
    pub fn next_time(&self) -> u64 {
        let times = self.from.values().map(|from| from.report_at);
        times.min().unwrap_or(u64::MAX)
    }

    /// Reports that are due.
    pub fn due(&mut self, now: u64) -> Vec<(HostId, Report)> {
        let due = self.from.iter_mut().filter(|(_, f)| f.report_at <= now);
        let due = due.map(|(&host, from)| {
            from.report_at = u64::MAX;
            from.reported_at = Some(now);
            (host, std::mem::take(&mut from.report))
        });
        due.collect()
    }

    /// Remembers that an ask that was passed on was heard by everyone.
    pub fn remember(&mut self, now: u64, asker: HostId, number: u64, answers: Vec<Answer>) {
        let ended = Ended { at: now, answers };
        self.ended.insert((asker, number), ended);
        self.ended_order.push_back((now, asker, number));
        while let Some(&(at, asker, number)) = self.ended_order.front()
            && (at + REMEMBERED <= now || self.ended_order.len() > REMEMBERED_MAX)
        {
            self.ended_order.pop_front();
            let key = (asker, number);
            if self.ended.get(&key).is_some_and(|ended| ended.at == at) {
                self.ended.remove(&key);
            }
        }
    }

    /// What was answered to an ask that was passed on and heard by everyone.
    pub fn ended(&self, asker: HostId, number: u64) -> Option<Vec<Answer>> {
        let ended = self.ended.get(&(asker, number))?;
        Some(ended.answers.clone())
    }

    /// Forgets hosts that are not up.
    pub fn retain(&mut self, is_up: impl Fn(HostId) -> bool) {
        self.from.retain(|&host, _| is_up(host));
    }
}

fn standing(question: &Question) -> Option<Standing> {
    match found(question) {
        Found::Socket | Found::Cookie => Some(Standing::Open),
        Found::Closing => Some(Standing::Closing),
        Found::Closed => Some(Standing::Closed),
        Found::Nothing => None,
    }
}
