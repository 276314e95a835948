//! Whatever happens: each session ends in one class, the limits hold, and it ends.

use super::*;

/// How a drain is to be, and what chance does to it.
#[derive(Clone, Debug)]
struct Game {
    sessions: Vec<(u16, Option<Why>)>,
    at_once: usize,
    rate: Option<u32>,
    deadline_ms: Option<u64>,
    wait: bool,
    to: BTreeSet<u16>,
    stop_at: Option<u64>,
    dice: Vec<u8>,
}

fn hindrance() -> impl Strategy<Value = Option<Why>> {
    prop_oneof![
        8 => Just(None),
        1 => Just(Some(Why::Udp)),
        1 => Just(Some(Why::NoApplication)),
        1 => Just(Some(Why::Closing)),
        1 => Just(Some(Why::NotAccepted)),
    ]
}

prop_compose! {
    fn games()(
        sessions in prop::collection::vec((0u16..60, hindrance()), 0..60),
        at_once in 1usize..9,
        rate in prop::option::of(1u32..400),
        deadline_ms in prop::option::of(0u64..20_000),
        wait: bool,
        to in prop::collection::btree_set(2u16..6, 0..3),
        stop_at in prop::option::weighted(0.2, 0u64..3_000_000),
        dice in prop::collection::vec(any::<u8>(), 60..400),
    ) -> Game {
        // One that waits for what does not end needs a deadline.
        let deadline_ms = deadline_ms.or(Some(20_000));
        Game { sessions, at_once, rate, deadline_ms, wait, to, stop_at, dice }
    }
}

fn outcome(die: u8) -> Outcome {
    let reason = Reason::ALL[usize::from(die) % Reason::ALL.len()];
    match die % 8 {
        0..=2 => Outcome::Moved,
        3 | 4 => Outcome::Refused(reason),
        5 => Outcome::Aborted(Step::Sending, reason),
        6 => Outcome::Gone(Step::Exporting, reason),
        _ => Outcome::Lost(reason),
    }
}

/// The host, and what has become of its sessions, by cookie.
struct World {
    open: BTreeMap<u16, Found>,
    cookies: u64,
    under_way: Vec<(Begin, u64)>,
    left: BTreeSet<u64>,
    begun_at: Vec<u64>,
}

impl World {
    fn new(sessions: &[(u16, Option<Why>)]) -> Self {
        let mut world = Self {
            open: BTreeMap::new(),
            cookies: 1_000,
            under_way: Vec::new(),
            left: BTreeSet::new(),
            begun_at: Vec::new(),
        };
        for (number, hindrance) in sessions {
            world.opens(*number, *hindrance);
        }
        world
    }

    fn opens(&mut self, number: u16, hindrance: Option<Why>) {
        self.cookies += 1;
        let session = Found {
            cookie: self.cookies,
            ..found(number, hindrance)
        };
        self.open.entry(number).or_insert(session);
    }

    fn number(tuple: &Tuple) -> u16 {
        tuple.client_port.number()
    }

    fn is_moving(&self, number: u16) -> bool {
        let mut moving = self.under_way.iter();
        moving.any(|(begin, _)| Self::number(&begin.tuple) == number)
    }

    /// Takes in what the plan begins.
    fn begins(&mut self, game: &Game, now: u64, begin: Begin) {
        let number = Self::number(&begin.tuple);
        assert!(!self.is_moving(number), "{number} is in two moves");
        assert!(self.under_way.len() < game.at_once);
        assert!((2..5).contains(&begin.target.0));
        assert!(game.to.is_empty() || game.to.contains(&begin.target.0));
        let cookie = self.open.get(&number).map_or(0, |session| session.cookie);
        assert!(!self.left.contains(&cookie), "{number} has left before");
        self.under_way.push((begin, cookie));
        self.begun_at.push(now);
    }

    /// A move ends by a die.
    fn ends(&mut self, plan: &mut Plan, now: u64, (which, die): (u8, u8)) {
        let which = usize::from(which) % self.under_way.len();
        let (begin, cookie) = self.under_way.swap_remove(which);
        let mut outcome = outcome(die);
        let number = Self::number(&begin.tuple);
        let is_same = self
            .open
            .get(&number)
            .is_some_and(|now| now.cookie == cookie);
        if !is_same {
            outcome = Outcome::Refused(Reason::Gone);
        } else if matches!(
            outcome,
            Outcome::Moved | Outcome::Gone(..) | Outcome::Lost(_) | Outcome::Refused(Reason::Gone)
        ) {
            self.open.remove(&number);
            self.left.insert(cookie);
        }
        let mut ended = ended(&begin, outcome);
        ended.number = (die % 3 != 0).then_some(1);
        plan.ended(now, &ended);
    }

    fn look(&self) -> Look {
        let sessions: Vec<_> = self.open.values().copied().collect();
        look(&sessions)
    }
}

/// Never more begun than the rate allows, in any span of time.
fn keeps_rate(begun_at: &[u64], rate: u32) -> bool {
    let mut spans = begun_at.iter().enumerate().flat_map(|(first, from)| {
        let later = begun_at.iter().enumerate().skip(first);
        later.map(move |(last, to)| (last - first + 1, to - from))
    });
    spans.all(|(count, span)| {
        let seconds = (span + 10 * MS) as f64 / SECOND as f64;
        count as f64 <= f64::from(rate) * seconds + 1.01
    })
}

fn adds_up(plan: &Plan, now: u64) {
    let progress = plan.progress(now);
    let counts = &progress.counts;
    let gone: u64 = counts.gone.values().sum();
    let lost: u64 = counts.lost.values().sum();
    let sum = counts.moved + counts.ended + gone + lost + progress.here();
    assert_eq!(counts.seen, sum, "{progress:?}");
}

fn play(game: &Game) {
    let options = Options {
        to: game.to.iter().copied().map(HostId).collect(),
        rate: game.rate.and_then(NonZeroU32::new),
        deadline: game.deadline_ms.map(Duration::from_millis),
        wait: game.wait,
    };
    let mut plan = Plan::new(0, options, game.at_once, 0);
    plan.hosts(hosts(&[2, 3, 4]));
    let mut world = World::new(&game.sessions);
    let (mut now, mut reading, mut stopped) = (0, None, false);
    let mut dice = game.dice.iter().copied();
    let mut steps = 0;
    let end = loop {
        steps += 1;
        assert!(steps < 100_000, "it does not end: {:?}", plan.progress(now));
        if game.stop_at.is_some_and(|at| now >= at) && !stopped {
            stopped = true;
            let called: BTreeSet<_> = plan.stop().into_iter().collect();
            let moving = world.under_way.iter().map(|(begin, _)| begin.tuple);
            assert_eq!(called, moving.collect());
        }
        while let Some(begin) = plan.poll(now) {
            assert!(!stopped, "begun after the stop");
            assert!(game.deadline_ms.is_none_or(|ms| now < ms * MS));
            world.begins(game, now, begin);
        }
        adds_up(&plan, now);
        if let Some(end) = plan.end(now) {
            break end;
        }
        if plan.begin_look(now) {
            reading = Some(world.look());
        }
        // Once the dice are used up, everything comes to its end.
        let die = dice.next();
        match die.unwrap_or(2) % 10 {
            0 => world.opens(u16::from(die.unwrap_or(0)) % 60, None),
            1 => {
                let closed = u16::from(dice.next().unwrap_or(0)) % 60;
                world.open.remove(&closed);
            }
            2..=5 if !world.under_way.is_empty() => {
                let dice = (die.unwrap_or(0), dice.next().unwrap_or(0));
                world.ends(&mut plan, now, dice);
            }
            6 if reading.is_some() => {
                reading = None;
                plan.looked_in_vain(now);
            }
            _ => {
                let passes = |why: Why| why.passes();
                if let Some(look) = reading.take() {
                    plan.looked(now, &look);
                }
                if die.is_none() {
                    world
                        .open
                        .retain(|_, session| !session.hindrance.is_some_and(passes));
                }
                let step = 1 + u64::from(die.unwrap_or(1)) * 700;
                let next = plan.next_time(now);
                now = if next == u64::MAX {
                    now + step
                } else {
                    next.min(now + step).max(now + 1)
                };
                if die.is_none() && next < u64::MAX {
                    now = now.max(next);
                }
            }
        }
    };
    adds_up(&plan, now);
    assert!(world.under_way.is_empty(), "it ended before its moves");
    let progress = plan.progress(now);
    assert_eq!((progress.queued, progress.moving), (0, 0));
    if let Some(rate) = game.rate {
        assert!(keeps_rate(&world.begun_at, rate), "{:?}", world.begun_at);
    }
    let is_up = game.deadline_ms.is_some_and(|ms| now >= ms * MS);
    match end {
        End::Stopped => assert!(stopped),
        _ if is_up => {}
        End::Drained => assert_eq!(progress.here(), 0),
        End::Left => assert!(progress.here() > 0 && !game.wait),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn each_session_ends_in_one_class_and_the_limits_hold(game in games()) {
        play(&game);
    }
}
