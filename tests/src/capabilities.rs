//! Capabilities that are kept from processes, by their numbers in `linux/capability.h`.

use std::{fs, io};

/// What the agent has under its unit: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_PERFMON and
/// CAP_BPF.
pub const OF_UNIT: [u32; 4] = [10, 12, 38, 39];

/// What changes the kernel for the whole machine, whatever namespaces there are: a clock that
/// is set in a container is set for everybody.
const OF_MACHINE: [(u32, &str); 10] = [
    (16, "CAP_SYS_MODULE"),
    (17, "CAP_SYS_RAWIO"),
    (22, "CAP_SYS_BOOT"),
    (25, "CAP_SYS_TIME"),
    (27, "CAP_MKNOD"),
    (30, "CAP_AUDIT_CONTROL"),
    (32, "CAP_MAC_OVERRIDE"),
    (33, "CAP_MAC_ADMIN"),
    (34, "CAP_SYSLOG"),
    (35, "CAP_WAKE_ALARM"),
];

/// Keeps all but those of the unit from whatever this process becomes next (execve(2)), and
/// from all its children. Makes system calls and nothing else.
pub fn keep_those_of_unit() -> io::Result<()> {
    for number in 0.. {
        // SAFETY: this option takes a number, and no pointer.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } >= 0;
        if !known {
            break;
        }
        if !OF_UNIT.contains(&number) {
            drop_from_bound(number)?;
        }
    }
    Ok(())
}

/// Keeps those that change the machine from whatever this process becomes next, likewise.
pub fn withhold_those_of_machine() -> io::Result<()> {
    OF_MACHINE
        .iter()
        .try_for_each(|(number, _)| drop_from_bound(*number))
}

/// Those that change the machine and that what this process becomes could have.
pub fn left_of_machine() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let bound = lines.find_map(|line| line.strip_prefix("CapBnd:"));
    // What cannot be read is held for everything.
    let bound = bound.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let bound = bound.unwrap_or(u64::MAX);
    let held = OF_MACHINE
        .iter()
        .filter(|(number, _)| bound & (1 << number) != 0);
    held.map(|(_, name)| *name).collect()
}

fn drop_from_bound(number: u32) -> io::Result<()> {
    // SAFETY: this option takes a number, and no pointer.
    match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
