//! Asks under way: each is one datagram's worth of questions, put to an audience
//! until everyone has reported or its time is over.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use homing_common::{ask::Question, host::HostId};

use super::{
    audience::Audience,
    budget::Budget,
    wire::{Answer, Ask},
};
use crate::{
    gossip::core::Outgoing,
    pop::{Domain, MS, seal::To},
};

/// An ask is repeated to those that have not reported after so long, each counted
/// from the first.
const REPEATS: [u64; 2] = [50 * MS, 100 * MS];
/// How long an ask takes at most.
pub(super) const ROUND: u64 = 200 * MS;
/// Up to so many hosts are asked again one by one rather than by multicast.
const FEW: usize = 3;

/// Who wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum For {
    /// This host.
    Own,
    /// Another one, by whose number the ask is known there.
    Other { asker: HostId, number: u64 },
}

/// What is asked.
pub(super) struct Asked {
    pub why: For,
    /// The public id of the key under which the questions have their ids.
    pub key: u8,
    pub questions: Vec<Question>,
}

/// An ask under way.
pub(super) struct Round {
    pub asked: Asked,
    /// What was answered so far, for whoever it is asked for: the best of each
    /// session.
    answers: Vec<Answer>,
    /// Hosts of this domain that have not reported.
    near: Vec<HostId>,
    /// Other domains whose relay has not reported.
    far: Vec<Domain>,
    /// Somebody cannot be asked.
    blind: bool,
    repeats: usize,
    began_at: u64,
}

impl Round {
    fn next_time(&self) -> u64 {
        let repeat = REPEATS.get(self.repeats).copied();
        self.began_at + repeat.unwrap_or(ROUND)
    }

    fn is_over(&self) -> bool {
        self.near.is_empty() && self.far.is_empty()
    }

    /// Adds answers, and gives those that are news.
    pub fn add(&mut self, answers: &[Answer]) -> Vec<Answer> {
        let mut news = Vec::new();
        for &answer in answers {
            let known = self.answers.iter_mut().find(|known| known.id == answer.id);
            match known {
                Some(known) if known.standing <= answer.standing => continue,
                Some(known) => *known = answer,
                None => self.answers.push(answer),
            }
            news.push(answer);
        }
        news
    }

    /// The best answer about each session that anybody knows.
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// Whether every host but those of one domain has reported, of which the relay
    /// does not report while one of them cannot be asked.
    pub fn all_heard_but(&self, domain: Domain) -> bool {
        self.near.is_empty() && self.far.iter().all(|far| *far == domain)
    }

    /// Whether every host that may own a session has reported.
    pub fn all_heard(&self) -> bool {
        self.is_over() && !self.blind
    }
}

/// All asks under way.
pub(super) struct Rounds {
    next: u64,
    open: BTreeMap<u64, Round>,
    /// Those on behalf of others, by asker and its number.
    others: BTreeMap<(HostId, u64), u64>,
}

/// An ask that was sent.
pub(super) struct Begun {
    /// How many datagrams that took.
    pub sent: u64,
    /// There was nobody to send it to.
    pub over: Option<Round>,
}

impl Rounds {
    /// Numbers begin at `first`, which should differ between lives of an agent.
    pub fn new(first: u64) -> Self {
        Self {
            next: first,
            open: BTreeMap::new(),
            others: BTreeMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Asks. `answers` is what is known already.
    pub fn begin(
        &mut self,
        now: u64,
        asked: Asked,
        answers: Vec<Answer>,
        audience: &Audience,
        out: &mut VecDeque<Outgoing>,
    ) -> Begun {
        let why = asked.why;
        let own = why == For::Own;
        let round = Round {
            asked,
            answers,
            near: audience.near.iter().map(|near| near.host).collect(),
            far: match own {
                true => audience.far.keys().copied().collect(),
                false => Vec::new(),
            },
            blind: audience.near_blind || own && audience.far_blind,
            repeats: 0,
            began_at: now,
        };
        if round.is_over() {
            let over = Some(round);
            return Begun { sent: 0, over };
        }
        let sent = round.send(self.next, audience, out);
        if let For::Other { asker, number } = why {
            self.others.insert((asker, number), self.next);
        }
        self.open.insert(self.next, round);
        self.next = self.next.wrapping_add(1);
        Begun { sent, over: None }
    }

    /// A host reported that an ask was heard: by itself, or in its whole domain
    /// if that is another one.
    pub fn heard(&mut self, number: u64, from: HostId, audience: &Audience) -> Option<Round> {
        let round = self.open.get_mut(&number)?;
        round.near.retain(|&host| host != from);
        if let Some(domain) = audience.domains.get(&from) {
            round.far.retain(|far| far != domain);
        }
        match round.is_over() {
            true => self.end(number),
            false => None,
        }
    }

    fn end(&mut self, number: u64) -> Option<Round> {
        let round = self.open.remove(&number)?;
        if let For::Other { asker, number } = round.asked.why {
            self.others.remove(&(asker, number));
        }
        Some(round)
    }

    /// Leaves only those questions in a round that are still open. Without any
    /// left, nobody needs to be asked again.
    pub fn retain(&mut self, number: u64, mut is_open: impl FnMut(&Question) -> bool) {
        if let Some(round) = self.open.get_mut(&number) {
            round.asked.questions.retain(|question| is_open(question));
            if round.asked.questions.is_empty() {
                self.end(number);
            }
        }
    }

    /// A round under way.
    pub fn get(&mut self, number: u64) -> Option<&mut Round> {
        self.open.get_mut(&number)
    }

    /// The round that an ask of another host began here.
    pub fn of_other(&self, asker: HostId, number: u64) -> Option<&Round> {
        let number = self.others.get(&(asker, number))?;
        self.open.get(number)
    }

    /// When [`Rounds::due`] has something to do.
    pub fn next_time(&self) -> u64 {
        let times = self.open.values().map(Round::next_time);
        times.min().unwrap_or(u64::MAX)
    }

    /// Repeats what is due while the budget lets it, and returns what is over, oldest
    /// first.
    pub fn due(
        &mut self,
        now: u64,
        audience: &Audience,
        budget: &mut Budget,
        out: &mut VecDeque<Outgoing>,
    ) -> Vec<Round> {
        let mut over = Vec::new();
        for (&number, round) in &mut self.open {
            if round.next_time() > now {
                continue;
            }
            // Whoever is not up any more will not report.
            round.forget_gone(audience);
            if round.began_at + ROUND <= now || round.is_over() {
                over.push(number);
                continue;
            }
            while round.next_time() <= now {
                round.repeats += 1;
            }
            if budget.take(now, 1) {
                let sent = round.send(number, audience, out);
                budget.spend(sent.saturating_sub(1));
            }
        }
        let over = over.into_iter();
        over.filter_map(|number| self.end(number)).collect()
    }
}

impl Round {
    /// Sends the questions to all that have not reported.
    fn send(&self, number: u64, audience: &Audience, out: &mut VecDeque<Outgoing>) -> u64 {
        let begun = out.len();
        let mut ask = Ask {
            number,
            pass_on: false,
            key: self.asked.key,
            questions: self.asked.questions.clone(),
        };
        let body = Bytes::from(ask.encode());
        let waiting = audience.near.iter().filter(|n| self.near.contains(&n.host));
        let many = self.near.len() > FEW || self.repeats == 0;
        let multicast = audience.multicast && many && waiting.clone().any(|near| near.hears);
        if multicast {
            let to = To::Domain;
            out.push_back(Outgoing {
                to,
                body: body.clone(),
            });
        }
        for near in waiting.filter(|near| !(multicast && near.hears)) {
            let to = To::Host(near.host);
            out.push_back(Outgoing {
                to,
                body: body.clone(),
            });
        }
        ask.pass_on = true;
        let body = Bytes::from(ask.encode());
        // The first relay alone at first; when it does not report, the other too.
        let relays = 1 + usize::from(self.repeats > 0);
        for domain in &self.far {
            let chosen = audience.far.get(domain).into_iter().flatten();
            for &relay in chosen.take(relays) {
                let to = To::Host(relay);
                out.push_back(Outgoing {
                    to,
                    body: body.clone(),
                });
            }
        }
        (out.len() - begun) as u64
    }

    /// Takes hosts off the list that have gone since. What they own is not known,
    /// so the round stays without a full answer.
    fn forget_gone(&mut self, audience: &Audience) {
        let before = self.near.len() + self.far.len();
        self.near
            .retain(|host| audience.near.iter().any(|near| near.host == *host));
        self.far.retain(|domain| audience.far.contains_key(domain));
        self.blind |= self.near.len() + self.far.len() < before;
    }
}
