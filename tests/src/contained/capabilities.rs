//! What no program in a contained root may do: change the kernel for the whole machine, whatever
//! namespaces there are. A clock that is set there is set for everybody.

use std::{fs, io};

/// The capabilities that are withheld, by their numbers in `linux/capability.h`.
const WITHHELD: [(u32, &str); 10] = [
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

/// Keeps them from whatever this process becomes next (execve(2)), and from all its children.
/// Makes system calls and nothing else.
pub(super) fn withhold() -> io::Result<()> {
    for (number, _) in WITHHELD {
        // SAFETY: this option takes a number, and no pointer.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Those of them that what this process becomes could still have.
pub(super) fn left() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let bound = lines.find_map(|line| line.strip_prefix("CapBnd:"));
    // What cannot be read is held for everything.
    let bound = bound.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let bound = bound.unwrap_or(u64::MAX);
    let held = WITHHELD
        .iter()
        .filter(|(number, _)| bound & (1 << number) != 0);
    held.map(|(_, name)| *name).collect()
}
