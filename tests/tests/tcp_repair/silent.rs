//! What a move must not show, and what it must: no packet until the session goes on, then
//! an acknowledgement of all that has arrived.

use std::{io::Read as _, net::Shutdown, os::fd::AsFd as _};

use homing_agent::datapath::repair::{Error, Frozen, Restored, Snapshot, restore};
use socket2::{Domain, Socket, Type};

use super::{
    case::{Case, Pop, Shut, Talk},
    socket::{owned, queued, state, until},
    switch::{A, B},
    trace,
};

fn connected(case: &Case) -> (Pop, Talk) {
    let pop = Pop::new(case);
    let mut talk = pop.connect();
    talk.go_on(3000, Shut::Nobody);
    // Delayed acknowledgements are out.
    until("both know that all has arrived", || {
        let segments = trace::read(&pop.switch.seen());
        [true, false]
            .into_iter()
            .zip(talk.said)
            .all(|(client, said)| {
                let mut others = segments.iter().filter(|s| s.from_client != client);
                others.any(|segment| segment.acknowledged == said)
            })
    });
    (pop, talk)
}

#[test]
fn who_leaves_repair_mode_says_nothing_and_goes_on() {
    let (pop, mut talk) = connected(&Case::new());
    let before = pop.switch.seen().len();
    pop.switch.host(A).on(|| {
        let frozen = Frozen::enter(owned(&talk.server)).unwrap();
        let snapshot = frozen.snapshot().unwrap();
        // Nobody reads or writes meanwhile.
        let refused = (&talk.server).read(&mut [0]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        // Who finds it so, because an agent died, takes it as it is.
        let found = Frozen::enter(owned(&talk.server)).unwrap();
        assert_eq!(found.sequence().unwrap(), snapshot.sequence());
        found.leave().unwrap();
        frozen.leave().unwrap();
    });
    assert_eq!(pop.switch.seen().len(), before);
    talk.go_on(40_000, Shut::Nobody);
    talk.end(Shut::Nobody);
    trace::judge(&trace::read(&pop.switch.seen()));
}

#[test]
fn what_arrives_or_is_acknowledged_after_the_snapshot_is_noticed() {
    let (pop, mut talk) = connected(&Case::new());
    let frozen = Frozen::enter(owned(&talk.server)).unwrap();
    let snapshot = pop.switch.host(A).on(|| frozen.snapshot().unwrap());
    assert_eq!(frozen.sequence().unwrap(), snapshot.sequence());
    talk.client_says(100);
    until("it arrives", || queued(&talk.server, libc::FIONREAD) == 100);
    assert_ne!(frozen.sequence().unwrap(), snapshot.sequence());
    frozen.leave().unwrap();
    // The same for an acknowledgement.
    pop.switch.park();
    talk.server_says(100);
    let frozen = Frozen::enter(owned(&talk.server)).unwrap();
    let snapshot = frozen.snapshot().unwrap();
    assert_eq!(snapshot.queued(), (100, 100));
    pop.switch.feed();
    until("it arrives", || {
        frozen.sequence().unwrap() != snapshot.sequence()
    });
    drop(frozen);
    talk.go_on(3000, Shut::Nobody);
    talk.end(Shut::Nobody);
    trace::judge(&trace::read(&pop.switch.seen()));
}

#[test]
fn a_destroyed_connection_is_gone_for_every_holder_and_nobody_hears_of_it() {
    for v6 in [false, true] {
        let (pop, mut talk) = connected(&Case { v6, ..Case::new() });
        let mut other = talk.server.try_clone().unwrap();
        pop.switch.freeze();
        let before = (pop.switch.seen().len(), pop.switch.dropped().len());
        let bytes = pop.take(&talk.server, A);
        let aborted = other.read(&mut [0]).unwrap_err();
        assert_eq!(aborted.raw_os_error(), Some(libc::ECONNABORTED));
        assert_eq!(state(&other), 7);
        drop(other);
        // Nothing keeps the tuple: the same host can take it up again.
        let restored = pop.put(&bytes, A);
        assert_eq!(
            (pop.switch.seen().len(), pop.switch.dropped().len()),
            before
        );
        talk.server = pop.go_on(restored, A);
        talk.go_on(3000, Shut::Nobody);
        talk.end(Shut::Nobody);
        trace::judge(&trace::read(&pop.switch.seen()));
    }
}

#[test]
fn a_discarded_copy_leaves_no_trace() {
    let (pop, mut talk) = connected(&Case::new());
    pop.switch.freeze();
    let before = (pop.switch.seen().len(), pop.switch.dropped().len());
    let bytes = pop.take(&talk.server, A);
    pop.put(&bytes, B).discard();
    drop(pop.put(&bytes, B));
    assert_eq!(
        (pop.switch.seen().len(), pop.switch.dropped().len()),
        before
    );
    // So the tuple is free.
    let restored = pop.put(&bytes, B);
    talk.server = pop.go_on(restored, B);
    talk.go_on(3000, Shut::Nobody);
    talk.end(Shut::Nobody);
    trace::judge(&trace::read(&pop.switch.seen()));
}

/// An agent that died had restored it: who comes after it has the socket and the bytes.
#[test]
fn a_restored_connection_is_found_and_activated() {
    found(std::mem::forget);
}

/// It had even activated it: what was never sent is written already, and only once.
#[test]
fn an_activated_connection_is_found_and_nothing_is_written_twice() {
    found(|restored| drop(restored.activate(&|_| Ok(())).unwrap()));
}

fn found(dies: impl FnOnce(Restored) + Send) {
    let (pop, mut talk) = connected(&Case::new());
    pop.switch.park();
    let said = talk.server_says(60_000);
    assert!(said > 20_000);
    pop.switch.freeze();
    let bytes = pop.take(&talk.server, A);
    let snapshot = || Snapshot::decode(&bytes).unwrap();
    let socket = pop.switch.host(B).on(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let fd = socket.as_fd().try_clone_to_owned().unwrap();
        dies(restore(fd, snapshot(), &|_| Ok(())).unwrap());
        socket
    });
    let found = Restored::found(socket.into(), snapshot()).unwrap();
    talk.server = pop.go_on(found, B);
    talk.hear_all();
    talk.end(Shut::Nobody);
    trace::judge(&trace::read(&pop.switch.seen()));
}

/// One that was due at the source may never have been sent, and without it the client would
/// send again.
#[test]
fn the_client_hears_what_has_arrived_as_soon_as_the_session_goes_on() {
    for v6 in [false, true] {
        for shut in [Shut::Nobody, Shut::Client, Shut::Server] {
            let (pop, mut talk) = connected(&Case { v6, ..Case::new() });
            if shut == Shut::Server {
                talk.server.shutdown(Shutdown::Write).unwrap();
                until("the client acknowledges it", || state(&talk.server) == 5);
            }
            pop.switch.mute();
            talk.client_says(1000);
            if shut == Shut::Client {
                talk.client.shutdown(Shutdown::Write).unwrap();
            }
            let fin = u64::from(shut == Shut::Client);
            until("it has arrived", || {
                queued(&talk.server, libc::FIONREAD) == 1000
                    && (fin == 0 || state(&talk.server) == 8)
            });
            pop.switch.freeze();
            let bytes = pop.take(&talk.server, A);
            talk.server = pop.activate(pop.put(&bytes, B), B);
            // Whatever the client sends again waits, so none of it is answered.
            until("the client hears of it", || {
                let segments = trace::read(&pop.switch.seen());
                let mut hosts = segments.iter().filter(|s| !s.from_client);
                hosts.any(|segment| segment.acknowledged == talk.said[0] + fin)
            });
            pop.switch.feed();
            talk.hear_all();
            talk.end(shut);
            trace::judge(&trace::read(&pop.switch.seen()));
        }
    }
}

#[test]
fn a_socket_of_the_wrong_kind_or_kernel_is_told_so() {
    let (pop, talk) = connected(&Case {
        v6: true,
        congestion: Some("reno"),
        ..Case::new()
    });
    pop.switch.freeze();
    let bytes = pop.take(&talk.server, A);
    let into = |domain, bytes: &[u8]| {
        pop.switch.host(B).on(|| {
            let socket = Socket::new(domain, Type::STREAM, None).unwrap();
            restore(socket.into(), Snapshot::decode(bytes).unwrap(), &|_| Ok(())).unwrap_err()
        })
    };
    let wrong = into(Domain::IPV4, &bytes);
    assert!(
        matches!(wrong, Error::WrongFamily { wanted: "IPv6" }),
        "{wrong}"
    );
    let at = bytes
        .windows(5)
        .position(|part| part == b"\x04reno")
        .unwrap();
    let mut changed = bytes.clone();
    changed[at + 1..at + 5].copy_from_slice(b"nope");
    let missing = into(Domain::IPV6, &changed);
    assert!(
        matches!(&missing, Error::Congestion { name, .. } if name == "nope"),
        "{missing}"
    );
}
