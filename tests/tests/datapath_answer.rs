//! What this host's kernel answers about sessions, asked by its own sockets.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use homing_agent::datapath::{Datapath, answer::found};
use homing_common::{
    ask::{Found, QUESTIONS_MAX, Question},
    net::TCP,
    session::{SessionKey, Tuple},
};
use homing_tests::{
    packet::flags,
    sandbox::{self, Sandbox, ip},
};

const KEY: SessionKey = SessionKey([1, 2]);

fn load(sandbox: &Sandbox) -> Datapath {
    ip("link add eth0 type veth peer name peer0");
    Datapath::load(&sandbox.options(&["eth0"])).unwrap()
}

fn question(client: SocketAddr, service: SocketAddr) -> Question {
    let tuple = Tuple::between(client, service, TCP);
    Question {
        tuple,
        id: tuple.id(&KEY).0,
        seq: [0; 4],
        ack: [0; 4],
        flags: flags::ACK,
        found: 0,
        zero: [0; 6],
    }
}

fn ask(datapath: &Datapath, question: Question) -> Found {
    let mut questions = [question];
    datapath.answerer.answer(&mut questions).unwrap();
    found(&questions[0])
}

fn connected(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

#[test]
fn sockets_are_found_whatever_their_state_and_family() {
    sandbox::run(|sandbox| {
        let datapath = load(sandbox);
        for address in ["127.0.0.1:8080", "[::1]:8080"] {
            let listener = TcpListener::bind(address).unwrap();
            let service = listener.local_addr().unwrap();
            let (client, server) = connected(&listener);
            let tuple = question(client.local_addr().unwrap(), service);
            assert_eq!(ask(&datapath, tuple), Found::Socket, "{address}");
            // The server closes first, so it keeps the TIME_WAIT.
            drop(server);
            assert_eq!(ask(&datapath, tuple), Found::Socket, "FIN_WAIT2");
            drop(client);
            sandbox::eventually("the socket is in TIME_WAIT", || {
                ask(&datapath, tuple) == Found::Closing
            });
            // Only a listener is there for this one.
            let other = SocketAddr::new(service.ip(), 1);
            assert_eq!(ask(&datapath, question(other, service)), Found::Nothing);
        }
    });
}

#[test]
fn more_questions_than_one_run_takes_are_answered_one_by_one() {
    sandbox::run(|sandbox| {
        let datapath = load(sandbox);
        let listener = TcpListener::bind("127.0.0.1:8080").unwrap();
        let service = listener.local_addr().unwrap();
        let open: Vec<_> = (0..QUESTIONS_MAX * 2 + 5)
            .map(|_| connected(&listener))
            .collect();
        let mut questions = Vec::new();
        for (n, (client, _)) in open.iter().enumerate() {
            let mut asked = client.local_addr().unwrap();
            if n % 3 == 0 {
                asked.set_ip([127, 0, 0, 2].into());
            }
            questions.push(question(asked, service));
        }
        datapath.answerer.answer(&mut questions).unwrap();
        for (n, answered) in questions.iter().enumerate() {
            let expected = if n % 3 == 0 {
                Found::Nothing
            } else {
                Found::Socket
            };
            assert_eq!(found(answered), expected, "question {n}");
        }
        // A bound that only a mistake exceeds; the rate is what bounds rest on.
        let start = Instant::now();
        for _ in 0..100 {
            datapath.answerer.answer(&mut questions).unwrap();
        }
        let each = start.elapsed() / (100 * questions.len() as u32);
        println!("{} ns a question", each.as_nanos());
        assert!(each < Duration::from_millis(1));
    });
}
