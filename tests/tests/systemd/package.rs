//! The life of the package on a host: installed, upgraded under traffic, removed, purged.

use std::time::Duration;

use homing_tests::{
    contained::Contained,
    lab::{Lab, unique, wait_until},
};

use super::common::{PATIENCE, Site, configure, goes_on, install, packages, unbroken};

/// How long a connection may stand still while the package is upgraded.
const BOUND: Duration = Duration::from_secs(2);

/// What a package of this name could have left.
const LEFT: &str = "find /etc /usr /var /run /sys/fs/bpf -iname '*homing*' | sort";

#[test]
fn the_package_is_installed_upgraded_under_traffic_and_removed() {
    let Some([first, second]) = packages() else {
        return;
    };
    let mut site = Site::up("package");
    let before = site.root.shell(LEFT).unwrap();
    let is = |site: &Site, state: &str| {
        let output = site.root.output("systemctl", &[state, "homing"]).unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };

    // Nothing is started: the configuration is the example.
    let said = site.install(first);
    assert!(said.contains("systemctl enable --now homing"), "{said}");
    assert_eq!(is(&site, "is-active"), "inactive");
    assert_eq!(is(&site, "is-enabled"), "disabled");
    site.root
        .run("homing", &["agent", "--check-config"])
        .unwrap();
    assert_eq!(site.root.run("dpkg", &["--verify", "homing"]).unwrap(), "");

    site.configure();
    site.start();
    let clients = site.traffic(24);
    let agent = site.show().pid();

    // Restarted with the new version, and no connection notices.
    site.install(second);
    let shown = site.show();
    assert_eq!(shown.get("SubState"), "running");
    assert_ne!(shown.pid(), agent, "the agent is the former version's");
    assert_eq!(version(&site), "0.1.0-2");
    site.wait_found();
    goes_on(&clients);
    let key = site.root.run("stat", &["/etc/homing/pop.key"]);
    key.expect("the key is there");

    // A configuration that the new version refuses: the agent that runs goes on.
    let agent = site.show().pid();
    site.root
        .shell("sed -i 's/^id = 1$/id = \"one\"/' /etc/homing/homing.toml")
        .unwrap();
    let said = site.install(first);
    assert!(said.contains("the agent is not restarted"), "{said}");
    assert!(said.contains("host.id"), "{said}");
    assert_eq!(site.show().pid(), agent);
    goes_on(&clients);
    site.configure();

    // One that does not run is not started; the kernel side goes on.
    site.systemctl(&["stop", "homing"]);
    site.install(second);
    assert_eq!(is(&site, "is-active"), "inactive");
    goes_on(&clients);
    site.systemctl(&["start", "homing"]);
    site.wait_found();
    let report = unbroken(clients, BOUND);
    println!("the slowest exchange took {} ms", report.slowest_ms);

    // Removed: the kernel side goes while the binary is there, the operator's files stay.
    assert!(site.program().is_some());
    site.root.run("dpkg", &["-r", "homing"]).unwrap();
    assert_eq!(is(&site, "is-active"), "inactive");
    assert_eq!(site.program(), None);
    let ours = |pin: &String| pin.contains("homing");
    assert!(!site.pinned().iter().any(ours), "{:?}", site.pinned());
    assert_eq!(site.seen(), "left");
    site.root
        .shell(
            "! test -e /usr/bin/homing; test -f /etc/homing/homing.toml -a -f /etc/homing/pop.key",
        )
        .unwrap();

    // Purged: nothing is left.
    site.root.run("dpkg", &["-P", "homing"]).unwrap();
    assert_eq!(site.root.shell(LEFT).unwrap(), before);
    let known = site.root.output("dpkg", &["-s", "homing"]).unwrap();
    assert!(!known.status.success(), "dpkg knows it");
    site.down();
}

fn version(site: &Site) -> String {
    let args = ["--show", "--showformat=${Version}", "homing"];
    site.root.run("dpkg-query", &args).unwrap()
}

#[test]
fn where_no_systemd_runs_the_package_touches_neither_agent_nor_kernel() {
    let Some([first, second]) = packages() else {
        return;
    };
    let lab = Lab::builder().name(&unique("chroot")).hosts(1).racks(1);
    let lab = lab.no_homing().up().unwrap();
    let root = Contained::bare(&lab, 1).unwrap();
    install(&root, first);
    configure(&lab, &root);
    // Somebody's own way to run it.
    root.shell("mkdir -p /run/homing; setsid homing agent >/var/log/agent 2>&1 &")
        .unwrap();
    let generation = || Ok(root.homing(&["status"])?["generation"].as_u64());
    let answers = wait_until(PATIENCE, || Ok(generation().is_ok()));
    assert!(
        answers.unwrap(),
        "{}",
        root.run("cat", &["/var/log/agent"]).unwrap()
    );
    let agent: anyhow::Result<_> = generation();
    let agent = agent.unwrap();
    install(&root, second);
    assert_eq!(generation().unwrap(), agent);
    root.shell("cp /usr/bin/homing /srv/homing; dpkg -r homing")
        .unwrap();
    root.shell("/srv/homing status; test -e /sys/fs/bpf/homing/homing/links/xdp_eth0")
        .unwrap();
    root.shell("dpkg -P homing; test -e /sys/fs/bpf/homing/homing/links/xdp_eth0")
        .unwrap();
    root.down().unwrap();
    lab.down().unwrap();
}
