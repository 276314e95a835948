//! How fast counters go: of two answers, and the time between them as the agent's host
//! counted it.
//!
//! A counter that went down has begun anew, and so has what an agent counts once another one
//! has started: no rate is told of those until there are two answers again.

use std::{borrow::Cow, collections::HashMap};

use homing_common::outcome::Hook;

use crate::admin::api::{Counter, Stats};

/// How packets ended.
pub(super) const OUTCOMES: &str = "outcomes";
/// What hooks, and searches beside them, counted.
pub(super) const HOOKS: &str = "hooks";
/// What gossip and membership counted.
pub(super) const GOSSIP: &str = "gossip";
/// What interfaces' drivers counted.
pub(super) const INTERFACES: &str = "interfaces";

/// A counter of a part.
pub(super) struct Counted<'a> {
    /// The part that counts, as in JSON.
    pub part: &'static str,
    /// The counter's name in that part; of an interface's, with the interface before it.
    pub name: Cow<'a, str>,
    /// Its value.
    pub count: u64,
    /// What it means.
    pub help: &'a str,
}

impl Counted<'_> {
    /// Its name among all counters.
    pub(super) fn full_name(&self) -> Cow<'_, str> {
        match self.part {
            OUTCOMES | HOOKS | INTERFACES => Cow::Borrowed(&self.name),
            part => Cow::Owned(format!("{part} {}", self.name)),
        }
    }
}

/// All counters but outcomes, in the order in which they are shown.
pub(super) fn counters(stats: &Stats) -> impl Iterator<Item = Counted<'_>> {
    let parts: [(&'static str, &Vec<Counter>); 7] = [
        (HOOKS, &stats.hooks),
        (GOSSIP, &stats.gossip),
        ("carriers", &stats.carriers),
        ("apps", &stats.apps),
        ("mux", &stats.mux),
        ("moves", &stats.moves),
        ("parked", &stats.parked),
    ];
    let of_parts = parts.into_iter().flat_map(|(part, counters)| {
        counters.iter().map(move |counter| Counted {
            part,
            name: Cow::Borrowed(&counter.name),
            count: counter.count,
            help: &counter.help,
        })
    });
    let of_drivers = stats.interfaces.iter().flat_map(|(interface, counters)| {
        counters.iter().map(move |(name, count)| Counted {
            part: INTERFACES,
            name: Cow::Owned(format!("{interface} {name}")),
            count: *count,
            help: "Counted by the interface's driver",
        })
    });
    of_parts.chain(of_drivers)
}

/// All counters.
fn all(stats: &Stats) -> impl Iterator<Item = Counted<'_>> {
    let outcomes = stats.outcomes.iter().map(|outcome| Counted {
        part: OUTCOMES,
        name: Cow::Borrowed(&outcome.name),
        count: outcome.packets,
        help: &outcome.help,
    });
    outcomes.chain(counters(stats))
}

/// How often in a second what is counted has happened between two answers.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rates {
    over_s: Option<f64>,
    per_s: HashMap<&'static str, HashMap<String, f64>>,
}

impl Rates {
    /// Between two answers; without any, where they have nothing to do with each other.
    pub(super) fn between(before: &Stats, now: &Stats) -> Self {
        let passed_us = now.monotonic_us.saturating_sub(before.monotonic_us);
        if passed_us == 0 || before.incarnation != now.incarnation {
            return Self::default();
        }
        let over_s = passed_us as f64 / 1e6;
        let same_agent = before.generation == now.generation;
        let mut were: HashMap<(&str, Cow<'_, str>), u64> = HashMap::new();
        were.extend(all(before).map(|counted| ((counted.part, counted.name), counted.count)));
        let mut per_s: HashMap<_, HashMap<_, _>> = HashMap::new();
        for counted in all(now).filter(|counted| same_agent || outlives_agents(counted)) {
            let was = were.get(&(counted.part, Cow::Borrowed(&*counted.name)));
            if let Some(more) = was.and_then(|was| counted.count.checked_sub(*was)) {
                let of_part = per_s.entry(counted.part).or_default();
                of_part.insert(counted.name.into_owned(), more as f64 / over_s);
            }
        }
        Self {
            over_s: Some(over_s),
            per_s,
        }
    }

    /// The time between both answers, in seconds; none without rates.
    pub(super) fn over_s(&self) -> Option<f64> {
        self.over_s
    }

    /// The rate of a counter, if there is one.
    pub(super) fn of(&self, part: &str, name: &str) -> Option<f64> {
        self.per_s.get(part)?.get(name).copied()
    }

    /// All of them, by part and name.
    pub(super) fn by_part(&self) -> &HashMap<&'static str, HashMap<String, f64>> {
        &self.per_s
    }
}

/// Whether the kernel counts it, which goes on when agents come and go.
fn outlives_agents(counted: &Counted<'_>) -> bool {
    match counted.part {
        OUTCOMES | INTERFACES => true,
        HOOKS => Hook::ALL.iter().any(|hook| hook.label() == counted.name),
        _ => false,
    }
}

/// A rate in a table: a dash where there is none.
pub(super) fn shown(per_s: Option<f64>) -> String {
    match per_s {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(per_s) if per_s < 0.095 => format!("{:.2}", per_s.max(0.01)),
        Some(per_s) if per_s < 9.95 => format!("{per_s:.1}"),
        Some(per_s) => format!("{per_s:.0}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admin::fake::sample_stats;

    /// What the sample has become after so many seconds, in which forwarded packets, opened
    /// sessions and applied announcements have become so many more.
    pub(in crate::cli) fn later(seconds: u64, more: u64) -> Stats {
        let mut stats = sample_stats();
        stats.monotonic_us += seconds * 1_000_000;
        let forwarded = stats.outcomes.iter_mut().find(|o| o.name == "forwarded");
        forwarded.expect("an outcome").packets += more;
        let counters = stats.hooks.iter_mut().chain(&mut stats.gossip);
        for counter in counters.filter(|counter| {
            ["sessions_opened", "sessions_audits", "records_applied"].contains(&&*counter.name)
        }) {
            counter.count += more;
        }
        stats
    }

    #[test]
    fn a_rate_is_what_came_over_the_time_that_the_host_counted() {
        let rates = Rates::between(&sample_stats(), &later(4, 10));
        assert_eq!(rates.over_s(), Some(4.0));
        assert_eq!(rates.of(OUTCOMES, "forwarded"), Some(2.5));
        assert_eq!(rates.of(OUTCOMES, "local_syn"), Some(0.0));
        assert_eq!(rates.of(HOOKS, "sessions_opened"), Some(2.5));
        assert_eq!(rates.of(GOSSIP, "records_applied"), Some(2.5));
        assert_eq!(rates.of(INTERFACES, "eth0 rx_xdp_tx_errors"), Some(0.0));
        assert_eq!(rates.of(GOSSIP, "no_such"), None);
    }

    #[test]
    fn a_counter_that_went_down_or_is_new_has_no_rate() {
        let (before, mut now) = (later(0, 10), later(1, 0));
        let rates = Rates::between(&before, &now);
        assert_eq!(rates.of(OUTCOMES, "forwarded"), None);
        assert_eq!(rates.of(OUTCOMES, "local_syn"), Some(0.0));
        now.outcomes[0].name = "new".to_owned();
        assert_eq!(Rates::between(&before, &now).of(OUTCOMES, "new"), None);
    }

    #[test]
    fn another_agent_goes_on_with_what_the_kernel_counts_and_with_nothing_else() {
        let mut now = later(1, 5);
        now.generation += 1;
        let rates = Rates::between(&sample_stats(), &now);
        assert_eq!(rates.of(OUTCOMES, "forwarded"), Some(5.0));
        assert_eq!(rates.of(HOOKS, "sessions_opened"), Some(5.0));
        assert_eq!(rates.of(HOOKS, "sessions_audits"), None);
        assert_eq!(rates.of(GOSSIP, "records_applied"), None);
    }

    #[test]
    fn answers_that_have_nothing_to_do_with_each_other_have_no_rates() {
        let mut reborn = later(1, 5);
        reborn.incarnation += 1;
        for now in [reborn, later(0, 5)] {
            assert_eq!(Rates::between(&sample_stats(), &now), Rates::default());
        }
        assert_eq!(
            Rates::between(&later(9, 5), &later(8, 6)),
            Rates::default(),
            "the clock of a kernel that has started anew"
        );
    }

    #[test]
    fn rates_keep_two_digits_that_matter() {
        for (per_s, text) in [
            (None, "-"),
            (Some(0.0), "0"),
            (Some(0.0003), "0.01"),
            (Some(0.05), "0.05"),
            (Some(0.5), "0.5"),
            (Some(9.94), "9.9"),
            (Some(9.96), "10"),
            (Some(1234.5), "1234"),
        ] {
            assert_eq!(shown(per_s), text);
        }
    }
}
