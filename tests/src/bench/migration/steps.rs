//! Where the time of moves goes, step by step, as the agents see it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::site::{HOSTS, Site};

/// Time spent in each step: of both hosts together, because sessions go to and fro.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steps(BTreeMap<(String, u64), Spent>);

/// Of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Spent {
    times: u64,
    us: u64,
}

impl Steps {
    /// So far.
    pub fn of(site: &mut Site) -> Result<Self> {
        let mut steps = Self::default();
        for host in HOSTS {
            let moves = site.admin(host).get("/stats")?;
            steps.add(&moves["steps"])?;
        }
        Ok(steps)
    }

    fn add(&mut self, steps: &Value) -> Result<()> {
        for (number, step) in steps
            .as_array()
            .context("no steps of moves")?
            .iter()
            .enumerate()
        {
            let word = |name: &str| {
                step[name]
                    .as_str()
                    .with_context(|| format!("no {name}: {step}"))
            };
            let count = |name: &str| {
                step[name]
                    .as_u64()
                    .with_context(|| format!("no {name}: {step}"))
            };
            // The agent lists them in the order in which they are taken.
            let key = (
                word("side")?.to_owned() + "." + word("step")?,
                number as u64,
            );
            let spent = self.0.entry(key).or_default();
            spent.times += count("times")?;
            spent.us += count("sum_us")?;
        }
        Ok(())
    }

    /// What has been added since.
    pub fn since(mut self, before: &Self) -> Self {
        for (key, spent) in &mut self.0 {
            let earlier = before.0.get(key).copied().unwrap_or_default();
            spent.times -= earlier.times;
            spent.us -= earlier.us;
        }
        self
    }

    /// Each step and its mean, in order.
    pub fn means(&self) -> Vec<(&str, f64)> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by_key(|((_, number), _)| *number);
        let mean = |spent: &Spent| spent.us as f64 / spent.times.max(1) as f64;
        all.into_iter()
            .map(|((name, _), spent)| (name.as_str(), mean(spent)))
            .collect()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let mut json = json!({});
        for (name, mean) in self.means() {
            json[name] = super::super::measure::round(mean).into();
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_what_was_added_on_both_hosts() {
        let of = |times: u64, us: u64| {
            json!([
                { "side": "source", "step": "reading", "times": times, "sum_us": us },
                { "side": "target", "step": "adopting", "times": 0, "sum_us": 0 },
            ])
        };
        let mut before = Steps::default();
        before.add(&of(10, 1_000)).unwrap();
        let mut after = Steps::default();
        after.add(&of(12, 1_050)).unwrap();
        after.add(&of(2, 150)).unwrap();
        let steps = after.since(&before);
        let means = [("source.reading", 50.0), ("target.adopting", 0.0)];
        assert_eq!(steps.means(), means);
        assert_eq!(steps.json()["source.reading"], 50.0);
    }
}
