//! A POP at the size the design is meant for, simulated: what gossip costs there
//! and how soon a fault is over.

mod histogram;
mod pop;

use anyhow::{Result, ensure};
use homing_agent::{
    gossip::pacer::{DATAGRAMS_BURST, DATAGRAMS_PER_SECOND},
    pop::{MS, SECOND},
};

pub use self::{
    histogram::Histogram,
    pop::{Measured, Pop, Size},
};

/// The size that the design is meant for.
pub const DESIGN: Size = Size {
    hosts: 1_000,
    domains: 25,
    opens_per_s: 100_000,
};

/// The longest that a POP may take until all of its hosts know each other.
const JOIN_MAX: u64 = 20 * SECOND;
/// How long a part of the story lasts that is measured.
const PART: u64 = SECOND / 2;
/// How long the switch of a rack is out.
const OUTAGE: u64 = SECOND;
/// The longest that a POP may take, once it is quiet, until all hosts agree.
const AGREE_MAX: u64 = 10 * SECOND;

/// What a simulated POP showed.
pub struct Story {
    /// The POP.
    pub size: Size,
    /// Until all hosts knew each other and had pulled each other's sessions, in
    /// seconds.
    pub joined_s: f64,
    /// After the last fault, once nothing opened and closed any more: until every
    /// host knew every other one to be alive and held exactly what it claims, in
    /// seconds.
    pub agreed_s: f64,
    /// Without a fault.
    pub steady: Measured,
    /// After each single fault: its name and what followed.
    pub faults: Vec<(&'static str, Measured)>,
    /// The most datagrams that any host has sent in any second, from the start on.
    pub datagrams_max: u64,
    /// The most bulk messages that any host has had under way at once, from the start on:
    /// at least as many as carriers that it had in use.
    pub carried_max: usize,
}

impl Story {
    /// Bytes of gossip that a host receives for each announcement that it learns.
    pub fn bytes_per_announcement(&self) -> f64 {
        self.steady.gossip_bytes as f64 / self.steady.learned.max(1) as f64
    }

    /// The same with UDP payload alone.
    pub fn payload_per_announcement(&self) -> f64 {
        let headers = pop::HEADERS * self.steady.gossip_datagrams;
        (self.steady.gossip_bytes - headers) as f64 / self.steady.learned.max(1) as f64
    }

    /// The greatest of the faults' times at this share of announcements and hosts,
    /// in milliseconds.
    pub fn convergence_ms(&self, share: f64) -> u64 {
        let faults = self.faults.iter();
        faults
            .map(|(_, measured)| measured.delays.quantile(share))
            .max()
            .unwrap_or(0)
    }
}

/// Simulates a POP of this size: all agents start, sessions open and close, a host
/// dies, the switch of a rack fails and comes back. An error is a POP that did not
/// agree in the end, or a host that sent more than it may.
pub fn play(size: Size, seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Story> {
    let mut pop = Pop::new(size, seed);
    progress("agents start");
    for host in 0..size.hosts {
        pop.start(host);
        pop.run(SECOND / 2 / u64::from(size.hosts));
    }
    loop {
        let (not_alive, differing) = (pop.not_alive(), pop.differing());
        if not_alive + differing == 0 {
            break;
        }
        ensure!(pop.now < JOIN_MAX, "the POP has not joined: {pop:?}");
        progress(&format!(
            "{} ms: hosts join; {not_alive} pairs have not met, {differing} not exchanged sessions",
            pop.now / MS
        ));
        pop.run(100 * MS);
    }
    let joined_s = pop.now as f64 / SECOND as f64;
    let mut part = |pop: &mut Pop, what: &str, time: u64| {
        let end = pop.now + time;
        while pop.now < end {
            progress(&format!("{} ms: {what}", pop.now / MS));
            pop.run((end - pop.now).min(50 * MS));
        }
        pop.measure()
    };
    pop.set_churn(true);
    part(&mut pop, "sessions begin to open and close", PART);
    let steady = part(&mut pop, "steady", PART);
    let mut faults = Vec::new();
    pop.kill(size.hosts / 2);
    faults.push(("a host dies", part(&mut pop, "a host is dead", PART)));
    pop.cut(1);
    let outage = part(&mut pop, "a rack is cut off", OUTAGE);
    faults.push(("a rack's switch fails", outage));
    pop.heal();
    let healed = part(&mut pop, "the rack is back", PART);
    faults.push(("a rack's switch comes back", healed));
    pop.set_churn(false);
    let quiet_at = pop.now;
    while pop.not_alive() + pop.differing() > 0 {
        ensure!(
            pop.now < quiet_at + AGREE_MAX,
            "the POP does not agree in the end: {pop:?}"
        );
        part(&mut pop, "quiet", 100 * MS);
    }
    let agreed_s = (pop.now - quiet_at) as f64 / SECOND as f64;
    let most = pop.datagrams_max();
    ensure!(
        most <= DATAGRAMS_PER_SECOND + DATAGRAMS_BURST,
        "a host sent {most} datagrams in one second"
    );
    Ok(Story {
        size,
        joined_s,
        agreed_s,
        steady,
        faults,
        datagrams_max: most,
        carried_max: pop.carried_max(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pop_agrees_and_the_same_seed_gives_the_same_story() {
        let size = Size {
            hosts: 24,
            domains: 4,
            opens_per_s: 400,
        };
        let [one, same] = [0, 1].map(|_| play(size, 7, &mut |_| ()).unwrap());
        assert_eq!(one.steady.gossip_bytes, same.steady.gossip_bytes);
        assert_eq!(one.convergence_ms(1.0), same.convergence_ms(1.0));
        assert!(one.steady.learned > 23 * 350, "{:?}", one.steady);
        assert!(one.convergence_ms(0.99) < 1_000);
        assert!((1..=16).contains(&one.carried_max), "{}", one.carried_max);
    }
}
