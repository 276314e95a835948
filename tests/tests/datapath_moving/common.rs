//! What the topics share.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
};

use homing_agent::datapath::{Datapath, moving::Move};
use homing_common::{
    host::HostId,
    net::{Port, Service, TCP},
    outcome::Hook,
    session::Tuple,
};
use homing_tests::sandbox::{Sandbox, ip};
use socket2::{Domain, SockRef, Socket, Type};

/// The move of the tests.
pub const MOVE: Move = Move {
    number: 0x1234_5678_9abc_def0,
    peer: HostId(2),
    generation: 3,
};

/// The fast path on one end of a link, and a service.
pub fn load(sandbox: &Sandbox, service: SocketAddr) -> Datapath {
    ip("link add eth0 address 02:00:00:00:00:01 type veth \
         peer name peer0 address 02:00:00:00:00:fe");
    ip("link set eth0 up");
    ip("link set peer0 up");
    let mut datapath = Datapath::load(&sandbox.options(&["eth0"])).unwrap();
    let service = Service::new(service.ip().into(), Port::new(service.port()), TCP);
    datapath.services.sync(&[service]).unwrap();
    datapath
}

pub fn hook(datapath: &Datapath, hook: Hook) -> u64 {
    datapath.stats.hook(hook).unwrap()
}

/// A connection: the client's end and the server's.
pub fn connect(listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(to).unwrap();
    (client, listener.accept().unwrap().0)
}

/// The session of a connection, by the client's end.
pub fn session(client: &TcpStream) -> Tuple {
    let (client, service) = (client.local_addr(), client.peer_addr());
    Tuple::between(client.unwrap(), service.unwrap(), TCP)
}

/// Sets an option of TCP to a number.
pub fn set_tcp(socket: &impl AsRawFd, option: i32, value: i32) {
    // SAFETY: the value is as long as is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// The kernel's cookie of a socket.
pub fn cookie(socket: &impl AsRawFd) -> u64 {
    let mut cookie = 0u64;
    let mut len = size_of_val(&cookie) as u32;
    // SAFETY: the value is as long as is told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    cookie
}

/// A connected socket made of nothing, as the target of a move makes it.
pub fn restore(service: SocketAddr, client: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(service), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    set_tcp(&socket, libc::TCP_REPAIR, 1);
    socket.bind(&service.into()).unwrap();
    socket.connect(&client.into()).unwrap();
    socket
}

/// Destroys a socket without a packet, for every holder, as the source of a move does.
pub fn destroy(socket: &impl AsRawFd) {
    set_tcp(socket, libc::TCP_REPAIR, 1);
    let nowhere = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as u16,
        sa_data: [0; 14],
    };
    // SAFETY: the address is as long as is told.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const nowhere,
            size_of_val(&nowhere) as u32,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Resets a connection, so that no TIME_WAIT keeps its ports.
pub fn reset(socket: TcpStream) {
    let linger = SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO));
    linger.unwrap();
}
