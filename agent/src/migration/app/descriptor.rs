//! What an application's descriptors are: the agent does with them what applications have
//! no right to, so it looks first.

use std::os::fd::AsFd;

use homing_client::wire::Family;
use homing_common::{net::TCP, session::Tuple};
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

/// Whether it is a socket of that very connection.
pub(super) fn is_of(descriptor: impl AsFd, session: &Tuple) -> Result<(), &'static str> {
    let socket = SockRef::from(&descriptor);
    family(&socket)?;
    match ends(&socket) {
        (Some(local), Some(peer)) if Tuple::between(peer, local, TCP) == *session => Ok(()),
        (_, None) => Err("it is not connected"),
        _ => Err("it is of another connection"),
    }
}

/// Whether it is a socket of that family with which nothing was done yet.
pub(super) fn is_fresh(descriptor: impl AsFd, wanted: Family) -> Result<(), &'static str> {
    let socket = SockRef::from(&descriptor);
    if family(&socket)? != wanted {
        return Err("it is of the other family");
    }
    match ends(&socket) {
        (Some(local), None) if local.port() == 0 => Ok(()),
        _ => Err("it is not a fresh socket"),
    }
}

/// Whether it can be what is pending of a session: a TCP socket, and not of another
/// connection. A connection that was moved away has no ends any more, and a socket for
/// one to come may have none yet.
pub(super) fn may_be_of(descriptor: impl AsFd, session: &Tuple) -> Result<(), &'static str> {
    let socket = SockRef::from(&descriptor);
    family(&socket)?;
    match ends(&socket).1 {
        Some(_) => is_of(descriptor, session),
        None => Ok(()),
    }
}

fn family(socket: &SockRef<'_>) -> Result<Family, &'static str> {
    if !matches!(socket.r#type(), Ok(Type::STREAM)) {
        return Err("it is no stream socket");
    }
    match socket.protocol() {
        Ok(Some(Protocol::TCP)) => {}
        Ok(Some(Protocol::MPTCP)) => return Err("it is a socket of MPTCP"),
        _ => return Err("it is no socket of TCP"),
    }
    match socket.domain() {
        Ok(Domain::IPV4) => Ok(Family::V4),
        Ok(Domain::IPV6) => Ok(Family::V6),
        _ => Err("it is of neither IPv4 nor IPv6"),
    }
}

type End = Option<std::net::SocketAddr>;

/// Local and remote.
fn ends(socket: &SockRef<'_>) -> (End, End) {
    let endpoint = |address: std::io::Result<SockAddr>| address.ok()?.as_socket();
    (endpoint(socket.local_addr()), endpoint(socket.peer_addr()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use socket2::Socket;

    use super::*;

    fn pair(address: &str) -> (TcpStream, TcpStream, Tuple) {
        let listener = TcpListener::bind(address).expect("listen");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (server, peer) = listener.accept().expect("accept");
        let session = Tuple::between(peer, server.local_addr().expect("address"), TCP);
        (client, server, session)
    }

    #[test]
    fn only_the_connection_itself_is_taken() {
        let (client, server, session) = pair("127.0.0.1:0");
        let (_client, other, _) = pair("127.0.0.1:0");
        assert_eq!(is_of(&server, &session), Ok(()));
        assert_eq!(may_be_of(&server, &session), Ok(()));
        let another = Err("it is of another connection");
        assert_eq!(is_of(&other, &session), another);
        assert_eq!(may_be_of(&other, &session), another);
        assert_eq!(is_of(&client, &session), another, "its other end");
        assert!(is_of(std::io::stdin(), &session).is_err());
        let udp = UdpSocket::bind("127.0.0.1:0").expect("udp");
        assert_eq!(is_of(&udp, &session), Err("it is no stream socket"));
    }

    #[test]
    fn a_connection_over_ipv4_on_a_socket_of_ipv6_is_one_of_ipv4() {
        let listener = TcpListener::bind("[::]:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        let client = client.local_addr().expect("address");
        let service = ([127, 0, 0, 1], port).into();
        assert_eq!(
            is_of(&server, &Tuple::between(client, service, TCP)),
            Ok(())
        );
    }

    #[test]
    fn only_a_fresh_socket_of_the_family_is_taken() {
        let new = |domain| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).expect("socket");
        let (v4, v6) = (new(Domain::IPV4), new(Domain::IPV6));
        assert_eq!(is_fresh(&v4, Family::V4), Ok(()));
        assert_eq!(is_fresh(&v6, Family::V6), Ok(()));
        assert_eq!(is_fresh(&v6, Family::V4), Err("it is of the other family"));
        let (_client, server, session) = pair("127.0.0.1:0");
        let used = Err("it is not a fresh socket");
        assert_eq!(is_fresh(&server, Family::V4), used);
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        assert_eq!(is_fresh(&listener, Family::V4), used);
        assert_eq!(may_be_of(&v4, &session), Ok(()));
        let unix = std::os::unix::net::UnixStream::pair().expect("pair").0;
        assert_eq!(is_fresh(&unix, Family::V4), Err("it is no socket of TCP"));
    }
}
