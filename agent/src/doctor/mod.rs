//! What is wrong with a host, before or while an agent runs on it: found, explained, and how
//! to put it right.
//!
//! [`gather`] reads what there is to read and judges nothing; [`examine`] judges these
//! [`Facts`] and reads nothing. So each check is a pure function, and what cannot be broken
//! on a test machine (a kernel's version, its JIT, the clock) is tested all the same.
//!
//! Nothing is changed, not even to try something out: no program is attached, no port is
//! bound, no lock is taken.

mod facts;
mod files;
mod gather;
mod host;
mod links;
mod offloads;
mod pop;
mod procfs;
#[cfg(test)]
mod sample;

use serde::{Deserialize, Serialize};

pub(crate) use facts::{AgentFacts, Facts};
pub(crate) use gather::gather;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well.
    Ok,
    /// Works, and is worth knowing; or could not be told.
    Note,
    /// Works worse than it could, or will not work under some load.
    Warning,
    /// Does not work.
    Error,
}

impl Level {
    /// The name in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name. Stable: scripts read it.
    pub name: String,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub seen: String,
    /// Why that matters; null where all is well.
    pub why: Option<String>,
    /// A command that puts it right, or what to write into the configuration; null where
    /// there is nothing to do.
    pub fix: Option<String>,
}

/// What all checks found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The worst level among the findings.
    pub worst: Level,
    /// In the order of the checks. A check that finds several things has as many findings.
    pub findings: Vec<Finding>,
}

/// What a check says before its name is put to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    level: Level,
    seen: String,
    why: Option<String>,
    fix: Option<String>,
}

impl Said {
    fn ok(seen: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            seen: seen.into(),
            why: None,
            fix: None,
        }
    }

    /// Something that is not well: why it matters, and what to do.
    fn bad(
        level: Level,
        seen: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            level,
            seen: seen.into(),
            why: Some(why.into()),
            fix: Some(fix.into()),
        }
    }

    /// What could not be read.
    fn unknown(what: &str, reason: &str) -> Self {
        Self {
            level: Level::Note,
            seen: format!("{what}: {reason}"),
            why: Some("this could not be checked".to_owned()),
            fix: None,
        }
    }
}

/// A check: says what it sees, nothing where it does not apply.
type Check = fn(&Facts) -> Vec<Said>;

/// All checks by name, in the order in which a host comes to work.
const CHECKS: [(&str, Check); 24] = [
    ("privileges", host::privileges),
    ("configuration", files::configuration),
    ("kernel_version", host::kernel_version),
    ("kernel_features", host::kernel_features),
    ("jit", host::jit),
    ("clock", host::clock),
    ("bpffs", files::bpffs),
    ("cgroup", files::cgroup),
    ("key_file", files::key_file),
    ("interface", links::interface),
    ("native_xdp", links::native_xdp),
    ("xdp_program", links::xdp_program),
    ("mtu", links::mtu),
    ("rp_filter", links::rp_filter),
    ("vlan_offload", offloads::vlan_offload),
    ("checksum_offload", offloads::checksum_offload),
    ("lro", offloads::lro),
    ("gro", offloads::gro),
    ("fabric_address", pop::fabric_address),
    ("service_addresses", pop::service_addresses),
    ("multicast", pop::multicast),
    ("second_instance", pop::second_instance),
    ("agent", pop::agent),
    ("problem", pop::problem),
];

/// The names of all checks.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(name, _)| *name)
}

/// Judges all that is known.
pub(crate) fn examine(facts: &Facts) -> Report {
    let findings = CHECKS.iter().flat_map(|(name, check)| {
        check(facts).into_iter().map(|said| Finding {
            name: (*name).to_owned(),
            level: said.level,
            seen: said.seen,
            why: said.why,
            fix: said.fix,
        })
    });
    let findings: Vec<Finding> = findings.collect();
    let worst = findings.iter().map(|finding| finding.level).max();
    Report {
        worst: worst.unwrap_or(Level::Ok),
        findings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_sound_host_every_check_is_content() {
        let report = examine(&sample::facts());
        for finding in &report.findings {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
        }
        assert_eq!(report.worst, Level::Ok);
        // Only the agent's own problems have no finding where there are none.
        let speaks = |name: &str| report.findings.iter().any(|f| f.name == name);
        let silent: Vec<_> = names().filter(|name| !speaks(name)).collect();
        assert_eq!(silent, ["problem"]);
    }

    #[test]
    fn what_is_not_well_says_why_and_what_is_wrong_with_one_thing_does_not_show_in_another() {
        let mut facts = sample::facts();
        facts.kernel.jit = Ok(facts::Jit::Off);
        let report = examine(&facts);
        let bad = report.findings.iter().filter(|f| f.level > Level::Ok);
        let bad: Vec<_> = bad.collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert_eq!(
            (bad[0].name.as_str(), report.worst),
            ("jit", Level::Warning)
        );
        assert!(bad[0].why.is_some() && bad[0].fix.is_some(), "{bad:?}");
    }

    #[test]
    fn without_a_configuration_the_host_is_examined_all_the_same() {
        let mut facts = sample::facts();
        let error = crate::config::Config::parse("homing.toml".as_ref(), "x = 1").unwrap_err();
        facts.config = Err(error);
        facts.host = None;
        let report = examine(&facts);
        assert_eq!(report.worst, Level::Error);
        let names: Vec<_> = report.findings.iter().map(|f| f.name.as_str()).collect();
        for name in ["configuration", "kernel_version", "jit", "clock"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(!names.contains(&"mtu"), "{names:?}");
    }
}
