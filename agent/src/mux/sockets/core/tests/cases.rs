//! One thing at a time.

use homing_client::message::record::{BATCH_MAX, HEADER_LEN, NotSent, REPEATABLE, TELL};

use super::*;
use crate::mux::sockets::core::Counters;

fn counters(pop: &Pop, host: u16) -> Counters {
    pop.hosts[&HostId(host)].counters
}

#[test]
fn a_request_gets_its_reply_on_the_message_socket_that_asked() {
    let mut pop = Pop::new(2, Limits::default());
    let (service, server) = pop.offer(2, "echo", false);
    let clients: Vec<_> = (0..3).map(|_| pop.connect(1, "echo")).collect();
    for (at, (id, client)) in clients.iter().enumerate() {
        client.send(message(at as u64 + 7, 0, &[at as u8; 3]));
        pop.run_with(&[(1, *id)]);
    }
    // Answered in another order.
    let mut asked: Vec<_> = std::iter::from_fn(|| server.receive()).collect();
    asked.reverse();
    for datagram in asked {
        let [(header, body)] = &records(&datagram)[..] else {
            panic!("one message in one datagram")
        };
        let reply = Header {
            name: header.name,
            peer: header.peer,
            ..Header::message(0)
        };
        server.send(record(reply, &[body[0], 99]));
    }
    pop.run_with(&[(2, service)]);
    for (at, (_, client)) in clients.iter().enumerate() {
        let (header, body) = records(&client.receive().unwrap()).remove(0);
        assert_eq!(
            (header.name, &body[..]),
            (at as u64 + 7, &[at as u8, 99][..])
        );
        assert_eq!(client.receive(), None);
    }
}

#[test]
fn messages_of_every_size_arrive_whole_and_one_over_the_limit_does_not() {
    let mut pop = Pop::new(2, Limits::default());
    let (service, server) = pop.offer(2, "sink", false);
    let (id, client) = pop.connect(1, "sink");
    let max = Limits::default().message_max;
    let mut told = Vec::new();
    let sizes = [
        0,
        1,
        SHORT_MAX - 57,
        SHORT_MAX - 56,
        SHORT_MAX - 55,
        BATCH_MAX,
        max - 1,
        max,
    ];
    for size in sizes {
        let body: Vec<u8> = (0..size).map(|at| (at * 7) as u8).collect();
        client.send(message(5, TELL, &body));
        pop.run_with(&[(1, id), (2, service)]);
        let (header, received) = records(&server.receive().unwrap()).remove(0);
        assert_eq!(header.name, 5);
        assert!(received == body, "{size} bytes");
        told.push(fate(&client.receive().unwrap()));
    }
    client.send(message(5, 0, &vec![0; max + 1]));
    pop.run_with(&[(1, id), (2, service)]);
    assert_eq!(server.receive(), None);
    told.push(fate(&client.receive().unwrap()));
    let delivered = (1..=8).map(|number| (number, Fate::Delivered));
    let too_long = (9, Fate::NotSent(NotSent::TooLong));
    assert_eq!(told, delivered.chain([too_long]).collect::<Vec<_>>());
    // It lives on.
    client.send(message(5, 0, b"after"));
    pop.run_with(&[(1, id), (2, service)]);
    assert_eq!(records(&server.receive().unwrap())[0].1, b"after");
}

#[test]
fn nonsense_of_an_application_is_refused_and_harms_nothing() {
    let mut pop = Pop::new(2, Limits::default());
    let (service, server) = pop.offer(2, "sink", false);
    let (id, client) = pop.connect(1, "sink");
    let whole = message(1, 0, b"whole");
    for cut in 0..whole.len() {
        client.send(whole[..cut].to_vec());
        pop.run_with(&[(1, id)]);
        let told = fate(&client.receive().unwrap());
        assert_eq!(told, (cut as u64 + 1, Fate::NotSent(NotSent::Malformed)));
    }
    client.send([&whole[..], b"more"].concat());
    client.send(
        Header::fate(&Header::message(0), Fate::Delivered)
            .encode()
            .to_vec(),
    );
    pop.run_with(&[(1, id), (2, service)]);
    assert_eq!(server.receive(), None);
    assert_eq!(counters(&pop, 1).malformed, whole.len() as u64 + 2);
    client.send(whole);
    pop.run_with(&[(1, id), (2, service)]);
    assert!(server.receive().is_some());
}

#[test]
fn a_batch_is_many_messages_and_comes_as_one_only_to_whom_wants_that() {
    let batch: Vec<u8> = (0..100_u8)
        .flat_map(|at| message(at.into(), 0, &[at]))
        .collect();
    for batches in [false, true] {
        let mut pop = Pop::new(2, Limits::default());
        let (service, server) = pop.offer(2, "sink", batches);
        let (id, client) = pop.connect(1, "sink");
        client.send(batch.clone());
        let (mut datagrams, mut all) = (0, Vec::new());
        for _ in 0..200 {
            pop.run_with(&[(1, id), (2, service)]);
            while let Some(datagram) = server.receive() {
                datagrams += 1;
                all.extend(records(&datagram));
            }
        }
        assert_eq!(datagrams, if batches { 1 } else { 100 });
        let names: Vec<_> = all.iter().map(|(header, _)| header.name).collect();
        assert_eq!(names, (0..100).collect::<Vec<_>>());
        assert_eq!(counters(&pop, 1).messages_delivered, 100);
    }
}

#[test]
fn a_slow_reader_holds_up_its_senders_and_nobody_else() {
    let limits = Limits {
        unread_per_socket: 2000,
        ..Limits::default()
    };
    let mut pop = Pop::new(2, limits);
    let (slow_id, slow) = pop.offer(2, "slow", false);
    let (fast_id, fast) = pop.offer(2, "fast", false);
    let (to_slow, client) = pop.connect(1, "slow");
    let (to_fast, other) = pop.connect(1, "fast");
    let all = [(1, to_slow), (1, to_fast), (2, fast_id)];
    for _ in 0..10_000 {
        client.send(message(0, TELL, &[1; 100]));
    }
    pop.run_with(&all);
    let left = client.0.borrow().sent.len();
    assert!(left > 3000, "{left}: the application is not held up");
    assert!(!pop.hosts[&HostId(1)].wants(to_slow).read);
    other.send(message(0, 0, b"fast"));
    pop.run_with(&all);
    assert!(fast.receive().is_some());
    // Once it reads, all arrive, each once.
    let mut received = 0;
    while received < 10_000 {
        let datagram = slow.receive().expect("they come as fast as they are read");
        assert_eq!(records(&datagram)[0].1, [1; 100]);
        received += 1;
        while client.receive().is_some() {}
        pop.run_with(&[(1, to_slow), (2, slow_id)]);
    }
    assert_eq!(slow.receive(), None);
    assert_eq!(counters(&pop, 1).messages_delivered, 10_001);
    assert_eq!(pop.hosts[&HostId(1)].held, 0);
    assert_eq!(pop.hosts[&HostId(2)].unread, 0);
}

#[test]
fn a_client_that_does_not_read_costs_a_service_no_other_client() {
    let limits = Limits {
        unread_per_socket: 1000,
        held_per_peer: 5000,
        ..Limits::default()
    };
    let mut pop = Pop::new(2, limits);
    let (service, server) = pop.offer(2, "echo", false);
    let (slow_id, slow) = pop.connect(1, "echo");
    let (fast_id, fast) = pop.connect(1, "echo");
    let peers = [slow_id, fast_id].map(|id| Core::<End>::address(HostId(1), id));
    let mut full = 0;
    for round in 0..200_u64 {
        for peer in peers {
            let header = Header {
                name: round,
                peer,
                ..Header::message(0)
            };
            server.send(record(header, &[0; 100]));
        }
        pop.run_with(&[(2, service), (1, fast_id)]);
        let (header, _) = records(&fast.receive().expect("the other one is served")).remove(0);
        assert_eq!(header.name, round);
        while let Some(told) = server.receive() {
            assert_eq!(fate(&told).1, Fate::NotSent(NotSent::Full));
            full += 1;
        }
    }
    // What was not refused is there.
    let mut received = 0;
    while slow.receive().is_some() {
        received += 1;
        pop.run_with(&[(2, service), (1, slow_id)]);
    }
    assert_eq!(received + full, 200);
    assert!(
        full > 100 && received > 30,
        "{full} refused, {received} received"
    );
}

#[test]
fn who_waits_for_room_goes_on_in_turn() {
    let limits = Limits {
        unread_per_socket: 1000,
        ..Limits::default()
    };
    let mut pop = Pop::new(2, limits);
    let (service, server) = pop.offer(2, "sink", false);
    let clients: Vec<_> = (0..10).map(|_| pop.connect(1, "sink")).collect();
    let ids: Vec<_> = clients.iter().map(|(id, _)| (1, *id)).collect();
    for (at, (_, client)) in clients.iter().enumerate() {
        // The first is greedy.
        for _ in 0..if at == 0 { 5000 } else { 50 } {
            client.send(message(at as u64, 0, &[0; 50]));
        }
    }
    let mut got = [0; 10];
    while got[1..] != [50; 9] {
        pop.run_with(&ids);
        pop.run_with(&[(2, service)]);
        let datagram = server.receive().expect("something comes");
        got[records(&datagram)[0].0.name as usize] += 1;
    }
    // One turn is a bundle, which one alone fills.
    assert!(
        got[0] < 2500,
        "the greedy one had {} of its messages sent",
        got[0]
    );
}

#[test]
fn a_repeatable_message_whose_carrier_broke_is_sent_again_and_received_once() {
    for arrives in [false, true] {
        let mut pop = Pop::new(2, Limits::default());
        let (service, server) = pop.offer(2, "sink", false);
        let (id, client) = pop.connect(1, "sink");
        client.send(message(1, REPEATABLE | TELL, b"again"));
        client.send(message(2, 0, b"once"));
        pop.poll(HostId(1), id);
        pop.collect(HostId(1));
        pop.pull();
        let flying = pop.flying.pop_front().unwrap();
        let now = pop.now;
        if arrives {
            let core = pop.hosts.get_mut(&HostId(2)).unwrap();
            core.receive(HostId(1), &flying.body, now);
        }
        let unknown = carriers::Fate::Unknown("its carrier broke".into());
        pop.told(&flying, Outcome::Fate(unknown, None));
        pop.run_with(&[(1, id), (2, service)]);
        let mut told = vec![
            fate(&client.receive().unwrap()),
            fate(&client.receive().unwrap()),
        ];
        told.sort_by_key(|(number, _)| *number);
        assert_eq!(told, [(1, Fate::Delivered), (2, Fate::Unknown)]);
        let received = std::iter::from_fn(|| server.receive());
        let received: Vec<_> = received
            .map(|datagram| records(&datagram)[0].0.name)
            .collect();
        assert_eq!(received, if arrives { vec![1, 2] } else { vec![1] });
        // The first one comes late: it is known, though it is long settled.
        let again = counters(&pop, 2).messages_again;
        client.send(message(3, REPEATABLE, b"next"));
        pop.run_with(&[(1, id), (2, service)]);
        assert!(server.receive().is_some());
        let core = pop.hosts.get_mut(&HostId(2)).unwrap();
        core.receive(HostId(1), &flying.body, now);
        assert_eq!(counters(&pop, 2).messages_again, again + 1);
    }
}

#[test]
fn who_is_connected_to_a_message_socket_that_closes_is_told() {
    let mut pop = Pop::new(2, Limits::default());
    let (service, server) = pop.offer(2, "sink", false);
    let (id, client) = pop.connect(1, "sink");
    let (local_id, local) = pop.connect(2, "sink");
    client.send(message(0, 0, b"unread"));
    local.send(message(0, 0, b"unread"));
    pop.run_with(&[(1, id), (2, local_id)]);
    server.close();
    pop.run_with(&[(2, service)]);
    assert!(server.is_gone() && client.is_gone() && local.is_gone());
    assert_eq!(counters(&pop, 1).reset, 1);
    let (request, _pipe) = pop.begin_connect(1, "sink", Some(2));
    for _ in 0..20 {
        pop.tick(100_000);
    }
    assert_eq!(
        pop.connected[&(HostId(1), request)],
        Err(Refused::NoService)
    );
}

#[test]
fn what_was_sent_before_a_message_socket_is_closed_arrives() {
    let mut pop = Pop::new(2, Limits::default());
    let (service, server) = pop.offer(2, "sink", false);
    let (id, client) = pop.connect(1, "sink");
    for _ in 0..100 {
        client.send(message(0, 0, &[0; 1000]));
    }
    client.close();
    let mut received = 0;
    for _ in 0..200 {
        pop.run_with(&[(1, id), (2, service)]);
        while server.receive().is_some() {
            received += 1;
        }
    }
    assert_eq!(received, 100);
    assert!(client.is_gone());
    assert_eq!(pop.hosts[&HostId(1)].held, 0);
}

#[test]
fn a_reply_to_a_message_socket_that_has_gone_is_refused() {
    let mut pop = Pop::new(2, Limits::default());
    let (service, server) = pop.offer(2, "echo", false);
    let (id, client) = pop.connect(1, "echo");
    client.send(message(4, 0, b"?"));
    pop.run_with(&[(1, id)]);
    client.close();
    pop.run_with(&[(1, id)]);
    // Another one is at its place.
    let (_, other) = pop.connect(1, "echo");
    let asked = records(&server.receive().unwrap()).remove(0).0;
    let reply = Header {
        name: asked.name,
        peer: asked.peer,
        ..Header::message(0)
    };
    server.send(record(reply, b"!"));
    pop.run_with(&[(2, service)]);
    assert_eq!(
        fate(&server.receive().unwrap()),
        (1, Fate::NotSent(NotSent::Gone))
    );
    assert_eq!(other.receive(), None);
    assert!(!server.is_gone());
}

#[test]
fn a_host_that_leaves_takes_its_message_sockets_along() {
    let mut pop = Pop::new(3, Limits::default());
    let (service, server) = pop.offer(1, "echo", false);
    let (id, _client) = pop.connect(2, "echo");
    let (far, _far) = pop.offer(2, "far", false);
    let (to_far, near) = pop.connect(1, "far");
    near.send(message(1, 0, b"held"));
    pop.poll(HostId(1), to_far);
    let core = pop.hosts.get_mut(&HostId(1)).unwrap();
    core.left(HostId(2));
    assert_eq!(
        fate(&near.receive().unwrap()),
        (1, Fate::NotSent(NotSent::Unreachable))
    );
    assert!(near.is_gone() && !server.is_gone());
    let peer = Core::<End>::address(HostId(2), id);
    let header = Header {
        peer,
        ..Header::message(0)
    };
    core.set_peers(BTreeMap::new());
    server.send(record(header, b"!"));
    pop.poll(HostId(1), service);
    assert_eq!(
        fate(&server.receive().unwrap()).1,
        Fate::NotSent(NotSent::Unreachable)
    );
    let _ = far;
}

#[test]
fn one_service_is_found_on_any_host_and_on_the_one_that_is_named() {
    let mut pop = Pop::new(4, Limits::default());
    for host in [2, 3] {
        pop.offer(host, "twice", false);
    }
    let mut hosts = [0; 5];
    for _ in 0..40 {
        let (id, _) = pop.connect(1, "twice");
        let status = pop.hosts[&HostId(1)].status();
        let socket = status
            .sockets
            .iter()
            .find(|socket| socket.id == id)
            .unwrap();
        hosts[usize::from(socket.connected.unwrap().0.0)] += 1;
    }
    assert!(
        hosts[2] > 5 && hosts[3] > 5 && hosts[2] + hosts[3] == 40,
        "{hosts:?}"
    );
    let (request, _pipe) = pop.begin_connect(1, "twice", Some(4));
    // It is offered before the time is over.
    pop.run();
    assert!(!pop.connected.contains_key(&(HostId(1), request)));
    pop.offer(4, "twice", false);
    for _ in 0..6 {
        pop.tick(100_000);
    }
    assert!(pop.connected[&(HostId(1), request)].is_ok());
}

#[test]
fn no_more_is_held_than_may_be() {
    let limits = Limits {
        held_total: 3 << 20,
        sockets: 20,
        ..Limits::default()
    };
    let mut pop = Pop::new(2, limits);
    let (_service, server) = pop.offer(2, "sink", false);
    server.0.borrow_mut().room = 0;
    let clients: Vec<_> = (0..19).map(|_| pop.connect(1, "sink")).collect();
    let ids: Vec<_> = clients.iter().map(|(id, _)| (1, *id)).collect();
    for (_, client) in &clients {
        for _ in 0..5 {
            client.send(message(0, 0, &[0; 1 << 20]));
        }
    }
    pop.run_with(&ids);
    assert!(pop.hosts[&HostId(1)].held <= 3 << 20);
    assert!(counters(&pop, 1).starved > 0);
    let refused = pop
        .hosts
        .get_mut(&HostId(1))
        .unwrap()
        .offer(End(Pipe::new()), "x", false);
    assert!(refused.is_ok());
    let refused = pop
        .hosts
        .get_mut(&HostId(1))
        .unwrap()
        .offer(End(Pipe::new()), "y", false);
    assert_eq!(refused.err(), Some(Refused::TooMany));
    // More may be held from now on: who waits for it hears of that.
    let core = pop.hosts.get_mut(&HostId(1)).unwrap();
    core.set_room(21, 6 << 20);
    let woken = core.outputs();
    let is_woken = |output: &Output| matches!(output, Output::Wake(_));
    assert!(woken.iter().any(is_woken), "{woken:?}");
    pop.run_with(&ids);
    assert!(pop.hosts[&HostId(1)].held > 3 << 20);
    // All arrive once the reader reads.
    server.0.borrow_mut().room = 4;
    let mut received = 0;
    for _ in 0..5000 {
        while let Some(datagram) = server.receive() {
            assert_eq!(datagram.len(), HEADER_LEN + (1 << 20));
            received += 1;
        }
        pop.run_with(&ids);
        pop.run_with(&[(2, _service)]);
        pop.tick(10_000);
    }
    assert_eq!(received, 95);
    assert_eq!(pop.hosts[&HostId(1)].held, 0);
}

#[test]
fn that_there_is_room_again_may_be_heard_before_that_there_was_none() {
    let limits = Limits {
        unread_per_socket: 500,
        ..Limits::default()
    };
    let mut pop = Pop::new(2, limits);
    let (service, server) = pop.offer(2, "sink", false);
    let (id, client) = pop.connect(1, "sink");
    let mut refused = Vec::new();
    for _ in 0..2 {
        for _ in 0..20 {
            client.send(message(0, 0, &[0; 50]));
        }
        pop.poll(HostId(1), id);
        pop.collect(HostId(1));
        pop.pull();
        let flying = pop.flying.pop_front().unwrap();
        let core = pop.hosts.get_mut(&HostId(2)).unwrap();
        let note = core.receive(HostId(1), &flying.body, pop.now).note;
        assert!(!note.is_empty());
        refused.push((flying, Bytes::from(note)));
    }
    let mut received = 0;
    let mut read = |pop: &mut Pop| {
        while server.receive().is_some() {
            received += 1;
            pop.poll(HostId(2), service);
            pop.collect(HostId(2));
        }
        received
    };
    read(&mut pop);
    // It says so, and that arrives first.
    let go_on = pop.flying.pop_front().unwrap();
    pop.arrive(go_on);
    for (flying, note) in refused {
        let delivered = carriers::Fate::Delivered(STREAM);
        pop.told(&flying, Outcome::Fate(delivered, Some(note)));
    }
    // No time passes.
    for _ in 0..20 {
        pop.run_with(&[(1, id), (2, service)]);
        read(&mut pop);
    }
    assert_eq!(read(&mut pop), 40);
}
