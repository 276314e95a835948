//! What can stand in queues, what both ends may have agreed on, and combinations of it.

use super::case::{Case, Out, Shut, play};

const OUTS: [Out; 4] = [
    Out::Nothing,
    Out::Unacknowledged(5000),
    Out::Unsent(60_000),
    Out::Both(60_000),
];

/// Every combination of what stands in queues.
fn queues(v6: bool) -> impl Iterator<Item = Case> {
    [0, 7000].into_iter().flat_map(move |unread| {
        OUTS.map(|out| Case {
            v6,
            unread,
            out,
            ..Case::new()
        })
    })
}

/// One end's window scale: the kernel offers what the largest buffer needs, and a clamp
/// bounds that from above (net/ipv4/tcp_output.c, `tcp_select_initial_window`).
fn scale(scale: u32) -> (Vec<(&'static str, String)>, Option<i32>) {
    let largest = 1i64 << (15 + scale);
    let memory = format!("4096 131072 {}", largest.max(131_072));
    // Beneath this the machine's own limit would count for more.
    let clamp = (scale < 4).then(|| (largest * 2 - 1) as i32);
    (vec![("ipv4/tcp_rmem", memory)], clamp)
}

fn scaled(client: u32, host: u32) -> Case {
    let ((client_settings, client), (host_settings, host)) = (scale(client), scale(host));
    Case {
        client_settings,
        host_settings,
        clamps: [client, host],
        unread: 3000,
        out: Out::Unacknowledged(5000),
        ..Case::new()
    }
}

fn without(what: &'static str) -> Case {
    Case {
        client_settings: vec![(what, "0".into())],
        unread: 3000,
        out: Out::Both(60_000),
        ..Case::new()
    }
}

#[test]
fn whatever_stands_in_queues_arrives_once() {
    for case in queues(false) {
        play(&case);
    }
}

#[test]
fn so_it_does_over_ipv6() {
    for case in queues(true) {
        play(&case);
    }
}

#[test]
fn nothing_is_sent_again_where_nothing_was_on_its_way() {
    for v6 in [false, true] {
        let report = play(&Case {
            v6,
            moves: 4,
            ..Case::new()
        });
        assert_eq!(report.repeated, [0, 0]);
    }
}

#[test]
fn a_session_moves_there_and_back_with_full_queues() {
    for v6 in [false, true] {
        play(&Case {
            v6,
            unread: 7000,
            out: Out::Both(60_000),
            moves: 3,
            ..Case::new()
        });
    }
}

#[test]
fn an_ipv4_session_of_a_socket_for_both_versions_moves() {
    play(&Case {
        mapped: true,
        unread: 7000,
        out: Out::Both(60_000),
        moves: 2,
        ..Case::new()
    });
}

#[test]
fn a_mebibyte_in_each_queue_moves() {
    play(&Case {
        unread: 1 << 20,
        out: Out::Both(1 << 20),
        moves: 2,
        ..Case::new()
    });
}

#[test]
fn window_scales_are_kept() {
    for (client, host) in [(0, 14), (14, 0), (3, 9)] {
        play(&scaled(client, host));
    }
}

#[test]
fn what_was_not_agreed_on_is_not_used() {
    for what in [
        "ipv4/tcp_window_scaling",
        "ipv4/tcp_sack",
        "ipv4/tcp_timestamps",
    ] {
        play(&without(what));
    }
}

#[test]
fn a_small_mss_is_kept() {
    for v6 in [false, true] {
        play(&Case {
            v6,
            mss: Some(300),
            out: Out::Both(60_000),
            ..Case::new()
        });
    }
}

#[test]
fn congestion_controls_are_kept() {
    for name in ["reno", "cubic"] {
        play(&Case {
            congestion: Some(name),
            out: Out::Both(60_000),
            ..Case::new()
        });
    }
}

#[test]
#[ignore = "takes a minute: `cargo xtask test --full`"]
fn the_whole_matrix() {
    for scale in 0..=14 {
        for case in [scaled(scale, 14 - scale), scaled(scale, scale)] {
            play(&case);
            play(&Case { v6: true, ..case });
        }
    }
    let settings = [
        "ipv4/tcp_window_scaling",
        "ipv4/tcp_sack",
        "ipv4/tcp_timestamps",
    ];
    for v6 in [false, true] {
        for queue in queues(v6) {
            for shut in [
                Shut::Nobody,
                Shut::Client,
                Shut::Server,
                Shut::ServerUnacknowledged,
            ] {
                // Nothing is acknowledged after what is not.
                if shut == Shut::Server && queue.out != Out::Nothing {
                    continue;
                }
                for off in [
                    None,
                    Some(settings[0]),
                    Some(settings[1]),
                    Some(settings[2]),
                ] {
                    play(&Case {
                        shut,
                        client_settings: off
                            .map(|name| (name, "0".to_owned()))
                            .into_iter()
                            .collect(),
                        moves: 2,
                        ..queue.clone()
                    });
                }
            }
        }
        for mss in [88, 300, 536, 1200] {
            play(&Case {
                v6,
                mss: Some(mss),
                unread: 7000,
                out: Out::Both(60_000),
                moves: 2,
                ..Case::new()
            });
        }
    }
}
