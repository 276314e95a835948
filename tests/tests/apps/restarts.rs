//! The agent ends in the middle, and another one settles what is pending.

use homing_agent::migration::app::{Event, Left, Pending};
use homing_tests::sandbox::eventually;

use super::common::*;

async fn pending(agent: &mut Agent) -> (Left, std::os::fd::OwnedFd) {
    match agent.event().await {
        Event::Pending {
            left, descriptor, ..
        } => (left, descriptor),
        event => panic!("nothing pending: {event:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_told_to_the_next_agent_which_settles_it() {
    for kind in Kind::ALL {
        let (agent, app) = Agent::with(kind).await;
        let endpoint = agent.service();
        let before = app.descriptors();
        let mut clients = [
            Client::connect(endpoint).await,
            Client::connect(endpoint).await,
        ];
        for (number, client) in (1..).zip(&mut clients) {
            client.ask("first", 1).await;
            drop(agent.export(number, client).await);
            client.write("second\n").await;
        }
        let mut agent = agent.restart().await;
        let mut told = [pending(&mut agent).await, pending(&mut agent).await];
        told.sort_by_key(|(left, _)| left.number);
        agent.registered().await;
        for ((number, client), (left, descriptor)) in (1..).zip(&clients).zip(told) {
            let session = agent.session(client);
            let pending = Pending::Export;
            let expected = Left {
                number,
                session,
                pending,
            };
            assert_eq!(left, expected);
            // It is the connection itself, and nobody has read from it.
            unread(&descriptor, "second\n").await;
        }
        agent.apps.resume(1, None).expect("pending");
        agent.apps.committed(2).expect("pending");
        assert_eq!(clients[0].line().await, "2: second\n");
        clients[1].ended().await;
        drop(clients);
        eventually("nothing is left", || app.descriptors() == before);
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_told_to_the_next_agent_with_what_it_has() {
    for kind in Kind::ALL {
        let (agent, app) = Agent::with(kind).await;
        let before = app.descriptors();
        drop(agent.import(1).await);
        let mut agent = agent.restart().await;
        let (left, _) = pending(&mut agent).await;
        assert_eq!((left.number, left.session), (1, agent.to_come()));
        assert_eq!(left.pending, Pending::Import);
        agent.registered().await;
        agent.apps.drop_import(1).expect("pending");
        eventually("the socket is closed", || app.descriptors() == before);

        drop(agent.import(2).await);
        agent.apps.give(2, state(5, "", "")).await.expect("kept");
        let mut agent = agent.restart().await;
        let (left, socket) = pending(&mut agent).await;
        assert_eq!(left.pending, Pending::Kept);
        agent.registered().await;
        // The state is with the application: nobody need give it again.
        let mut client = Client::of(&socket).await;
        agent.apps.adopt(2).await.expect("adopted");
        client.ask("sixth", 6).await;

        // What was adopted is no longer told.
        let mut agent = agent.restart().await;
        agent.registered().await;
        client.ask("seventh", 7).await;
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_connections_are_served() {
    for kind in Kind::ALL {
        let (agent, _app, mut client) = Agent::serving(kind).await;
        let endpoint = agent.service();
        agent.end();
        client.ask("second", 2).await;
        Client::connect(endpoint).await.ask("first", 1).await;
        let mut agent = Agent::start(endpoint);
        agent.registered().await;
        let exported = agent.export(1, &client).await;
        agent.apps.resume(1, Some(exported.state)).expect("pending");
        client.ask("third", 3).await;
        agent.end();
    }
}
