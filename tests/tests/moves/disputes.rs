//! Moves that stand in each other's way, and hosts and applications that will not.

use std::fs;

use homing_tests::{
    lab::{Lab, Node, unique, wait_until},
    puppet::{Ask, ECHO, How, Moment},
};

use super::{
    client::Wish,
    common::{Came, PATIENCE, Pop, Scene, Session as _, shared},
};

/// The move was not begun, or was given up, for this reason.
fn assert_why(came: &Came, outcome: &str, why: &str) {
    let (is, because) = (&came.value["outcome"], &came.value["reason"]);
    assert_eq!(
        (is.as_str(), because.as_str()),
        (Some(outcome), Some(why)),
        "{came:?}"
    );
}

#[test]
fn of_two_moves_of_one_session_asked_for_at_once_one_is_refused() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    let service = pop.lab.plan().service(ECHO)[0];
    let mut client = pop.connect(1, service, Wish::default());
    client.exchange(1000);
    let (named, who) = (client.named(), client.address);
    let chat = client.chat();
    // Both are there before either is over.
    pop.ask(1, Ask::Behave(Moment::Export, How::Slowly(500)));
    let orders = [2, 3].map(|to| (to, pop.order(1, to, &named)));
    let came = orders.map(|(to, order)| (to, order.end()));
    pop.ask(1, Ask::Behave(Moment::Export, How::Well));
    let moved: Vec<u16> = came
        .iter()
        .filter(|(_, c)| c.is_moved())
        .map(|(to, _)| *to)
        .collect();
    assert_eq!(moved.len(), 1, "{came:?}");
    let (_, refused) = came.iter().find(|(to, _)| *to != moved[0]).unwrap();
    assert_why(refused, "refused", "moving");
    scene.path(who, &[1, moved[0]]);
    let mut client = chat.end();
    client.exchange(1000);
    assert_eq!(pop.servers(who), moved);
    client.shut();
    client.hear_end();
    scene.end(pop);
}

#[test]
fn applications_that_will_not_keep_the_session_where_it_is() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    let service = pop.lab.plan().service(ECHO)[1];
    let mut client = pop.connect(1, service, Wish::default());
    client.exchange(1000);
    let (named, who) = (client.named(), client.address);
    scene.path(who, &[1, 2]);
    let chat = client.chat();
    let mut resumed = pop.puppet(1).told().unwrap().resumed;
    for (host, moment, how) in [
        (1, Moment::Export, How::Refuse),
        // Longer than it is waited for.
        (1, Moment::Export, How::Slowly(2500)),
        (2, Moment::Begin, How::Refuse),
        (2, Moment::Begin, How::Slowly(4500)),
    ] {
        pop.ask(host, Ask::Behave(moment, how));
        let came = pop.order(1, 2, &named).end();
        println!("{moment:?} {how:?}: {came:?}");
        let why = if matches!(how, How::Refuse) {
            "application"
        } else {
            "timeout"
        };
        assert_why(&came, "aborted", why);
        pop.ask(host, Ask::Behave(moment, How::Well));
        pop.wait_still();
        // Until an answer that is owed has come, the connection is taken.
        resumed += u64::from((host, how) != (1, How::Refuse));
        let is_back = || Ok(pop.puppet(1).told()?.resumed == resumed);
        assert!(wait_until(PATIENCE, is_back).unwrap());
    }
    let mut client = chat.end();
    client.exchange(1000);
    assert_eq!(pop.servers(who), [1]);
    // So it is at the target, too.
    let moves = || {
        let came = pop.order(1, 2, &client.named()).end();
        assert!(
            came.is_moved() || came.value["reason"] == "moving",
            "{came:?}"
        );
        Ok(came.is_moved())
    };
    assert!(wait_until(PATIENCE, moves).unwrap());
    client.exchange(1000);
    client.shut();
    client.hear_end();
    scene.end(pop);
}

#[test]
fn a_target_that_is_full_refuses_and_the_session_stays() {
    let lab = Lab::builder()
        .name(&unique("full"))
        .hosts(3)
        .racks(2)
        .no_homing();
    let mut lab = lab.up().unwrap();
    let path = lab.folder_of(Node::Host(2)).join("homing.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n[migration]\nmoves = 1\n")).unwrap();
    lab.start_all().unwrap();
    let mut pop = Pop::of(lab);
    let mut scene = Scene::begin(&pop);
    let service = pop.lab.plan().service(ECHO)[0];
    let clients = [1, 3].map(|host| {
        let mut client = pop.connect(host, service, Wish::default());
        client.exchange(1000);
        (host, client)
    });
    pop.ask(2, Ask::Behave(Moment::Begin, How::Slowly(700)));
    let orders = clients
        .each_ref()
        .map(|(host, client)| pop.order(*host, 2, &client.named()));
    let came = orders.map(super::common::Order::end);
    pop.ask(2, Ask::Behave(Moment::Begin, How::Well));
    assert_eq!(
        came.iter().filter(|came| came.is_moved()).count(),
        1,
        "{came:?}"
    );
    for ((host, mut client), came) in clients.into_iter().zip(came) {
        scene.path(client.address, &[host, 2]);
        client.exchange(1000);
        if !came.is_moved() {
            assert_why(&came, "refused", "target_full");
            assert_eq!(pop.servers(client.address), [host]);
            // Now there is.
            pop.go(host, 2, &client);
        }
        client.exchange(1000);
        assert_eq!(pop.servers(client.address), [2]);
        client.shut();
        client.hear_end();
    }
    scene.end(&mut pop);
    assert!(pop.count(2, "turned_away") >= 1);
}
