//! The demo of draining, small: what it claims of thousands of sessions holds of a few, and
//! it would tell if it did not. Needs root.

use std::process::Command;

use homing_tests::lab::unique;
use serde_json::Value;

/// Runs it; gives the exit code, the outcome and what it told meanwhile.
fn demo(name: &str, options: &[&str]) -> (i32, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_homing-lab"))
        .args(["demo", "drain", "--json", "--hosts", "3", "--seed", "5"])
        .args(["--lab", &unique(name)])
        .args(options)
        .output()
        .expect("homing-lab runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let outcome = serde_json::from_slice(&output.stdout);
    let outcome = outcome.unwrap_or_else(|error| panic!("{error}: {told}"));
    (output.status.code().expect("an exit code"), outcome, told)
}

#[test]
fn hosts_are_drained_and_killed_in_turn_and_no_client_notices() {
    let (code, outcome, told) = demo("dmd", &["--sessions", "40"]);
    assert_eq!(code, 0, "{outcome:#}\n{told}");
    assert_eq!(outcome["sessions"], 40);
    assert_eq!(outcome["broken"], 0);
    assert_eq!(outcome["client_resets"], 0);
    let number = |name: &str| outcome[name].as_f64().expect(name);
    // Each session was on one of the hosts, and most of them were on another later.
    assert!(number("moved") >= 40.0, "{outcome:#}");
    assert!(number("bytes_verified") > 1e6, "{outcome:#}");
    assert!(number("drain_s") > 0.0);
    assert!(outcome["client_retransmits"].is_u64());
    let drains = outcome["drains"].as_array().expect("a list");
    assert_eq!(drains.len(), 3);
    for drain in drains {
        assert_eq!(drain["end"], "drained", "{drain:#}");
        assert!(drain["moved"].as_u64() > Some(0), "{drain:#}");
    }
    for kind in ["plain", "downloads", "tls"] {
        assert!(outcome[kind]["opened"].as_u64() > Some(1), "{kind}");
    }
}

/// What shows that nothing is wrong must be able to show that something is.
#[test]
fn states_that_are_a_byte_off_are_noticed() {
    let (code, outcome, told) = demo("dms", &["--sessions", "30", "--drains", "1", "--spoil"]);
    assert_eq!(code, 1, "{outcome:#}");
    // How many sessions the drained host had is chance, and what a wrong byte does to each.
    let count = |name: &str| outcome[name].as_u64().expect(name);
    let broken = count("broken");
    assert!(0 < broken && broken <= count("moved"), "{outcome:#}");
    assert!(told.contains("claim failed"), "{told}");
}
