//! Counters of the fast path and of the interfaces' drivers, as the API has them.

use std::{
    collections::BTreeMap,
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use homing_common::outcome::{Hook, Outcome, Verdict};

use super::api;
use crate::datapath::{
    ethtool, flows::FlowCounters, held::HeldCounters, moving::park::ParkCounters,
    sockets::WatchCounters, stats::Counts,
};
use crate::migration::StepTime;

/// How packets' ways through XDP ended.
pub fn outcomes(counts: &Counts) -> Vec<api::Outcome> {
    let outcomes = Outcome::ALL.iter();
    let outcomes = outcomes.map(|outcome| api::Outcome {
        name: outcome.label().to_owned(),
        verdict: verdict_label(outcome.verdict()).to_owned(),
        packets: counts.outcome(*outcome),
        help: sentence(outcome.help()),
    });
    outcomes.collect()
}

/// What the hooks on sockets counted.
pub fn hooks(counts: &Counts) -> Vec<api::Counter> {
    let hooks = Hook::ALL.iter().map(|hook| api::Counter {
        name: hook.label().to_owned(),
        count: counts.hook(*hook),
        help: sentence(hook.help()),
    });
    hooks.collect()
}

/// What is counted beside the hooks: comparisons with the kernel's sockets, fragments that
/// are held, and flows.
pub fn beside_hooks(
    watched: &WatchCounters,
    held: &HeldCounters,
    flows: &FlowCounters,
) -> Vec<api::Counter> {
    let mut counters = Vec::from(self::watched(watched));
    counters.extend(self::held(held));
    counters.extend(self::flows(flows));
    counters
}

/// What holding fragments counted.
fn held(counts: &HeldCounters) -> impl Iterator<Item = api::Counter> {
    counts.iter().map(|(name, help, count)| api::Counter {
        name: name.to_owned(),
        count,
        help: help.to_owned(),
    })
}

/// What became of packets of sessions that were moving here.
pub fn parked(counts: &ParkCounters) -> Vec<api::Counter> {
    let counters = [
        (
            "held",
            &counts.held,
            "Packets held until their session is served",
        ),
        (
            "fed",
            &counts.fed,
            "Packets given to their session's socket",
        ),
        (
            "late",
            &counts.late,
            "Packets given to their session's socket that were read after it was served",
        ),
        (
            "refused",
            &counts.refused,
            "Packets that the kernel did not take back",
        ),
        (
            "dropped",
            &counts.dropped,
            "Packets dropped because their move was given up",
        ),
        (
            "session_full",
            &counts.session_full,
            "Packets dropped because so many of their session waited as may",
        ),
        (
            "full",
            &counts.full,
            "Packets dropped because so many of all sessions waited as may",
        ),
        (
            "malformed",
            &counts.malformed,
            "Records dropped because they are of another version's programs",
        ),
    ];
    let counters = counters.map(|(name, count, help)| counter(name, count, help));
    counters.into()
}

/// How long moves stood at a step, as the API has it.
pub fn step(step: &StepTime) -> api::StepTime {
    api::StepTime {
        side: step.side.to_owned(),
        step: step.step.to_owned(),
        times: step.times,
        sum_us: step.sum_us,
        p50_us: step.p50_us,
        p99_us: step.p99_us,
    }
}

/// Counters of a part, as the API has them.
pub fn named(
    counters: impl Iterator<Item = (&'static str, &'static str, u64)>,
) -> Vec<api::Counter> {
    let counters = counters.map(|(name, help, count)| api::Counter {
        name: name.to_owned(),
        count,
        help: sentence(help),
    });
    counters.collect()
}

fn counter(name: &str, count: &AtomicU64, help: &str) -> api::Counter {
    api::Counter {
        name: name.to_owned(),
        count: count.load(Ordering::Relaxed),
        help: help.to_owned(),
    }
}

/// What comparisons of `SESSIONS` with the kernel's sockets found.
fn watched(counts: &WatchCounters) -> [api::Counter; 4] {
    [
        counter(
            "sessions_audits",
            &counts.audits,
            "Comparisons of SESSIONS with the kernel's sockets",
        ),
        counter(
            "sessions_audits_failed",
            &counts.failed,
            "Comparisons of SESSIONS with the kernel's sockets that failed",
        ),
        counter(
            "sessions_adopted",
            &counts.adopted,
            "Sessions recorded because their sockets were found",
        ),
        counter(
            "sessions_forgotten",
            &counts.forgotten,
            "Sessions forgotten because their sockets were gone",
        ),
    ]
}

/// What the search for idle flows found.
fn flows(counts: &FlowCounters) -> [api::Counter; 1] {
    [api::Counter {
        name: "flows_expired".to_owned(),
        count: counts.expired.load(Ordering::Relaxed),
        help: "UDP flows that went idle, and with that were closed".to_owned(),
    }]
}

const fn verdict_label(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Forward => "forward",
        Verdict::Drop => "drop",
    }
}

/// A doc comment as the text of a table's cell.
fn sentence(help: &str) -> String {
    help.trim().trim_end_matches('.').to_owned()
}

/// The driver's own counters of packets that XDP was to send and that were not
/// sent: the fast path has counted those as forwarded. Counters of single queues
/// are summed. Empty where the driver has none.
///
/// # Errors
///
/// The interface does not exist, or the driver fails.
pub fn xdp_errors(interface: &str) -> io::Result<BTreeMap<String, u64>> {
    match ethtool::counters(interface) {
        Ok(counters) => Ok(sum_errors(counters)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

fn sum_errors(counters: impl IntoIterator<Item = (String, u64)>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, value) in counters {
        let name = without_queue(&name);
        // Drivers have no common names; `xdp_drops` is what the program dropped.
        let is_error = ["err", "full", "tx_drop", "xmit_drop"]
            .iter()
            .any(|part| name.contains(part));
        if name.contains("xdp") && is_error {
            *sums.entry(name).or_default() += value;
        }
    }
    sums
}

/// `rx_queue_3_xdp_tx_errors` and `rx3_xdp_tx_err` without the queue.
fn without_queue(name: &str) -> String {
    let parts = name.split('_').filter_map(|part| {
        let text = part.trim_end_matches(|c: char| c.is_ascii_digit());
        let is_queue = part == "queue" || text.is_empty();
        (!is_queue).then_some(match text {
            "rx" | "tx" => text,
            _ => part,
        })
    });
    parts.collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_summed_and_only_errors_kept() {
        let counters = [
            ("rx_queue_0_xdp_tx_errors", 1),
            ("rx_queue_11_xdp_tx_errors", 2),
            ("tx_queue_0_xdp_xmit_errors", 4),
            ("rx_queue_0_xdp_drops", 8),
            ("rx_queue_0_drops", 16),
            ("rx3_xdp_tx_full", 32),
            ("rx4_xdp_tx_full", 64),
            ("peer_ifindex", 7),
        ];
        let counters = counters.map(|(name, value)| (name.to_owned(), value));
        let wanted = [
            ("rx_xdp_tx_errors", 3),
            ("rx_xdp_tx_full", 96),
            ("tx_xdp_xmit_errors", 4),
        ];
        let wanted = wanted.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(sum_errors(counters), BTreeMap::from(wanted));
    }

    #[test]
    fn an_interface_without_counters_has_none_and_one_that_is_missing_fails() {
        assert_eq!(xdp_errors("lo").expect("lo"), BTreeMap::new());
        for missing in ["homing-none", "longer-than-a-name-can-be"] {
            assert!(xdp_errors(missing).is_err(), "{missing}");
        }
    }
}
