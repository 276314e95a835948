//! Applications whose connections have more holders: other descriptors, children.

use homing_tests::puppet::{Ask, ECHO};

use super::{
    client::Wish,
    common::{Scene, shared},
};

#[test]
fn a_session_that_has_many_holders_moves_and_none_of_them_answers_any_more() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for service in pop.lab.plan().service(ECHO) {
        let mut client = pop.connect(1, service, Wish::default());
        client.exchange(5000);
        let who = client.address;
        pop.ask(1, Ask::Hold(who, 3, 2));
        let chat = client.chat();
        for pair in [[1, 2], [2, 1], [1, 3]] {
            pop.go(pair[0], pair[1], &chat);
            pop.ask(pair[1], Ask::Here(who));
            assert_eq!(pop.servers(who), [pair[1]]);
        }
        let mut client = chat.end();
        client.exchange(50_000);
        scene.path(who, &[1, 2, 1, 3]);
        // The holders live on; the process whose they are may end.
        pop.puppet(1).kill().unwrap();
        client.exchange(50_000);
        pop.revive(1);
        client.exchange(50_000);
        client.shut();
        client.hear_end();
    }
    scene.end(pop);
}

#[test]
fn a_listener_can_be_started_again_beside_sessions_that_came_and_went() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for service in pop.lab.plan().service(ECHO) {
        let mut old = pop.connect(1, service, Wish::default());
        scene.path(old.address, &[1, 2]);
        old.exchange(1000);
        pop.go(1, 2, &old);
        for host in [1, 2] {
            pop.ask(host, Ask::Listen);
            let mut new = pop.connect(host, service, Wish::default());
            new.exchange(1000);
            old.exchange(1000);
            scene.path(new.address, &[host]);
            new.shut();
            new.hear_end();
        }
        old.shut();
        old.hear_end();
    }
    scene.end(pop);
}
