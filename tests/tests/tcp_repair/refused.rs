//! What cannot be carried is refused before anything happens to it, and goes on.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

use homing_agent::datapath::repair::{Error, Frozen, QUEUE_MAX, Refusal, check};
use libc::{IPPROTO_TCP, SOL_SOCKET};
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    case::{Case, Pop, Shut},
    machine::Machine,
    socket::{owned, queued, set_int, state, until},
    switch::A,
};

fn refusal(socket: &impl AsFd) -> Refusal {
    match check(socket.as_fd()) {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

/// A machine that talks to itself.
fn alone(what: impl FnOnce() + Send) {
    Machine::new(&[], &[]).on(what);
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    pair_of(&listener)
}

fn pair_of(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// It was not touched.
fn goes_on(mut client: TcpStream, mut server: TcpStream) {
    client.write_all(b"question").unwrap();
    let mut buffer = [0; 8];
    server.read_exact(&mut buffer).unwrap();
    server.write_all(&buffer).unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"question");
}

#[test]
fn an_open_connection_is_not_refused() {
    alone(|| {
        let (mut client, server) = pair();
        client.write_all(b"unread").unwrap();
        until("it arrives", || queued(&server, libc::FIONREAD) == 6);
        let queues = check(server.as_fd()).unwrap();
        assert_eq!((queues.to_send, queues.unread), (0, 6));
    });
}

#[test]
fn what_is_no_tcp_connection_is_refused() {
    alone(|| {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(refusal(&udp), Refusal::NotTcp);
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(refusal(&unix), Refusal::NotTcp);
        let fresh = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert_eq!(refusal(&fresh), Refusal::State("CLOSED"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(refusal(&listener), Refusal::State("LISTEN"));
        let entered = Frozen::enter(listener.as_fd().try_clone_to_owned().unwrap());
        assert!(matches!(
            entered,
            Err(Error::Refused(Refusal::State("LISTEN")))
        ));
    });
}

#[test]
fn connections_that_both_sides_have_shut_down_are_refused() {
    let pop = Pop::new(&Case::new());
    let talk = pop.connect();
    talk.client.shutdown(Shutdown::Write).unwrap();
    until("the client's FIN is there", || state(&talk.server) == 8);
    pop.switch.park();
    talk.server.shutdown(Shutdown::Write).unwrap();
    let refused = pop.switch.host(A).on(|| refusal(&talk.server));
    assert_eq!(refused, Refusal::State("LAST_ACK"));

    let pop = Pop::new(&Case::new());
    let talk = pop.connect();
    pop.switch.freeze();
    talk.server.shutdown(Shutdown::Write).unwrap();
    talk.client.shutdown(Shutdown::Write).unwrap();
    // The host hears of the client's FIN, and not that its own has arrived.
    pop.switch.mute();
    pop.switch.owned_by(A);
    pop.switch.feed();
    until("both have shut down", || state(&talk.server) == 11);
    let refused = pop.switch.host(A).on(|| refusal(&talk.server));
    assert_eq!(refused, Refusal::State("CLOSING"));
}

#[test]
fn multipath_connections_are_refused() {
    alone(|| {
        let socket = || {
            let protocol = Some(socket2::Protocol::from(262));
            Socket::new(Domain::IPV4, Type::STREAM, protocol).expect("this kernel has no MPTCP")
        };
        let listener = socket();
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(1).unwrap();
        let listener = TcpListener::from(listener);
        let client = socket();
        client
            .connect(&listener.local_addr().unwrap().into())
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(refusal(&server), Refusal::Mptcp);
        goes_on(client.into(), server);
        // A client without it gets a plain connection of the same listener.
        let (client, server) = pair_of(&listener);
        check(server.as_fd()).unwrap();
        goes_on(client, server);
    });
}

#[test]
fn signed_connections_are_refused() {
    alone(|| {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let at = listener.local_addr().unwrap();
            let client = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
            sign(&listener, &at.into());
            sign(&client, &at.into());
            client.connect(&at.into()).unwrap();
            let (server, _) = listener.accept().unwrap();
            assert_eq!(refusal(&server), Refusal::Signed("MD5"));
            goes_on(client.into(), server);
        }
    });
}

/// Gives a socket a key for what it says to an address, and hears from there.
fn sign(socket: &impl AsFd, peer: &socket2::SockAddr) {
    // `struct tcp_md5sig`: an address in 128 bytes, flags, prefix length, key length,
    // interface, key.
    let mut request = [0u8; 128 + 8 + 80];
    let len = peer.len() as usize;
    // SAFETY: the address is as long as it says.
    let address = unsafe { std::slice::from_raw_parts(peer.as_ptr().cast::<u8>(), len) };
    request[..len].copy_from_slice(address);
    // The key is for every port there.
    request[2..4].fill(0);
    request[130..132].copy_from_slice(&3u16.to_ne_bytes());
    request[136..139].copy_from_slice(b"key");
    // SAFETY: the request is as long as told and outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            IPPROTO_TCP,
            libc::TCP_MD5SIG,
            request.as_ptr().cast(),
            request.len() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn urgent_data_is_refused_until_it_is_read() {
    alone(|| {
        let (client, mut server) = pair();
        SockRef::from(&client).send_out_of_band(b"!").unwrap();
        until("it arrives", || check(server.as_fd()).is_err());
        assert_eq!(refusal(&server), Refusal::Urgent);
        let mut urgent = [std::mem::MaybeUninit::new(0)];
        SockRef::from(&server)
            .recv_out_of_band(&mut urgent)
            .unwrap();
        (&client).write_all(b"more").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        check(server.as_fd()).unwrap();
        goes_on(client, server);
    });
}

#[test]
fn more_data_than_there_is_room_for_is_refused() {
    alone(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_int(&listener, SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20);
        let (mut client, mut server) = pair_of(&listener);
        let len = QUEUE_MAX as usize + 1;
        client.write_all(&vec![7; len]).unwrap();
        until("it arrives", || queued(&server, libc::FIONREAD) == len);
        let refused = Refusal::TooMuch {
            what: "read",
            bytes: len as u32,
        };
        assert_eq!(refusal(&server), refused);
        server.read_exact(&mut [0]).unwrap();
        check(server.as_fd()).unwrap();
    });
}

#[test]
fn link_local_addresses_are_refused() {
    let address = "fe80::7/64";
    Machine::new(&[address], &[]).on(|| {
        let scope = nix::net::if_::if_nametoindex("lo").unwrap();
        let ip = "fe80::7".parse().unwrap();
        let at = std::net::SocketAddrV6::new(ip, 0, 0, scope);
        let (client, server) = pair_of(&TcpListener::bind(at).unwrap());
        assert!(matches!(refusal(&server), Refusal::LinkLocal(_)));
        goes_on(client, server);
    });
}

/// It can be told in repair mode alone, which the socket has left when this is told.
#[test]
fn a_socket_in_a_sockmap_is_refused() {
    alone(|| {
        let (client, server) = pair();
        let map = sockmap();
        insert(&map, &server);
        check(server.as_fd()).unwrap();
        let entered = Frozen::enter(owned(&server));
        assert!(
            matches!(entered, Err(Error::Refused(Refusal::Sockmap))),
            "{entered:?}"
        );
        drop(map);
        goes_on(client, server);
    });
}

/// A sockmap of one socket, without programs.
fn sockmap() -> OwnedFd {
    const BPF_MAP_CREATE: libc::c_long = 0;
    const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
    // Type, sizes of key and value, entries.
    let mut request = [0u8; 128];
    for (at, value) in [BPF_MAP_TYPE_SOCKMAP, 4, 4, 1].into_iter().enumerate() {
        request[at * 4..][..4].copy_from_slice(&value.to_ne_bytes());
    }
    // SAFETY: the kernel returns a descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(bpf(BPF_MAP_CREATE, &request) as i32) }
}

fn insert(map: &OwnedFd, socket: &TcpStream) {
    const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
    let (key, value) = (0u32, socket.as_raw_fd());
    let mut request = [0u8; 128];
    request[..4].copy_from_slice(&map.as_raw_fd().to_ne_bytes());
    request[8..16].copy_from_slice(&(&raw const key as u64).to_ne_bytes());
    request[16..24].copy_from_slice(&(&raw const value as u64).to_ne_bytes());
    bpf(BPF_MAP_UPDATE_ELEM, &request);
}

fn bpf(command: libc::c_long, request: &[u8]) -> libc::c_long {
    // SAFETY: the request is as long as told; what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, request.as_ptr(), request.len()) };
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}

/// Whatever the application does at the same time, what cannot be carried is told, and
/// what can goes on.
#[test]
fn asking_changes_nothing() {
    let pop = Pop::new(&Case::new());
    let mut talk = pop.connect();
    thread::scope(|scope| {
        let server = talk.server.try_clone().unwrap();
        let asking = scope.spawn(move || {
            let asked = pop
                .switch
                .host(A)
                .on(|| (0..200).all(|_| check(server.as_fd()).is_ok()));
            (asked, pop)
        });
        talk.go_on(400_000, Shut::Nobody);
        assert!(asking.join().unwrap().0);
    });
}
