//! Sessions that move while as much goes both ways as there is room for, over wires that
//! lose packets and change their order. Every byte is compared.

use std::{sync::atomic::Ordering::Relaxed, thread};

use serde_json::Value;

use homing_tests::{
    lab::{Node, fault::Fault, wait_until},
    puppet::ECHO,
};

use super::{
    client::{Client, Wish},
    common::{Order, PATIENCE, Pop, Scene, Session as _, shared},
};

/// What a client hears between two moves, at least.
const BETWEEN: u64 = 64 << 10;

/// Moves sessions round and round while each has so many bytes to say and to hear; then the
/// network is a good one again, and they end.
fn bulk_while_moving(pop: &mut Pop, sessions: usize, bytes: u64) {
    let mut scene = Scene::begin(pop);
    let services = pop.lab.plan().service(ECHO);
    let clients: Vec<Client> = (0..sessions)
        .map(|number| pop.connect(1, services[number % 2], Wish::default()))
        .collect();
    let named: Vec<_> = clients.iter().map(|client| client.named()).collect();
    let heard: Vec<_> = clients.iter().map(|client| client.progress()).collect();
    // Their packets come to a host that never has them, and then to all.
    pop.lab.set_ecmp(&[1, 2, 3]).unwrap();
    let threads: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                let came = client.try_bulk(bytes);
                (client, came)
            })
        })
        .collect();
    let mut paths = vec![vec![1]; sessions];
    let is_over = |number: usize| threads[number].is_finished();
    while !(0..sessions).any(is_over) {
        // What was lost is sent again before the next move begins.
        let before: Vec<u64> = heard.iter().map(|heard| heard.load(Relaxed)).collect();
        let goes_on = |number: usize| {
            is_over(number) || heard[number].load(Relaxed) >= before[number] + BETWEEN
        };
        let go_on = || Ok((0..sessions).all(goes_on));
        wait_until(PATIENCE, go_on).unwrap();
        let orders: Vec<Order> = named
            .iter()
            .zip(&paths)
            .map(|(named, path)| {
                let from = path[path.len() - 1];
                pop.order(from, from % 3 + 1, named)
            })
            .collect();
        for (order, path) in orders.into_iter().zip(&mut paths) {
            let came = order.end();
            // Queues are as full as they can be: more stands in them than can be carried,
            // or than a busy machine brings over in time. Then the session stays.
            let stays = came.value["outcome"] == "aborted"
                && ["timeout", "not_carried"]
                    .map(Value::from)
                    .contains(&came.value["reason"]);
            assert!(came.is_moved() || stays, "{path:?}: {came:?}");
            if came.is_moved() {
                path.push(path[path.len() - 1] % 3 + 1);
            }
        }
    }
    let came: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    // The last acknowledgement of all, sent twice, would rightly be answered with a reset.
    pop.lab.heal().unwrap();
    for ((mut client, came), path) in came.into_iter().zip(&paths) {
        if let Err(error) = came {
            let trace = scene.trace();
            let talk = trace.of(client.address).unwrap();
            panic!("{error} along {path:?}:\n{}", talk.end(400));
        }
        scene.path(client.address, path);
        client.exchange(1000);
        client.shut();
        client.hear_end();
    }
    let moves: usize = paths.iter().map(|path| path.len() - 1).sum();
    assert!(moves >= sessions, "only {moves} moves: {paths:?}");
    for (client, report) in scene.end(pop) {
        println!("{client}: {report:?}");
    }
}

#[test]
fn all_bytes_come_while_sessions_move_at_full_speed() {
    bulk_while_moving(shared().as_mut().unwrap(), 4, 20 << 20);
}

#[test]
fn all_bytes_come_while_packets_are_lost_and_overtake_each_other() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let fault = Fault::all().loss(1.0).duplicate(1.0).delay(1, 3);
    let up = Fault {
        from: vec![Node::Client(1)],
        ..fault.clone()
    };
    let down = Fault {
        to: vec![Node::Client(1)],
        ..fault
    };
    pop.lab.seed_faults(7).unwrap();
    pop.lab.fault(up).unwrap();
    pop.lab.fault(down).unwrap();
    bulk_while_moving(pop, 4, 3 << 20);
}
