//! What can go wrong when the fast path is put in force or taken away: what was
//! attempted, on what, why it failed, and what to do.

use std::{io, path::PathBuf};

/// Why the fast path could not be loaded or unloaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no BPF file system to pin to.
    #[error(
        "cannot pin to {pin_dir}: {mount_point} is no BPF file system; mount one with \
         `mount -t bpf bpf {mount_point}`"
    )]
    NoBpfFs {
        /// Where the pins would be.
        pin_dir: PathBuf,
        /// What would have to be one.
        mount_point: PathBuf,
    },
    /// Another process holds the instance.
    #[error(
        "another agent is running with the pins in {pin_dir}; stop it first, or give this one \
         another `instance`"
    )]
    Busy {
        /// The instance's pins.
        pin_dir: PathBuf,
    },
    /// The kernel did not take the object.
    #[error("cannot load the kernel programs: {why}{}", hint(.why))]
    Load {
        /// The kernel's or the loader's reason.
        why: String,
    },
    /// An interface of the configuration does not exist.
    #[error("cannot attach XDP to {interface}: {why}; `ip link` lists the interfaces there are")]
    NoInterface {
        /// Its name.
        interface: String,
        /// The kernel's reason.
        why: io::Error,
    },
    /// XDP could not be attached.
    #[error("cannot attach XDP to {interface}: {why}")]
    AttachXdp {
        /// The interface.
        interface: String,
        /// Why, and what to do.
        why: String,
    },
    /// This kernel cannot run programs on what leaves an interface by a link.
    #[error(
        "cannot attach to what leaves by {interface}: the kernel has no tcx links, which came with \
         Linux 6.6"
    )]
    NoEgress {
        /// The interface.
        interface: String,
    },
    /// The egress program could not be attached.
    #[error("cannot attach to what leaves by {interface}: {why}{}", remedy(.why))]
    AttachEgress {
        /// The interface.
        interface: String,
        /// The kernel's reason.
        why: io::Error,
    },
    /// The hooks on sockets could not be attached.
    #[error("cannot attach to the cgroup {cgroup}: {why}")]
    AttachCgroup {
        /// The cgroup.
        cgroup: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Reading or writing a pin failed.
    #[error("cannot {action} {path}: {error}{}", remedy(.error))]
    Pin {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// Opening or preparing a map failed.
    #[error("cannot prepare the map {name}: {error}{}", remedy(.error))]
    Map {
        /// Which map.
        name: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl Error {
    /// For use with `map_err`: an error of `action` on `path`.
    pub(super) fn pin<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |error| Self::Pin {
            action,
            path,
            error: error.into(),
        }
    }

    /// For use with `map_err`: an error of a map.
    pub(super) fn map(name: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Map { name, error }
    }
}

/// What an unprivileged user has to do.
fn hint(why: &str) -> &'static str {
    match why.contains("os error 1)") {
        true => PRIVILEGES,
        false => "",
    }
}

const PRIVILEGES: &str =
    "; the agent needs the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root";

/// What to do where the kernel refuses what it has done for others.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PRIVILEGES,
        Some(libc::ENOMEM | libc::ENOSPC | libc::E2BIG) => {
            "; free memory, or make the tables smaller (`limits` in the configuration)"
        }
        _ => {
            "; start the agent again, and if that fails too, remove what is in the kernel by \
             `homing unload` (connections that depend on it break) and start it then"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_says_what_to_do() {
        let text = |number| {
            let error = io::Error::from_raw_os_error(number);
            Error::pin("pin the map", "/sys/fs/bpf/x")(error).to_string()
        };
        assert!(text(libc::EPERM).contains("CAP_BPF"));
        assert!(text(libc::ENOMEM).contains("free memory"));
        assert!(text(libc::EIO).contains("homing unload"));
    }
}
