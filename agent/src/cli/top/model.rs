//! What is known, and what the keys have chosen. Times are those since the command began.

use std::time::Duration;

use super::keys::Press;
use crate::{admin::api::Watch, cli::rates::Rates};

/// The intervals that `+` and `-` choose from.
const INTERVALS_MS: [u64; 10] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 3_600_000,
];

/// By how much an answer may be late until its picture is marked as old.
const LATE: Duration = Duration::from_secs(1);

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Screen {
    Overview,
    Hosts,
    Outcomes,
    Counters,
}

impl Screen {
    pub(super) const ALL: [Self; 4] = [Self::Overview, Self::Hosts, Self::Outcomes, Self::Counters];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Hosts => "Hosts",
            Self::Outcomes => "Outcomes",
            Self::Counters => "Counters",
        }
    }

    /// The one so many behind this one.
    fn along(self, steps: usize) -> Self {
        Self::ALL[(self as usize + steps) % Self::ALL.len()]
    }
}

/// An answer, and how fast things went until then.
#[derive(Debug)]
pub(super) struct Picture {
    pub watch: Watch,
    pub rates: Rates,
    /// When it came.
    at: Duration,
}

/// How long a list is, and how many of its rows there was room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub rows: usize,
    pub room: usize,
}

impl Extent {
    /// How far it can be moved through.
    pub(super) fn last(self) -> usize {
        self.rows.saturating_sub(self.room)
    }
}

/// Whether the agent is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    Now,
    After(Duration),
    /// The picture is held.
    Never,
}

#[derive(Debug)]
pub(super) struct Model {
    picture: Option<Picture>,
    /// Why the last question was not answered.
    trouble: Option<String>,
    /// When the agent was asked last.
    asked_at: Option<Duration>,
    interval: Duration,
    screen: Screen,
    /// The first row that is shown of each screen's list.
    at: [usize; Screen::ALL.len()],
    extent: Extent,
    paused: bool,
    help: bool,
    zeros: bool,
    quit: bool,
}

impl Model {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            picture: None,
            trouble: None,
            asked_at: None,
            interval,
            screen: Screen::Overview,
            at: [0; Screen::ALL.len()],
            extent: Extent::default(),
            paused: false,
            help: false,
            zeros: false,
            quit: false,
        }
    }

    /// The agent has answered.
    pub(super) fn answered(&mut self, watch: Watch, now: Duration) {
        if self.paused {
            return;
        }
        let rates = match &self.picture {
            Some(before) => Rates::between(&before.watch.stats, &watch.stats),
            None => Rates::default(),
        };
        self.asked_at.get_or_insert(now);
        self.trouble = None;
        self.picture = Some(Picture {
            watch,
            rates,
            at: now,
        });
    }

    /// The agent has not answered, or in a way that cannot be understood.
    pub(super) fn failed(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// The agent is asked.
    pub(super) fn asked(&mut self, now: Duration) {
        self.asked_at = Some(now);
    }

    /// Whether the agent is to be asked, if it is not being asked.
    pub(super) fn asking(&self, now: Duration) -> Asking {
        let next = self.asked_at.map(|at| at + self.interval);
        match next.map(|next| next.saturating_sub(now)) {
            _ if self.paused => Asking::Never,
            None | Some(Duration::ZERO) => Asking::Now,
            Some(wait) => Asking::After(wait),
        }
    }

    /// How it was drawn: only then it is known how long the list is.
    pub(super) fn drawn(&mut self, extent: Extent) {
        self.extent = extent;
        let at = &mut self.at[self.screen as usize];
        *at = (*at).min(extent.last());
    }

    pub(super) fn press(&mut self, press: Press) {
        let (page, last) = (self.extent.room.max(1), self.extent.last());
        let at = self.at();
        match press {
            Press::Back if self.help => self.help = false,
            Press::Quit | Press::Back => self.quit = true,
            Press::Help => self.help = !self.help,
            Press::Next => self.screen = self.screen.along(1),
            Press::Previous => self.screen = self.screen.along(Screen::ALL.len() - 1),
            Press::Show(screen) => self.screen = screen,
            Press::Up => self.go(at.saturating_sub(1)),
            Press::Down => self.go(last.min(at + 1)),
            Press::PageUp => self.go(at.saturating_sub(page)),
            Press::PageDown => self.go(last.min(at + page)),
            Press::First => self.go(0),
            Press::Last => self.go(last),
            Press::Pause => self.paused = !self.paused,
            Press::Slower => {
                let longer = INTERVALS_MS.into_iter().map(Duration::from_millis);
                let longer = longer.into_iter().find(|other| *other > self.interval);
                self.interval = longer.unwrap_or(self.interval);
            }
            Press::Faster => {
                let shorter = INTERVALS_MS.into_iter().map(Duration::from_millis);
                let shorter = shorter.rev().find(|other| *other < self.interval);
                self.interval = shorter.unwrap_or(self.interval);
            }
            Press::Zeros => self.zeros = !self.zeros,
        }
    }

    fn go(&mut self, at: usize) {
        self.at[self.screen as usize] = at;
    }

    pub(super) fn picture(&self) -> Option<&Picture> {
        self.picture.as_ref()
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// How old the picture is, if it is older than it should be.
    pub(super) fn stale(&self, now: Duration) -> Option<Duration> {
        let age = now.saturating_sub(self.picture.as_ref()?.at);
        let late = !self.paused && age > self.interval + LATE;
        (late || self.trouble.is_some()).then_some(age)
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) fn screen(&self) -> Screen {
        self.screen
    }

    /// The first row of the screen's list that is to be shown, if there are as many.
    pub(super) fn at(&self) -> usize {
        self.at[self.screen as usize]
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn shows_help(&self) -> bool {
        self.help
    }

    /// Whether counters that are zero are to be shown too.
    pub(super) fn shows_zeros(&self) -> bool {
        self.zeros
    }

    pub(super) fn has_quit(&self) -> bool {
        self.quit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::fake::{sample_hosts, sample_stats, sample_status},
        cli::rates::{OUTCOMES, tests::later},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn watch() -> Watch {
        Watch {
            status: sample_status(),
            hosts: sample_hosts(),
            stats: sample_stats(),
        }
    }

    #[test]
    fn it_asks_once_an_interval_and_tells_rates_from_the_second_answer_on() {
        let mut model = Model::new(SECOND);
        assert_eq!(model.asking(Duration::ZERO), Asking::Now);
        model.answered(watch(), Duration::ZERO);
        assert_eq!(model.asking(SECOND / 4), Asking::After(SECOND * 3 / 4));
        let rate = |model: &Model| {
            let picture = model.picture().expect("a picture");
            picture.rates.of(OUTCOMES, "forwarded")
        };
        assert_eq!(rate(&model), None);
        assert_eq!(model.asking(SECOND), Asking::Now);
        model.asked(SECOND);
        assert_eq!(model.asking(SECOND), Asking::After(SECOND));
        let stats = later(1, 7);
        model.answered(Watch { stats, ..watch() }, SECOND);
        assert_eq!(rate(&model), Some(7.0));
    }

    #[test]
    fn the_picture_stays_and_grows_old_while_nothing_is_answered() {
        let mut model = Model::new(SECOND);
        model.answered(watch(), Duration::ZERO);
        assert_eq!(model.stale(SECOND * 2), None);
        assert_eq!(
            model.stale(SECOND * 3),
            Some(SECOND * 3),
            "no answer at all"
        );
        model.failed("refused".to_owned());
        assert_eq!(model.stale(SECOND), Some(SECOND), "a bad one");
        assert_eq!(model.trouble(), Some("refused"));
        assert!(model.picture().is_some());
        model.answered(watch(), SECOND * 9);
        assert_eq!((model.stale(SECOND * 9), model.trouble()), (None, None));
    }

    #[test]
    fn a_picture_that_is_held_neither_changes_nor_grows_old() {
        let mut model = Model::new(SECOND);
        model.answered(watch(), Duration::ZERO);
        model.press(Press::Pause);
        assert_eq!(model.asking(SECOND * 60), Asking::Never);
        assert_eq!(model.stale(SECOND * 60), None);
        let stats = later(60, 7);
        model.answered(Watch { stats, ..watch() }, SECOND * 60);
        assert_eq!(model.picture().expect("a picture").watch, watch());
        model.press(Press::Pause);
        assert_eq!(model.asking(SECOND * 60), Asking::Now);
    }

    #[test]
    fn the_interval_has_bounds() {
        let mut model = Model::new(Duration::from_millis(700));
        model.press(Press::Slower);
        assert_eq!(model.interval(), SECOND);
        model.press(Press::Faster);
        assert_eq!(model.interval(), SECOND / 2);
        for _ in 0..20 {
            model.press(Press::Faster);
        }
        assert_eq!(model.interval(), SECOND / 10);
        for _ in 0..20 {
            model.press(Press::Slower);
        }
        assert_eq!(model.interval(), SECOND * 3600);
    }

    #[test]
    fn each_screen_keeps_its_place_in_its_list() {
        let mut model = Model::new(SECOND);
        let extent = Extent { rows: 30, room: 10 };
        model.drawn(extent);
        model.press(Press::PageDown);
        model.press(Press::Down);
        assert_eq!(model.at(), 11);
        model.press(Press::PageDown);
        assert_eq!(model.at(), 20, "the end");
        model.press(Press::Next);
        assert_eq!((model.screen(), model.at()), (Screen::Hosts, 0));
        model.press(Press::Previous);
        model.press(Press::Up);
        assert_eq!((model.screen(), model.at()), (Screen::Overview, 19));
        model.drawn(Extent { rows: 12, room: 10 });
        assert_eq!(model.at(), 2, "the list is shorter now");
        model.press(Press::First);
        assert_eq!(model.at(), 0);
        model.press(Press::Last);
        assert_eq!(model.at(), 2);
        model.press(Press::Previous);
        assert_eq!(model.screen(), Screen::Counters);
    }

    #[test]
    fn escape_leaves_the_help_first() {
        let mut model = Model::new(SECOND);
        model.press(Press::Help);
        model.press(Press::Back);
        assert!(!model.shows_help() && !model.has_quit());
        model.press(Press::Back);
        assert!(model.has_quit());
    }
}
