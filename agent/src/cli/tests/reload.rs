//! `homing reload`.

use super::*;
use crate::admin::fake::EXAMPLE;

#[tokio::test]
async fn a_reload_says_which_keys_are_in_force_or_why_none_changed() {
    let served = Served::new();
    let (out, exit, _) = run(&served.path, "homing reload").await;
    assert_eq!(exit, Exit::Ok);
    assert!(out.contains("5f signs, a1 is accepted too"), "{out}");
    assert!(out.contains("were read and are in force"), "{out}");
    served.view.unhealthy.store(true, Ordering::Relaxed);
    let (_, exit, why) = run(&served.path, "homing reload").await;
    assert_eq!(exit, Exit::Failed);
    assert!(why.contains("must hold a key"), "{why}");
}

/// The configuration in force with other texts in it.
fn edited(edits: &[(&str, &str)]) -> Option<String> {
    let mut text = EXAMPLE.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    Some(text)
}

#[tokio::test]
async fn a_reload_lists_what_it_changes_and_a_dry_run_what_it_would() {
    let served = Served::new();
    let hold = ("#leave_hold = \"30s\"", "leave_hold = \"90s\"");
    *served.view.config.lock().unwrap() = edited(&[hold]);
    let (out, exit, _) = run(&served.path, "homing reload").await;
    assert_eq!(exit, Exit::Ok);
    let told = "pop.leave_hold: from \"30s\" to \"90s\"\nhoming.toml and the key file were read";
    assert!(out.starts_with(told), "{out}");
    let (out, exit, _) = run(&served.path, "homing reload --dry-run").await;
    assert_eq!(exit, Exit::Ok);
    assert!(out.contains("a reload would do that"), "{out}");
    let (out, _, _) = run(&served.path, "homing reload --dry-run --json").await;
    let told: api::Reloaded = serde_json::from_str(&out).expect("JSON");
    assert!(told.dry_run && told.changed);
    assert_eq!(told.changes[0].key, "pop.leave_hold");
}

#[tokio::test]
async fn a_reload_of_a_wrong_file_names_all_that_is_wrong_and_ends_like_a_check() {
    let served = Served::new();
    let typos = [
        ("id = 1\n", "id = 9999\n"),
        ("port = 443", "prot = 443"),
        ("host_prefix_len = 28", "host_prefix_len = 20"),
    ];
    *served.view.config.lock().unwrap() = edited(&typos);
    let (out, exit, why) = run(&served.path, "homing reload").await;
    assert_eq!((&*out, exit), ("", Exit::Config));
    for said in [
        "homing.toml:11: host.id: 9999 is out of range; fix: write one from 1 to 4095",
        "services[0].prot: unknown key; fix: write port",
        "services[1].prot: unknown key; fix: write port",
        "tunnel.host_prefix_len: 20 does not cut",
        "nothing has changed",
    ] {
        assert!(why.contains(said), "{said}: {why}");
    }
}

#[tokio::test]
async fn a_reload_that_needs_a_restart_names_the_key_and_both_values() {
    let served = Served::new();
    *served.view.config.lock().unwrap() = edited(&[
        ("#leave_hold = \"30s\"", "leave_hold = \"90s\""),
        ("domain = \"rack-1\"", "domain = \"rack-9\""),
    ]);
    for line in ["homing reload", "homing reload --dry-run"] {
        let (out, exit, why) = run(&served.path, line).await;
        assert_eq!((&*out, exit), ("", Exit::Failed));
        let named = "host.domain: from \"rack-1\" to \"rack-9\"";
        assert!(
            why.contains(named) && why.contains("its sessions stay"),
            "{why}"
        );
        assert!(!why.contains("leave_hold"), "{why}");
    }
}

#[test]
fn a_wrong_file_is_told_of_although_the_agent_is_not_found_by_it() {
    let folder = Folder::new();
    let file = folder.0.join("homing.toml");
    std::fs::write(&file, "x = 1\n").unwrap();
    let line = format!("homing reload --config {}", file.display());
    let unreachable = Failure::Unreachable {
        socket: "/run/homing/homing.sock".into(),
        why: "nobody answers there".to_owned(),
    };
    let failure = unheard(&parsed(&line), unreachable);
    assert_eq!(failure.exit(), Exit::Config);
    assert!(failure.to_string().contains("x: unknown key"), "{failure}");
}
