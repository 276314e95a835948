//! Whole exports and imports.

use homing_agent::migration::app::{Blob, Failure, Reason};
use homing_tests::sandbox::eventually;

use super::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_resumed_goes_on_where_it_was() {
    for kind in Kind::ALL {
        let (agent, _app, mut client) = Agent::serving(kind).await;
        client.write("sec").await;
        let exported = agent.export(1, &client).await;
        let again = agent.apps.export(2, agent.session(&client)).await;
        assert_eq!(
            again.unwrap_err(),
            Failure::Busy,
            "two moves of one connection"
        );

        // From here on nobody reads.
        client.write("ond\n").await;
        unread(&exported.descriptor, "ond\n").await;
        assert_eq!(agent.apps.held_bytes(), exported.state.len());
        agent.apps.resume(1, Some(exported.state)).expect("pending");
        assert_eq!(client.line().await, "2: second\n");
        client.ask("third", 3).await;

        // It can be exported again, and without the state it has its own.
        let exported = agent.export(3, &client).await;
        drop(exported);
        agent.apps.resume(3, None).expect("pending");
        client.ask("fourth", 4).await;
        assert_eq!(agent.apps.held_bytes(), 0);
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_committed_is_closed() {
    for kind in Kind::ALL {
        let (agent, app) = Agent::with(kind).await;
        let endpoint = agent.service();
        let before = app.descriptors();
        let mut client = Client::connect(endpoint).await;
        client.ask("first", 1).await;
        let exported = agent.export(1, &client).await;
        drop(exported);
        agent.apps.committed(1).expect("pending");
        client.ended().await;
        eventually("all descriptors are closed", || app.descriptors() == before);
        // The application serves others.
        Client::connect(endpoint).await.ask("first", 1).await;
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_goes_on_at_an_application_of_the_other_kind() {
    for from in Kind::ALL {
        for to in Kind::ALL {
            let (mut source, mut target) =
                (Agent::start(new_service()), Agent::start(new_service()));
            let endpoint = source.service();
            let (_from, _to) = (source.run(from).await, target.run(to).await);
            let mut client = Client::connect(endpoint).await;
            client.ask("first", 1).await;
            client.ask("second", 2).await;
            let exported = source.export(1, &client).await;

            let socket = target.import(1).await;
            target
                .apps
                .give(1, exported.state.clone())
                .await
                .expect("kept");
            let mut client = Client::of(&socket).await;
            drop(socket);
            client.write("thi").await;
            target.apps.adopt(1).await.expect("adopted");
            client.write("rd\n").await;
            assert_eq!(client.line().await, "3: third\n");
            source.apps.committed(1).expect("pending");
            client.ask("fourth", 4).await;
            source.end();
            target.end();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_of_a_line_and_what_was_not_written_travel() {
    for kind in Kind::ALL {
        let (agent, _app) = Agent::with(kind).await;
        let socket = agent.import(1).await;
        // Seven lines were answered, the last answer was not written, and a line begins.
        let state = state(7, "half", "7: seventh\n");
        agent.apps.give(1, state).await.expect("kept");
        let mut client = Client::of(&socket).await;
        agent.apps.adopt(1).await.expect("adopted");
        assert_eq!(client.line().await, "7: seventh\n");
        client.write(" a line\n").await;
        assert_eq!(client.line().await, "8: half a line\n");
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_ipv6_move_too() {
    for kind in Kind::ALL {
        let port = std::net::TcpListener::bind("[::1]:0").expect("a port");
        let endpoint = port.local_addr().expect("an address");
        drop(port);
        let mut agent = Agent::start(endpoint);
        let _app = agent.run(kind).await;
        let mut client = Client::connect(endpoint).await;
        client.ask("first", 1).await;
        let exported = agent.export(1, &client).await;
        let socket = agent.import(2).await;
        agent
            .apps
            .give(2, exported.state.clone())
            .await
            .expect("kept");
        let mut moved = Client::of(&socket).await;
        agent.apps.adopt(2).await.expect("adopted");
        moved.ask("second", 2).await;
        agent.apps.resume(1, Some(exported.state)).expect("pending");
        client.ask("second", 2).await;
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_makes_no_sense_is_refused_before_anything_is_lost() {
    for kind in Kind::ALL {
        let (agent, app) = Agent::with(kind).await;
        let before = app.descriptors();
        drop(agent.import(1).await);
        let given = agent.apps.give(1, Blob::from(b"nonsense".to_vec())).await;
        let Err(Failure::Refused { reason, .. }) = given else {
            panic!("taken: {given:?}");
        };
        assert_eq!(reason, Reason::Failed);
        eventually("the socket is closed", || app.descriptors() == before);
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_dropped_leaves_nothing() {
    for kind in Kind::ALL {
        let (agent, app) = Agent::with(kind).await;
        let before = app.descriptors();
        drop(agent.import(1).await);
        assert!(app.descriptors() > before);
        agent.apps.drop_import(1).expect("pending");
        eventually("the socket is closed", || app.descriptors() == before);
        drop(agent.import(2).await);
        agent.apps.give(2, state(0, "", "")).await.expect("kept");
        agent.apps.drop_import(2).expect("pending");
        eventually("the socket is closed", || app.descriptors() == before);
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_connection_and_an_unknown_service_are_refused() {
    for kind in Kind::ALL {
        let (agent, _app) = Agent::with(kind).await;
        let unknown = agent.apps.export(1, agent.to_come()).await;
        let Err(Failure::Refused { reason, .. }) = unknown else {
            panic!("exported: {unknown:?}");
        };
        assert_eq!(reason, Reason::Unknown);
        agent.end();
    }
    // Of an agent that has no such service.
    let agent = Agent::start(new_service());
    let mut process = Process::start(Kind::Rust, &agent.path(), new_service());
    assert!(!process.wait());
    assert_eq!(agent.apps.counters().closed_not_a_service, 1);
    agent.end();
}

/// A state of many parts, both ways and back.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_state_comes_whole() {
    for kind in Kind::ALL {
        let (agent, _app) = Agent::with(kind).await;
        let socket = agent.import(1).await;
        let answer: String = (0..1_000_000)
            .map(|n| char::from(b'a' + (n % 23) as u8))
            .collect();
        let state = state(1, "", &format!("{answer}\n"));
        agent.apps.give(1, state).await.expect("kept");
        let mut client = Client::of(&socket).await;
        agent.apps.adopt(1).await.expect("adopted");
        assert!(client.line().await.trim_end() == answer);
        agent.end();
    }
}
