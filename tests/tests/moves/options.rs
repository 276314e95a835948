//! What both ends agreed on when a session began holds wherever it goes: window scales,
//! selective acknowledgements, timestamps, the size of segments.

use std::fs;

use anyhow::Context as _;
use homing_tests::{
    lab::{Node, node::in_namespace},
    puppet::ECHO,
};

use super::{
    client::Wish,
    common::{Pop, Scene, shared},
};

/// Settings of machines, below `/proc/sys/net`, as they were before.
struct Settings(Vec<(String, String, String)>);

impl Settings {
    fn set(pop: &Pop, settings: &[(Node, &str, String)]) -> Self {
        let set = |(node, name, value): &(Node, &str, String)| {
            let namespace = pop.lab.namespace(*node);
            let path = format!("/proc/sys/net/{name}");
            let before = in_namespace(&namespace, || {
                let before = fs::read_to_string(&path)?;
                fs::write(&path, value).with_context(|| format!("{path}: {value}"))?;
                Ok(before)
            });
            (namespace, path, before.unwrap())
        };
        Self(settings.iter().map(set).collect())
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        for (namespace, path, before) in self.0.iter().rev() {
            in_namespace(namespace, || Ok(fs::write(path, before)?)).ok();
        }
    }
}

/// A session that begins under these settings moves under others, with data both ways.
fn play(pop: &mut Pop, scene: &mut Scene, v6: bool, wish: Wish, settings: &[(Node, &str, String)]) {
    let service = pop.lab.plan().service(ECHO)[usize::from(v6)];
    let begun = Settings::set(pop, settings);
    let mut client = pop.connect(1, service, wish);
    drop(begun);
    scene.path(client.address, &[1, 2, 3]);
    client.bulk(200_000);
    pop.go(1, 2, &client);
    client.bulk(200_000);
    pop.go(2, 3, &client);
    client.bulk(200_000);
    client.shut();
    client.hear_end();
}

/// The kernel offers the scale that the largest buffer needs, and a clamp bounds that
/// from above (net/ipv4/tcp_output.c, `tcp_select_initial_window`).
fn memory(scale: u32) -> String {
    format!("4096 131072 {}", (1u64 << (15 + scale)).max(131_072))
}

fn scaled(pop: &mut Pop, scene: &mut Scene, v6: bool, [client, host]: [u32; 2]) {
    let settings = [
        (Node::Client(1), "ipv4/tcp_rmem", memory(client)),
        (Node::Host(1), "ipv4/tcp_rmem", memory(host)),
    ];
    let wish = Wish {
        // Beneath this the machine's own limit would count for more.
        clamp: (client < 4).then(|| (1 << (16 + client)) - 1),
        ..Wish::default()
    };
    play(pop, scene, v6, wish, &settings);
}

const AGREED: [&str; 3] = [
    "ipv4/tcp_window_scaling",
    "ipv4/tcp_sack",
    "ipv4/tcp_timestamps",
];

#[test]
fn what_was_agreed_on_holds_after_a_move() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for (v6, scales) in [(false, [0, 14]), (true, [14, 2])] {
        scaled(pop, &mut scene, v6, scales);
    }
    for (number, name) in AGREED.into_iter().enumerate() {
        let off = [(Node::Client(1), name, "0".to_owned())];
        play(pop, &mut scene, number % 2 == 1, Wish::default(), &off);
    }
    for v6 in [false, true] {
        let mss = Some(if v6 { 536 } else { 300 });
        let wish = Wish {
            mss,
            ..Wish::default()
        };
        play(pop, &mut scene, v6, wish, &[]);
    }
    scene.end(pop);
}

#[test]
#[ignore = "takes a minute: `cargo xtask test --full`"]
fn whatever_was_agreed_on_holds_after_a_move() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for scale in 0..=14 {
        for v6 in [false, true] {
            scaled(pop, &mut scene, v6, [scale, 14 - scale]);
        }
    }
    for v6 in [false, true] {
        for bits in 0..8 {
            let off: Vec<_> = (0..3)
                .filter(|bit| bits >> bit & 1 == 1)
                .map(|bit| (Node::Client(1), AGREED[bit], "0".to_owned()))
                .collect();
            for mss in [None, Some(536), Some(1200)] {
                let wish = Wish {
                    mss,
                    ..Wish::default()
                };
                play(pop, &mut scene, v6, wish, &off);
            }
        }
    }
    scene.end(pop);
}
