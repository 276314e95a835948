//! Checks of the machine: kernel, rights, clock.

use homing_common::net::UDP;

use super::{
    Level, Said,
    facts::{Facts, Jit},
    procfs,
};
use crate::config::Mss;

/// The oldest kernel that the programs load on.
const OLDEST: (u32, u32) = (6, 1);
/// The first with links to what leaves an interface (tcx).
pub(super) const EGRESS: (u32, u32) = (6, 6);

/// No clock that is right shows less: 2024-01-01.
const EARLIEST_UNIX_MS: u64 = 1_704_067_200_000;

pub(super) fn privileges(facts: &Facts) -> Vec<Said> {
    vec![if facts.is_root {
        Said::ok("root")
    } else {
        Said::bad(
            Level::Warning,
            "not root",
            "the key file, the kernel's programs and other processes can be examined by root alone",
            "sudo homing doctor",
        )
    }]
}

pub(super) fn kernel_version(facts: &Facts) -> Vec<Said> {
    let release = &facts.kernel.release;
    let Some(version) = procfs::version(release) else {
        return vec![Said::unknown("the kernel's version", release)];
    };
    vec![if version < OLDEST {
        Said::bad(
            Level::Error,
            release,
            "the kernel programs need Linux 6.1: older kernels refuse to load them",
            "install a kernel of at least 6.1, such as `apt install linux-image-amd64` on Debian 12",
        )
    } else if version < EGRESS {
        let harmless = facts.config.as_ref().is_ok_and(|config| {
            let udp = config
                .services
                .iter()
                .any(|service| service.protocol == UDP);
            config.tunnel.mss == Mss::Off && !udp
        });
        Said::bad(
            if harmless {
                Level::Note
            } else {
                Level::Warning
            },
            release,
            "before Linux 6.6 no program runs on what leaves an interface: services offer a \
             larger MSS than the tunnel may carry, and answers of UDP services are not seen, so \
             that flows are told of later",
            "install a kernel of at least 6.6; until then give the fabric an MTU with room for \
             the outer header",
        )
    } else {
        Said::ok(release)
    }]
}

pub(super) fn kernel_features(facts: &Facts) -> Vec<Said> {
    let mut said = Vec::new();
    if !facts.kernel.btf {
        said.push(Said::bad(
            Level::Error,
            "/sys/kernel/btf/vmlinux is not there",
            "the kernel does not describe its types (BTF), which loading the programs needs",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are",
        ));
    }
    let mut unknown = Vec::new();
    for (feature, there) in &facts.kernel.features {
        match there {
            Ok(true) => {}
            Ok(false) => said.push(Said::bad(
                Level::Error,
                format!("no {feature}"),
                "the kernel was built without something that the agent cannot do without",
                "use a kernel built with CONFIG_BPF_SYSCALL=y, CONFIG_CGROUP_BPF=y, \
                 CONFIG_NET_CLS_ACT=y and CONFIG_INET_DIAG, as distributions' are; `modprobe -a \
                 inet_diag tcp_diag` loads what is a module",
            )),
            Err(reason) => unknown.push(format!("{feature} ({reason})")),
        }
    }
    if !unknown.is_empty() {
        said.push(Said::unknown("features of the kernel", &unknown.join(", ")));
    }
    if said.is_empty() {
        let count = facts.kernel.features.len();
        said.push(Said::ok(format!("BTF and all {count} that are needed")));
    }
    said
}

pub(super) fn jit(facts: &Facts) -> Vec<Said> {
    vec![match &facts.kernel.jit {
        Ok(Jit::On) => Said::ok("on"),
        Ok(Jit::Off) => Said::bad(
            Level::Warning,
            "off",
            "the kernel interprets its programs instead of running them as machine code: every \
             packet costs many times as much",
            "sysctl -w net.core.bpf_jit_enable=1 && systemctl restart homing",
        ),
        Err(reason) => Said::unknown("net.core.bpf_jit_enable", reason),
    }]
}

pub(super) fn clock(facts: &Facts) -> Vec<Said> {
    let clock = match &facts.clock {
        Ok(clock) => clock,
        Err(reason) => return vec![Said::unknown("the clock", reason)],
    };
    vec![if clock.now_unix_ms < EARLIEST_UNIX_MS {
        Said::bad(
            Level::Warning,
            "the clock shows a time long past",
            "a host's life is numbered by the clock: with one that went back, a host that comes \
             back is first taken for an older life of itself, and logs cannot be compared",
            "timedatectl set-ntp true",
        )
    } else if !clock.synchronized {
        // No part of the protocol looks at the time of day.
        Said::bad(
            Level::Note,
            "not synchronized",
            "packets do not depend on it, but logs of different hosts cannot be compared, and \
             `homing_gossip_open_to_applied_seconds` means nothing",
            "timedatectl set-ntp true",
        )
    } else {
        Said::ok("synchronized")
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{facts::Clock, sample};

    fn levels(said: &[Said]) -> Vec<Level> {
        said.iter().map(|said| said.level).collect()
    }

    #[test]
    fn who_is_not_root_is_told() {
        let mut facts = sample::facts();
        assert_eq!(levels(&privileges(&facts)), [Level::Ok]);
        facts.is_root = false;
        assert_eq!(levels(&privileges(&facts)), [Level::Warning]);
    }

    #[test]
    fn a_kernel_is_too_old_or_old_or_neither() {
        let mut facts = sample::facts();
        for (release, level) in [
            ("5.15.0-130-generic", Level::Error),
            ("6.0.19", Level::Error),
            ("6.1.0-28-amd64", Level::Warning),
            ("6.5.0", Level::Warning),
            ("6.6.0", Level::Ok),
            ("7.0.1", Level::Ok),
            ("strange", Level::Note),
        ] {
            facts.kernel.release = release.to_owned();
            assert_eq!(levels(&kernel_version(&facts)), [level], "{release}");
        }
        // Nothing is lost with it where nobody asked for what it lacks.
        facts.kernel.release = "6.1.0".to_owned();
        let config = facts.config.as_mut().unwrap();
        config.tunnel.mss = Mss::Off;
        assert_eq!(levels(&kernel_version(&facts)), [Level::Note]);
        facts.config.as_mut().unwrap().services[0].protocol = UDP;
        assert_eq!(levels(&kernel_version(&facts)), [Level::Warning]);
    }

    #[test]
    fn each_feature_that_is_missing_is_named() {
        let mut facts = sample::facts();
        assert_eq!(levels(&kernel_features(&facts)), [Level::Ok]);
        facts.kernel.btf = false;
        facts.kernel.features = vec![
            ("program type xdp", Ok(true)),
            ("map type ring buffer", Ok(false)),
            ("sockets' diagnosis", Err("not permitted".to_owned())),
        ];
        let said = kernel_features(&facts);
        assert_eq!(levels(&said), [Level::Error, Level::Error, Level::Note]);
        assert!(said[0].seen.contains("btf/vmlinux"), "{said:?}");
        assert_eq!(said[1].seen, "no map type ring buffer");
        assert!(said[2].seen.contains("not permitted"), "{said:?}");
    }

    #[test]
    fn programs_that_are_interpreted_are_named() {
        let mut facts = sample::facts();
        assert_eq!(levels(&jit(&facts)), [Level::Ok]);
        facts.kernel.jit = Ok(Jit::Off);
        let said = jit(&facts);
        assert_eq!(levels(&said), [Level::Warning]);
        let fix = said[0].fix.as_ref().unwrap();
        assert!(
            fix.starts_with("sysctl -w net.core.bpf_jit_enable=1"),
            "{fix}"
        );
        facts.kernel.jit = Err("no such file".to_owned());
        assert_eq!(levels(&jit(&facts)), [Level::Note]);
    }

    #[test]
    fn a_clock_may_run_by_itself_but_not_from_the_start_of_time() {
        let mut facts = sample::facts();
        assert_eq!(levels(&clock(&facts)), [Level::Ok]);
        let now_unix_ms = EARLIEST_UNIX_MS;
        for (synchronized, now_unix_ms, level) in [
            (true, now_unix_ms, Level::Ok),
            (false, now_unix_ms, Level::Note),
            (false, now_unix_ms - 1, Level::Warning),
            (true, 0, Level::Warning),
        ] {
            facts.clock = Ok(Clock {
                synchronized,
                now_unix_ms,
            });
            assert_eq!(levels(&clock(&facts)), [level]);
        }
        facts.clock = Err("not permitted".to_owned());
        assert_eq!(levels(&clock(&facts)), [Level::Note]);
    }
}
