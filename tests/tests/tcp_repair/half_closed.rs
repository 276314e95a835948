//! Sessions of which one side has shut down writing.

use super::case::{Case, Out, Shut, play};

fn cases(shut: Shut) -> impl Iterator<Item = Case> {
    [false, true].into_iter().map(move |v6| Case {
        v6,
        shut,
        moves: 2,
        ..Case::new()
    })
}

#[test]
fn the_client_has_shut_down_and_the_server_goes_on() {
    for case in cases(Shut::Client) {
        play(&case);
        play(&Case {
            unread: 7000,
            out: Out::Both(60_000),
            ..case
        });
    }
}

#[test]
fn the_server_has_shut_down_and_the_client_goes_on() {
    for case in cases(Shut::Server) {
        play(&case);
        play(&Case {
            unread: 7000,
            ..case
        });
    }
}

#[test]
fn a_fin_that_was_sent_is_acknowledged_after_the_move() {
    for case in cases(Shut::ServerUnacknowledged) {
        play(&case);
        play(&Case {
            unread: 7000,
            out: Out::Unacknowledged(5000),
            ..case
        });
    }
}

#[test]
fn a_fin_that_was_never_sent_follows_what_was_never_sent() {
    for case in cases(Shut::ServerUnacknowledged) {
        play(&Case {
            unread: 7000,
            out: Out::Both(60_000),
            ..case
        });
    }
}
