//! Ends of message sockets, of applications and of agents.

use std::time::Duration;

use homing_client::message::{
    Error, Fate, MessageSocket, NotSent, Outgoing, Received, wire::Refused,
};

use super::{Host, PATIENCE, echo, life, next, one_way, run};

/// Waits for the end of a message socket. Before it only fates may be told.
async fn ends(socket: &mut MessageSocket) {
    let ends = async {
        while let Ok(Some(received)) = socket.receiver.receive().await {
            assert!(matches!(received, Received::Fate { .. }), "{received:?}");
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ends).await;
    assert!(ended.is_ok(), "the message socket does not end");
}

#[test]
fn who_is_connected_to_an_application_that_ends_sees_the_end() {
    run(|folder| async move {
        let (one, two) = (Host::start(&folder, 1), Host::start(&folder, 2));
        for host in [&one, &two] {
            host.meet(&[(1, 1), (2, 1)]);
        }
        let service = two.offer("sink").await;
        let mut far = one.connect("sink", None).await;
        let mut near = two.connect("sink", None).await;
        far.sender.send(&one_way(b"unread")).await.unwrap();
        two.until("it has come", |counters| counters.messages_received == 1)
            .await;
        drop(service);
        for client in [&mut far, &mut near] {
            ends(client).await;
            let error = client.sender.send(&one_way(b"?")).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
        }
        let refused = one.agent().connect("sink", None, Duration::ZERO).await;
        let Err(Error::Refused { refused, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(refused, Refused::NoService);
    });
}

#[test]
fn a_reply_to_an_application_that_has_gone_is_told_as_not_sent() {
    run(|folder| async move {
        let (one, two) = (Host::start(&folder, 1), Host::start(&folder, 2));
        let mut service = two.offer("echo").await;
        let mut client = one.connect("echo", None).await;
        let request = Outgoing {
            body: b"?",
            name: 5,
            ..Outgoing::default()
        };
        client.sender.send(&request).await.unwrap();
        let (_, name, peer) = next(&mut service).await;
        drop(client);
        one.until("it is closed", |counters| counters.closed == 1)
            .await;
        let reply = Outgoing {
            body: b"!",
            name,
            peer,
            ..Outgoing::default()
        };
        service.sender.send(&reply).await.unwrap();
        let told = service.receiver.receive().await.unwrap();
        let fate = Fate::NotSent(NotSent::Gone);
        let (number, name) = (1, 5);
        assert_eq!(told, Some(Received::Fate { number, name, fate }));
    });
}

#[test]
fn an_agent_that_ends_takes_its_message_sockets_along() {
    run(|folder| async move {
        let (one, two) = (Host::start(&folder, 1), Host::start(&folder, 2));
        let mut service = two.offer("echo").await;
        let mut client = one.connect("echo", None).await;
        client.sender.send(&one_way(b"first")).await.unwrap();
        next(&mut service).await;
        two.stop().await;
        // Its application sees that, and so does the other one once the POP does.
        ends(&mut service).await;
        let two = Host::with(&folder, 2, Default::default(), |options| {
            options.stream = life(2)
        });
        one.meet(&[(1, 1), (2, 2), (3, 1)]);
        ends(&mut client).await;
        // A later life serves.
        tokio::spawn(echo(two.offer("echo").await));
        let mut client = one.connect("echo", None).await;
        client.sender.send(&one_way(b"again")).await.unwrap();
        assert_eq!(next(&mut client).await.0, b"again");
    });
}

#[test]
fn a_host_that_leaves_is_told_of() {
    run(|folder| async move {
        let (one, two) = (Host::start(&folder, 1), Host::start(&folder, 2));
        let _service = two.offer("echo").await;
        let mut client = one.connect("echo", None).await;
        one.meet(&[(1, 1), (3, 1)]);
        ends(&mut client).await;
        let refused = one.agent().connect("echo", Some(2), Duration::ZERO).await;
        let Err(Error::Refused { refused, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(refused, Refused::NoHost);
    });
}
