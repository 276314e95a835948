//! Sessions that move again and again, while all that their clients send still comes to
//! the host that they began at, or to whichever ECMP chooses at the moment.

use homing_tests::{puppet::ECHO, random::Random};

use super::{
    client::{Chat, Wish},
    common::{Order, Pop, Scene, Session as _, shared},
};

/// Opens sessions at a host, half of them over IPv6.
fn open(pop: &mut Pop, host: u16, count: usize) -> Vec<super::client::Client> {
    let services = pop.lab.plan().service(ECHO);
    let open = |number: usize| {
        let mut client = pop.connect(host, services[number % 2], Wish::default());
        client.exchange(1000);
        client
    };
    (0..count).map(open).collect()
}

/// Moves a session along a path while its client talks, one move right after the other.
fn walk_and_talk(path: &[u16], arrive_at: u16) {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    let clients = open(pop, path[0], 4);
    pop.lab.set_ecmp(&[arrive_at]).unwrap();
    let named: Vec<_> = clients.iter().map(|client| client.named()).collect();
    let chats: Vec<Chat> = clients.into_iter().map(|client| client.chat()).collect();
    for pair in path.windows(2) {
        let order = |named| pop.order(pair[0], pair[1], named);
        let orders: Vec<Order> = named.iter().map(order).collect();
        for order in orders {
            let came = order.end();
            assert!(came.is_moved(), "{pair:?} of {path:?}: {came:?}");
        }
    }
    for chat in chats {
        scene.path(chat.address, path);
        let mut client = chat.end();
        client.exchange(10_000);
        client.shut();
        client.hear_end();
    }
    let reports = scene.end(pop);
    for (client, report) in reports {
        // Talked to all the time, none of them keeps still.
        assert_eq!(report.speakers, path, "{client}");
        println!("{client} along {path:?}: {report:?}");
    }
}

#[test]
fn a_session_moves_on_at_once_while_its_packets_still_come_to_the_first_host() {
    walk_and_talk(&[1, 2, 3], 1);
}

#[test]
fn a_session_moves_there_and_back_at_once() {
    walk_and_talk(&[1, 2, 1, 2, 1], 1);
    walk_and_talk(&[2, 3, 2], 1);
}

/// A target that has a session must not send what comes for it to the source any more,
/// which has nobody to send it to.
#[test]
fn nothing_goes_to_and_fro_when_a_session_comes_to_where_its_packets_land() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    let clients = open(pop, 1, 2);
    let bounced = || pop.lab.outcomes(&["tunnel_bounce"]).unwrap();
    let before = bounced();
    let streams: Vec<Chat> = clients.into_iter().map(|client| client.stream()).collect();
    let path = [1, 2].repeat(10);
    for pair in path.windows(2) {
        for stream in &streams {
            pop.go(pair[0], pair[1], stream);
        }
    }
    assert_eq!(bounced(), before, "packets were sent back, and lost");
    for stream in streams {
        scene.path(stream.address, &path);
        let mut client = stream.end();
        client.shut();
        client.hear_end();
    }
    for (client, report) in scene.end(pop) {
        println!("{client}: {report:?}");
    }
}

#[test]
fn sessions_move_while_ecmp_is_reshuffled() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    let mut random = Random::new(5);
    let clients = open(pop, 1, 12);
    let named: Vec<_> = clients.iter().map(|client| client.named()).collect();
    let mut paths = vec![vec![1]; clients.len()];
    let chats: Vec<Chat> = clients.into_iter().map(|client| client.chat()).collect();
    for _ in 0..6 {
        let orders: Vec<Order> = named
            .iter()
            .zip(&mut paths)
            .map(|(named, path)| {
                let from = path[path.len() - 1];
                let to = (from + random.below(2) as u16) % 3 + 1;
                path.push(to);
                pop.order(from, to, named)
            })
            .collect();
        while orders.iter().any(|order| !order.is_over()) {
            pop.lab.reshuffle(&mut random, None).unwrap();
        }
        for order in orders {
            let came = order.end();
            assert!(came.is_moved(), "{came:?}");
        }
    }
    for (chat, path) in chats.into_iter().zip(&paths) {
        scene.path(chat.address, path);
        let mut client = chat.end();
        client.exchange(10_000);
        client.shut();
        client.hear_end();
    }
    for (client, report) in scene.end(pop) {
        println!("{client}: {report:?}");
    }
}
