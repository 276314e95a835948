//! Counters of the fast path and of the interfaces' drivers, as the API has them.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use homing_common::outcome::{Hook, Outcome, Verdict};

use super::api;
use crate::datapath::{
    flows::FlowCounters, held::HeldCounters, moving::park::ParkCounters, sockets::WatchCounters,
    stats::Counts,
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
    match driver_counters(interface) {
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

// linux/ethtool.h
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETH_SS_STATS: u32 = 1;
const ETH_GSTRING_LEN: usize = 32;

/// More counters than any driver has (256 queues with some 40 each).
const MAX_COUNTERS: usize = 16 << 10;

/// Room for them. Older kernels write all that the driver has at that instant,
/// whatever room the request names, so there must be some left over for queues
/// that come between two requests.
const ROOM_COUNTERS: usize = 2 * MAX_COUNTERS;

/// All counters of an interface's driver, in its order.
fn driver_counters(interface: &str) -> io::Result<Vec<(String, u64)>> {
    // SAFETY: no pointers; the result is checked before it is used.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };

    // struct ethtool_sset_info: cmd, reserved, sset_mask (u64), data[1].
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_STATS, 0, 0];
    ethtool(&socket, interface, &mut info)?;
    let count = info[4] as usize;
    if count == 0 || count > MAX_COUNTERS {
        return Ok(Vec::new());
    }

    // struct ethtool_gstrings: cmd, string_set, len, data[len][32]; the words
    // after the first three hold the names.
    let mut names = vec![0; 3 + ROOM_COUNTERS * ETH_GSTRING_LEN / 4];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_STATS, count as u32]);
    ethtool(&socket, interface, &mut names)?;

    // struct ethtool_stats: cmd, n_stats, data[n_stats] of u64, two words each.
    let mut values = vec![0; 2 + ROOM_COUNTERS * 2];
    values[..2].copy_from_slice(&[ETHTOOL_GSTATS, count as u32]);
    ethtool(&socket, interface, &mut values)?;

    // Queues may have come or gone between the requests.
    let count = count.min(names[2] as usize).min(values[1] as usize);
    let names: Vec<u8> = names[3..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let names = names.chunks_exact(ETH_GSTRING_LEN).take(count).map(|name| {
        let len = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        String::from_utf8_lossy(&name[..len]).into_owned()
    });
    let values = values[2..].chunks_exact(2).map(|pair| {
        let bytes = [pair[0].to_ne_bytes(), pair[1].to_ne_bytes()].concat();
        u64::from_ne_bytes(bytes.try_into().expect("two words"))
    });
    Ok(names.zip(values).collect())
}

/// One request of `ioctl(SIOCETHTOOL)`; `words` is the request and takes the
/// answer.
fn ethtool(socket: &OwnedFd, interface: &str, words: &mut [u32]) -> io::Result<()> {
    // SAFETY: an `ifreq` is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    // One byte is left for the zero at the end.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the kernel reads the request and writes at `ifru_data` what the driver
    // has: one word for the count, or names or values, for which there is room for
    // `ROOM_COUNTERS`, twice what any driver has. Both live until the call returns.
    // The alignment of u32 suffices: the kernel copies bytes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
