//! The application ends, at every step: the agent's end says so, and holds nothing.

use homing_agent::migration::app::{Event, Failure, Left, Pending};

use super::common::*;

async fn gone(agent: &mut Agent) -> Vec<Left> {
    let moves = match agent.event().await {
        Event::Gone { moves, .. } => moves,
        event => panic!("not gone: {event:?}"),
    };
    assert_eq!(agent.apps.held_bytes(), 0);
    assert_eq!(agent.apps.status(), []);
    moves
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_asked() {
    for kind in Kind::ALL {
        let mut agent = Agent::start(new_service());
        let endpoint = agent.service();
        for step in ["export", "import", "give", "adopt"] {
            let mut app = agent.run(kind).await;
            let mut client = Client::connect(endpoint).await;
            client.ask("first", 1).await;
            let session = agent.session(&client);
            if matches!(step, "give" | "adopt") {
                agent.import(1).await;
            }
            if step == "adopt" {
                agent.apps.give(1, state(0, "", "")).await.expect("kept");
            }
            // It has been asked, and will never answer.
            app.freeze();
            let apps = agent.apps.clone();
            let to_come = agent.to_come();
            let asked = tokio::spawn(async move {
                match step {
                    "export" => apps.export(1, session).await.map(drop),
                    "import" => {
                        let family = homing_agent::migration::app::Family::V4;
                        apps.import(1, to_come, family).await.map(drop)
                    }
                    "give" => apps.give(1, state(0, "", "")).await,
                    _ => apps.adopt(1).await,
                }
            });
            homing_tests::sandbox::eventually("it is asked", || {
                agent.apps.status().iter().any(|app| app.asked == 1)
            });
            app.kill();
            assert_eq!(asked.await.expect("joined"), Err(Failure::Gone), "{step}");
            assert_eq!(gone(&mut agent).await, [], "{step}");
            client.ended().await;
        }
        agent.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_steps() {
    for kind in Kind::ALL {
        let mut agent = Agent::start(new_service());
        let endpoint = agent.service();

        // What it exported the agent still has, and it is alive.
        let mut app = agent.run(kind).await;
        let mut client = Client::connect(endpoint).await;
        client.ask("first", 1).await;
        let exported = agent.export(1, &client).await;
        app.kill();
        let left = Left {
            number: 1,
            session: agent.session(&client),
            pending: Pending::Export,
        };
        assert_eq!(gone(&mut agent).await, [left]);
        client.write("second\n").await;
        unread(&exported.descriptor, "second\n").await;
        assert_eq!(
            agent.apps.resume(1, Some(exported.state)),
            Err(Failure::NotPending)
        );
        drop(exported.descriptor);
        client.ended().await;

        for pending in [Pending::Import, Pending::Kept] {
            let mut app = agent.run(kind).await;
            drop(agent.import(2).await);
            if pending == Pending::Kept {
                agent.apps.give(2, state(0, "", "")).await.expect("kept");
            }
            app.kill();
            let left = Left {
                number: 2,
                session: agent.to_come(),
                pending,
            };
            assert_eq!(gone(&mut agent).await, [left]);
            assert_eq!(agent.apps.adopt(2).await, Err(Failure::NotPending));
        }

        // What it adopted ends with it.
        let mut app = agent.run(kind).await;
        let socket = agent.import(3).await;
        agent.apps.give(3, state(0, "", "")).await.expect("kept");
        let mut client = Client::of(&socket).await;
        drop(socket);
        agent.apps.adopt(3).await.expect("adopted");
        client.ask("first", 1).await;
        app.kill();
        assert_eq!(gone(&mut agent).await, []);
        client.ended().await;
        agent.end();
    }
}
