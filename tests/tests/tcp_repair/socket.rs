//! What the tests ask and tell sockets, and waiting for it.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take, on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What of the send queue was never sent (`include/uapi/linux/sockios.h`).
pub const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// Another descriptor of the socket.
pub fn owned(stream: &TcpStream) -> OwnedFd {
    stream.as_fd().try_clone_to_owned().unwrap()
}

/// Waits until a condition holds.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// A length of a queue.
pub fn queued(stream: &TcpStream, request: libc::Ioctl) -> usize {
    let mut value: libc::c_int = 0;
    // SAFETY: these requests write one integer, which outlives the call.
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), request, &raw mut value) };
    assert_eq!(done, 0);
    value as usize
}

/// `TCP_INFO`'s first byte.
pub fn state(stream: &TcpStream) -> u8 {
    int_bytes::<1>(stream, libc::IPPROTO_TCP, libc::TCP_INFO)[0]
}

/// An option that is an integer.
pub fn int(socket: &impl AsFd, level: i32, name: i32) -> i32 {
    i32::from_ne_bytes(int_bytes(socket, level, name))
}

/// The first bytes of an option.
pub fn int_bytes<const N: usize>(socket: &impl AsFd, level: i32, name: i32) -> [u8; N] {
    let (mut value, mut len) = ([0; N], N as libc::socklen_t);
    // SAFETY: the kernel writes at most as many bytes as it is told there are.
    let done = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len)
    };
    assert_eq!(done, 0, "option {level}/{name}");
    value
}

/// Sets one.
pub fn set_int(socket: &impl AsFd, level: i32, name: i32, value: i32) {
    // SAFETY: the value is an integer, as its length says, and outlives the call.
    let done = unsafe {
        let len = size_of_val(&value) as libc::socklen_t;
        let fd = socket.as_fd().as_raw_fd();
        libc::setsockopt(fd, level, name, (&raw const value).cast(), len)
    };
    assert_eq!(
        done,
        0,
        "option {level}/{name}: {}",
        io::Error::last_os_error()
    );
}
