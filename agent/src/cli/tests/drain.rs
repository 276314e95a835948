//! `homing drain`, `homing undrain` and `homing move`.

use std::{num::NonZeroU32, time::Duration};

use homing_common::host::HostId;

use super::*;
use crate::{admin::DrainOrder, migration::drain::Wanted};

fn orders(served: &Served) -> Vec<DrainOrder> {
    served.view.drain.orders.lock().expect("lock").clone()
}

#[tokio::test]
async fn a_drain_is_followed_to_its_end() {
    let served = Served::new();
    let (out, exit, why) = run(&served.path, "homing drain").await;
    assert_eq!((exit, why.as_str()), (Exit::Ok, ""));
    assert!(
        out.contains("this host takes no new sessions, 1 others do"),
        "{out}"
    );
    assert!(out.contains("20 moved, 3 in TIME_WAIT, in 0.5 s"), "{out}");
    assert!(out.contains("310 µs (median), 99 % for 800 µs"), "{out}");
    let (out, exit, _) = run(&served.path, "homing drain --json").await;
    assert_eq!(exit, Exit::Ok);
    let drain: api::Drain = serde_json::from_str(&out).expect("JSON");
    let end = drain.run.and_then(|run| run.end);
    assert_eq!(end, Some(api::DrainEnd::Drained));
}

#[tokio::test]
async fn what_is_left_is_told_by_its_reason_and_the_exit_code_says_that_there_is_some() {
    let served = Served::new();
    served.view.drain.immovable.store(4, Ordering::Relaxed);
    let (out, exit, why) = run(&served.path, "homing drain").await;
    assert_eq!((exit, why.as_str()), (Exit::Failed, ""));
    assert!(out.contains("20 moved, 4 are left"), "{out}");
    assert!(
        out.contains("4  no_application  no application here"),
        "{out}"
    );
    // Looking at it changes nothing, and is no failure.
    let before = orders(&served).len();
    let (out, exit, _) = run(&served.path, "homing drain --status").await;
    assert_eq!((exit, orders(&served).len()), (Exit::Ok, before));
    assert!(out.contains("4 are left"), "{out}");
}

#[tokio::test]
async fn a_session_that_is_lost_is_a_failure() {
    let served = Served::new();
    served.view.drain.lost.store(1, Ordering::Relaxed);
    let (out, exit, _) = run(&served.path, "homing drain").await;
    assert_eq!(exit, Exit::Failed);
    assert!(out.contains("20 moved, 1 lost"), "{out}");
}

#[tokio::test]
async fn the_agent_is_told_what_was_asked_for() {
    let served = Served::new();
    run(&served.path, "homing drain").await;
    let line = "homing drain --to 2 3,4 --deadline 2m --rate 7 --wait --force";
    run(&served.path, line).await;
    run(&served.path, "homing drain --no-move").await;
    let order = |wanted, moves, force| DrainOrder {
        wanted,
        moves,
        force,
    };
    let wanted = Wanted {
        to: Some([2, 3, 4].map(HostId).into()),
        rate: NonZeroU32::new(7),
        deadline: Some(Duration::from_secs(120)),
        wait: true,
    };
    let all = [
        order(Wanted::default(), true, false),
        order(wanted, true, true),
        order(Wanted::default(), false, false),
    ];
    assert_eq!(orders(&served), all);
}

#[tokio::test]
async fn without_moves_the_end_of_sessions_is_waited_for_if_asked() {
    let served = Served::new();
    let open = |sessions| served.view.open.store(sessions, Ordering::Relaxed);
    open(1000);
    let (out, exit, _) = run(&served.path, "homing drain --no-move").await;
    assert_eq!(exit, Exit::Ok);
    assert!(out.contains("no new sessions, 1 others do; "), "{out}");
    assert!(!out.contains("moved"), "{out}");
    let late = "homing drain --no-move --wait --deadline 300ms";
    let (out, exit, why) = run(&served.path, late).await;
    assert_eq!((out.as_str(), exit), ("", Exit::Failed));
    assert!(why.contains("sessions are still open after"), "{why}");
    open(2);
    let (out, exit, _) = run(&served.path, "homing drain --no-move --wait --json").await;
    assert_eq!(exit, Exit::Ok);
    let ended: api::Drain = serde_json::from_str(&out).expect("JSON");
    assert!(ended.draining && ended.sessions == 0, "{ended:?}");
}

#[tokio::test]
async fn a_command_that_fails_is_told_and_keeps_the_drain_from_beginning() {
    let served = Served::new();
    served
        .view
        .drain
        .command_fails
        .store(true, Ordering::Relaxed);
    let (_, exit, why) = run(&served.path, "homing drain").await;
    assert_eq!(exit, Exit::Failed);
    assert!(
        why.contains("goes on taking sessions: /bin/false ended with"),
        "{why}"
    );
    assert!(why.contains("--force"), "{why}");
    let (out, exit, _) = run(&served.path, "homing drain --force").await;
    assert_eq!(exit, Exit::Ok, "{out}");
    let (out, exit, why) = run(&served.path, "homing undrain").await;
    assert_eq!(exit, Exit::Failed);
    assert!(out.contains("takes new sessions; "), "{out}");
    assert!(why.contains("drain.on_undrain failed: /bin/false"), "{why}");
    served
        .view
        .drain
        .command_fails
        .store(false, Ordering::Relaxed);
    let (_, exit, why) = run(&served.path, "homing undrain").await;
    assert_eq!((exit, why.as_str()), (Exit::Ok, ""));
}

#[tokio::test]
async fn a_move_says_what_came_of_it() {
    let served = Served::new();
    let (out, exit, _) = run(
        &served.path,
        "homing move 198.51.100.7:40312 203.0.113.10:443 3 --deadline 5ms",
    )
    .await;
    assert_eq!(exit, Exit::Ok);
    let words = "has moved to host 3 in 5.000 ms, standing still for 1.234 ms";
    assert!(out.contains(words), "{out}");
    let failed = "homing move 198.51.100.7:40313 203.0.113.10:443 3";
    let (out, exit, why) = run(&served.path, failed).await;
    assert_eq!((exit, why.as_str()), (Exit::Failed, ""));
    let words = "goes on here after standing still for 1.234 ms: there was no answer in time, while sending";
    assert!(out.contains(words), "{out}");
    let (out, exit, _) = run(&served.path, &format!("{failed} --json")).await;
    assert_eq!(exit, Exit::Failed);
    let moved: api::Moved = serde_json::from_str(&out).expect("JSON");
    assert_eq!(moved.outcome, api::MoveOutcome::Aborted);
    let elsewhere = "homing move 198.51.100.7:40399 203.0.113.10:443 3";
    let (out, exit, why) = run(&served.path, elsewhere).await;
    assert_eq!((out.as_str(), exit), ("", Exit::NotFound));
    assert!(why.contains("host 3 has it"), "{why}");
}
