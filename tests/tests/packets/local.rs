//! What this host's own kernel knows: sockets in every state, and SYN cookies.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    process::Command,
};

use homing_common::{host::Encapsulation, outcome::Outcome};
use homing_tests::{
    packet::{SERVICE_V4, SERVICE_V6, Tcp, flags, segment},
    program::{Action, Program, host_1, in_namespace, tunnel_v4},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::common::{assert_end, outer};

fn program() -> Program {
    host_1(tunnel_v4(), Encapsulation::Ipip).unwrap()
}

/// A handshake of this namespace's kernel with a client that the test plays, over
/// a TUN device.
pub struct Handshake {
    _listener: TcpListener,
    _tun: File,
}

impl Handshake {
    /// A handshake by SYN cookie, and the segment that completes it.
    pub fn by_cookie(v4: bool) -> (Self, Tcp) {
        Self::begin(v4, 2)
    }

    /// A handshake that the kernel keeps in mind, and the segment that completes it.
    pub fn by_request(v4: bool) -> (Self, Tcp) {
        Self::begin(v4, 0)
    }

    fn begin(v4: bool, syncookies: u32) -> (Self, Tcp) {
        // A sysctl of this namespace alone; it reads /proc/thread-self.
        fs::write("/proc/sys/net/ipv4/tcp_syncookies", syncookies.to_string()).unwrap();
        let mut tun = open_tun("hm-client");
        for arguments in [
            "link set hm-client up",
            "address add 203.0.113.10/32 dev lo",
            "address add 2001:db8:113::10/128 dev lo nodad",
            // The kernel adds this one too, but later, from a work queue.
            "-6 route add local 2001:db8:113::10/128 dev lo",
            "route add 198.51.100.0/24 dev hm-client",
            "route add 2001:db8:c::/64 dev hm-client",
        ] {
            let status = Command::new("ip").args(arguments.split(' ')).status();
            assert!(status.unwrap().success(), "ip {arguments}");
        }
        let service = if v4 { SERVICE_V4 } else { SERVICE_V6 };
        let listener = TcpListener::bind(service).unwrap();
        let syn = segment(v4, flags::SYN);
        tun.write_all(&syn.ip().bytes()).unwrap();
        let header_len = if v4 { 20 } else { 40 };
        let answer = loop {
            wait_readable(&tun);
            let mut packet = vec![0; 2048];
            let len = tun.read(&mut packet).unwrap();
            packet.truncate(len);
            let protocol = if v4 { packet[9] } else { packet[6] };
            // The kernel also sends router solicitations and the like.
            if packet[0] >> 4 == if v4 { 4 } else { 6 } && protocol == 6 {
                break packet.split_off(header_len);
            }
        };
        assert_eq!(answer[13], flags::SYN | flags::ACK);
        let isn = u32::from_be_bytes(answer[4..8].try_into().unwrap());
        let mut ack = segment(v4, flags::ACK);
        ack.seq = syn.seq + 1;
        ack.ack = isn.wrapping_add(1);
        let handshake = Self {
            _listener: listener,
            _tun: tun,
        };
        (handshake, ack)
    }
}

/// Waits until the kernel has sent something; says what it counted if it does not.
fn wait_readable(tun: &File) {
    let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::from(10_000u16)).unwrap() > 0 {
        return;
    }
    let counted = ["netstat", "snmp", "snmp6", "dev", "ipv6_route"].map(|name| {
        let path = format!("/proc/thread-self/net/{name}");
        fs::read_to_string(&path).unwrap_or_else(|error| format!("{path}: {error}"))
    });
    panic!("the kernel answers nothing: {}", counted.join("\n"));
}

/// Opens a TUN device of this thread's network namespace.
fn open_tun(name: &str) -> File {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0u8; 40]; // struct ifreq
    request[..name.len()].copy_from_slice(name.as_bytes());
    let kind = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&kind.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which is 40 bytes long.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    tun
}

#[test]
fn an_established_session() {
    in_namespace(|| {
        let mut program = program();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let service = listener.local_addr().unwrap().to_string();
            let client = TcpStream::connect(&service).unwrap();
            let source = client.local_addr().unwrap().to_string();
            program.add_service(&service).unwrap();
            for flags in [flags::ACK, flags::RST, flags::FIN | flags::ACK] {
                let frame = Tcp::new(&source, &service, flags).frame();
                let run = program.run(&frame).unwrap();
                assert_end(&run, Action::Pass, Outcome::LocalSocket);
                assert_eq!(run.frame, frame);
            }
        }
    });
}

#[test]
fn an_ipv4_session_of_a_dual_stack_listener() {
    in_namespace(|| {
        let mut program = program();
        let listener = TcpListener::bind("[::]:0").unwrap();
        let service = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let client = TcpStream::connect(&service).unwrap();
        let source = client.local_addr().unwrap().to_string();
        program.add_service(&service).unwrap();
        let run = program.run(&Tcp::new(&source, &service, flags::ACK).frame());
        assert_end(&run.unwrap(), Action::Pass, Outcome::LocalSocket);
    });
}

#[test]
fn a_session_in_time_wait() {
    in_namespace(|| {
        let mut program = program();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap().to_string();
        let mut client = TcpStream::connect(&service).unwrap();
        let source = client.local_addr().unwrap().to_string();
        let (server, _) = listener.accept().unwrap();
        // The server closes first, and so it is the one that waits.
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        program.add_service(&service).unwrap();
        let run = program.run(&Tcp::new(&source, &service, flags::ACK).frame());
        assert_end(&run.unwrap(), Action::Pass, Outcome::LocalSocket);
    });
}

#[test]
fn a_handshake_in_progress() {
    for v4 in [true, false] {
        in_namespace(|| {
            let mut program = program();
            let (_handshake, ack) = Handshake::by_request(v4);
            let run = program.run(&ack.frame()).unwrap();
            assert_end(&run, Action::Pass, Outcome::LocalSocket);
        });
    }
}

#[test]
fn a_cookie_of_this_kernel_and_no_other() {
    for v4 in [true, false] {
        in_namespace(|| {
            let mut program = program();
            let (_handshake, ack) = Handshake::by_cookie(v4);
            let frame = ack.frame();
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Pass, Outcome::LocalCookie);
            assert_eq!(run.frame, frame);
            let arriving = outer(&program, 2, 1, &ack.ip(), 0).frame(&[]);
            let run = program.run(&arriving).unwrap();
            assert_end(&run, Action::Pass, Outcome::StrippedCookie);
            assert_eq!(run.frame, frame);

            // Its lowest bits carry the MSS, so a near number may be a cookie too.
            let mut guessed = ack.clone();
            guessed.ack = guessed.ack.wrapping_add(0x0010_0000);
            let run = program.run(&guessed.frame()).unwrap();
            assert_end(&run, Action::Drop, Outcome::Asked);
            // No segment but the one that completes a handshake carries a cookie.
            for flags in [
                flags::RST,
                flags::RST | flags::ACK,
                flags::SYN | flags::ACK,
                0,
            ] {
                let mut other = ack.clone();
                other.flags = flags;
                let run = program.run(&other.frame()).unwrap();
                assert_end(&run, Action::Pass, Outcome::Unknown);
            }
        });
    }
}

#[test]
fn a_listener_alone_owns_nothing() {
    in_namespace(|| {
        let mut program = program();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap().to_string();
        program.add_service(&service).unwrap();
        for (flags, action, outcome) in [
            (flags::SYN, Action::Pass, Outcome::LocalSyn),
            (flags::ACK, Action::Drop, Outcome::Asked),
            (flags::FIN | flags::ACK, Action::Drop, Outcome::Asked),
            (flags::SYN | flags::ACK, Action::Pass, Outcome::Unknown),
            (flags::SYN | flags::FIN, Action::Pass, Outcome::Unknown),
            (flags::SYN | flags::RST, Action::Pass, Outcome::Unknown),
            (flags::RST, Action::Pass, Outcome::Unknown),
            (flags::RST | flags::ACK, Action::Pass, Outcome::Unknown),
            (flags::FIN, Action::Pass, Outcome::Unknown),
            (0, Action::Pass, Outcome::Unknown),
        ] {
            let frame = Tcp::new("127.0.0.9:1234", &service, flags).frame();
            let run = program.run(&frame).unwrap();
            assert_end(&run, action, outcome);
        }
    });
}
