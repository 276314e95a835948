//! A machine: a network namespace with one interface, the other end of which is a
//! descriptor here.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    panic::resume_unwind,
    thread,
};

use homing_tests::sandbox::ip;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
};

pub struct Machine {
    namespace: File,
    /// Its interface: whole IP packets, one in each read and write.
    tun: File,
}

impl Machine {
    /// A machine with these addresses, which reaches all others by its interface.
    /// (An address is one of its own, not one of a network.) `settings` are lines of `/proc/sys/net/`, path and value.
    pub fn new(addresses: &[&str], settings: &[(&str, String)]) -> Self {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("cannot unshare (are you root?)");
            for (path, value) in settings {
                fs::write(format!("/proc/sys/net/{path}"), value)
                    .unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
            }
            let tun = open_tun();
            ip("link set lo up");
            // No link-local address, no neighbours.
            ip("link set tun0 addrgenmode none");
            ip("link set tun0 mtu 1500 txqueuelen 20000 up");
            for address in addresses {
                if address.contains(':') {
                    // Those that wait to be found unique are not there yet; and even
                    // without that the kernel adds the route to them later.
                    ip(&format!("addr add {address} dev lo nodad"));
                    ip(&format!("-6 route add local {address} dev lo"));
                } else {
                    ip(&format!("addr add {address} dev lo"));
                }
            }
            ip("route add default dev tun0");
            ip("-6 route add default dev tun0");
            let namespace = File::open("/proc/thread-self/ns/net").unwrap();
            Self { namespace, tun }
        })
    }

    /// Runs `what` on this machine. Sockets that it makes stay there.
    pub fn on<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        in_thread(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
            what()
        })
    }

    /// The next packet that the machine sends; none if none comes for a moment.
    pub fn sent<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let mut ready = [PollFd::new(self.tun.as_fd(), PollFlags::POLLIN)];
        // A moment: the switch looks in between whether it is to end.
        if poll(&mut ready, PollTimeout::from(20u8)) != Ok(1) {
            return None;
        }
        let len = (&self.tun).read(buffer).ok()?;
        Some(&buffer[..len])
    }

    /// Gives the machine a packet; its stack has looked at it when this returns.
    pub fn receive(&self, packet: &[u8]) {
        (&self.tun).write_all(packet).unwrap();
    }
}

fn in_thread<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(what).join() {
        Ok(value) => value,
        Err(panic) => resume_unwind(panic),
    })
}

/// From `include/uapi/linux/if_tun.h`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// Makes the interface `tun0`, in this thread's network namespace.
fn open_tun() -> File {
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("this kernel has no TUN devices");
    // `struct ifreq`: a name of 16 bytes, and here flags.
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"tun0");
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the request is as long as the structure that the kernel reads and writes,
    // and outlives the call.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) };
    assert_eq!(made, 0, "cannot make a TUN device");
    tun
}
