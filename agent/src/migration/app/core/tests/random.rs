//! Random histories: whatever applications say and the agent wants, every request is
//! answered once, and nothing is left in the end.

use proptest::{collection::vec, prelude::*};

use super::*;

#[derive(Clone, Debug)]
enum Act {
    Connect(u16),
    Gone(usize),
    /// An application says something of a move; the kind chooses what.
    Say(usize, u64, u8),
    Export(u64, u16),
    Import(u64, u16),
    Resume(u64, bool),
    Committed(u64),
    Give(u64, u8),
    Adopt(u64),
    Drop(u64),
    Wait(u16),
    Read(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let (app, number, client) = (0..3usize, 1..6u64, 1..4u16);
    prop_oneof![
        2 => (1..4u16).prop_map(Act::Connect),
        1 => app.clone().prop_map(Act::Gone),
        12 => (app.clone(), number.clone(), 0..12u8).prop_map(|(a, n, k)| Act::Say(a, n, k)),
        4 => (number.clone(), client.clone()).prop_map(|(n, c)| Act::Export(n, c)),
        4 => (number.clone(), client).prop_map(|(n, c)| Act::Import(n, c)),
        2 => (number.clone(), any::<bool>()).prop_map(|(n, s)| Act::Resume(n, s)),
        2 => number.clone().prop_map(Act::Committed),
        4 => (number.clone(), 0..120u8).prop_map(|(n, l)| Act::Give(n, l)),
        4 => number.clone().prop_map(Act::Adopt),
        2 => number.prop_map(Act::Drop),
        2 => (0..1500u16).prop_map(Act::Wait),
        4 => app.prop_map(Act::Read),
    ]
}

/// Says what fits a move, most of the time: applications that are closed at once would
/// show little.
fn say(bench: &mut Bench, app: AppId, number: u64, kind: u8) {
    let honest = bench.core.moves.get(&number).filter(|one| one.app == app);
    let fitting = honest.map(|one| match one.step {
        Step::Exporting(_) => Message::Exported { number },
        Step::Importing(_) => Message::Imported { number },
        Step::Giving => Message::Kept { number },
        Step::Adopting => Message::Adopted { number },
        _ => Message::Refuse {
            number,
            reason: Reason::Cancelled,
            text: "",
        },
    });
    match (kind, fitting) {
        (0, _) => bench.say(app, Message::Kept { number }),
        (1, _) => bench.state(app, number, 40, 0, &[1; 20]),
        (2, _) => bench.state(app, number, 40, 20, &[1; 20]),
        (3, Some(_)) => bench.say(
            app,
            Message::Refuse {
                number,
                reason: Reason::Failed,
                text: "no",
            },
        ),
        (_, Some(message)) => bench.say(app, message),
        (_, None) => {}
    }
}

proptest! {
    #[test]
    fn every_request_is_answered_once_and_nothing_is_left(acts in vec(act(), 1..120)) {
        let mut bench = Bench::new();
        let mut apps = Vec::new();
        let mut asked: HashMap<u64, u32> = HashMap::new();
        let mut answered: HashMap<u64, u32> = HashMap::new();
        for act in acts {
            let now = bench.now;
            let mut ask = |number: u64, result: Result<(), Failure>| {
                if result.is_ok() {
                    *asked.entry(number).or_default() += 1;
                }
            };
            match act {
                Act::Connect(port) => {
                    if let Ok(app) = bench.core.connected(Peer::default(), now) {
                        bench.register(app, &[port]);
                        bench.say(app, Message::Ready);
                        apps.push(app);
                    }
                }
                Act::Gone(n) => if let Some(&app) = apps.get(n) {
                    bench.core.gone(app);
                    apps.remove(n);
                },
                Act::Say(n, number, kind) => if let Some(&app) = apps.get(n) {
                    say(&mut bench, app, number, kind);
                },
                Act::Export(number, client) => {
                    ask(number, bench.core.export(number, session(client, client), now));
                }
                Act::Import(number, client) => {
                    ask(number, bench.core.import(number, session(client, client), Family::V4, now));
                }
                Act::Resume(number, state) => {
                    let state = state.then(|| Blob::from(vec![1; 30]));
                    let _ = bench.core.resume(number, state);
                }
                Act::Committed(number) => drop(bench.core.committed(number)),
                Act::Give(number, len) => {
                    ask(number, bench.core.give(number, Blob::from(vec![1; len.into()]), now));
                }
                Act::Adopt(number) => ask(number, bench.core.adopt(number, now)),
                Act::Drop(number) => drop(bench.core.drop_import(number)),
                Act::Wait(ms) => bench.wait(Duration::from_millis(ms.into())),
                Act::Read(n) => if let Some(&app) = apps.get(n) {
                    bench.sent(app);
                },
            }
            for output in bench.outputs() {
                match output {
                    Output::Answer(number, _) => *answered.entry(number).or_default() += 1,
                    Output::Close(app, ..) => apps.retain(|&other| other != app),
                    _ => {}
                }
            }
            // Never more answers than requests, and the bounds hold.
            for (number, count) in &answered {
                prop_assert!(asked.get(number) >= Some(count));
            }
            prop_assert!(bench.core.held_bytes() <= bench.core.limits().blobs);
            for app in bench.core.apps.values() {
                prop_assert!(app.moves.len() <= 4 && app.outbox.len() <= 4 * 4 + 4 * 3 + 2);
            }
        }
        bench.core.close_all();
        for output in bench.outputs() {
            if let Output::Answer(number, _) = output {
                *answered.entry(number).or_default() += 1;
            }
        }
        prop_assert_eq!(asked, answered);
        bench.assert_empty();
        prop_assert!(bench.core.apps.is_empty() && bench.core.holders.is_empty());
    }
}
