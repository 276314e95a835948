//! The root itself: contained, or nothing starts.

use std::{fs, path::Path, time::Duration};

use homing_tests::{
    contained::{Contained, Outside, breaches},
    lab::{Lab, unique, wait_until},
};

fn lab(name: &str) -> Lab {
    let lab = Lab::builder().name(&unique(name)).hosts(1).racks(1);
    lab.no_homing().up().unwrap()
}

#[test]
fn whatever_is_the_machines_is_found() {
    let name = format!("homing-not-contained-{}", std::process::id());
    let marks = ["/tmp", "/run", "/var/tmp"].map(|folder| Path::new(folder).join(&name));
    for mark in &marks {
        fs::write(mark, "").unwrap();
    }
    let found = breaches(&Outside::here(&name).unwrap()).join("\n");
    for mark in &marks {
        fs::remove_file(mark).unwrap();
    }
    for what in [
        "this is not the first process",
        "/proc is another's",
        "the mnt namespace is the machine's",
        "the pid namespace is the machine's",
        "the net namespace is the machine's",
        "the ipc namespace is the machine's",
        "the uts namespace is the machine's",
        "the cgroup namespace is the machine's",
        "/tmp is the machine's",
        "/run is the machine's",
        "/var/tmp is the machine's",
        "/sys can be written",
        "/proc/sys can be written",
        "the cgroups are the machine's",
        "CAP_SYS_TIME can be had",
    ] {
        assert!(found.contains(what), "{what} was not found in\n{found}");
    }
}

#[test]
fn what_is_done_in_it_stays_in_it_and_ends_with_it() {
    let lab = lab("contain");
    let root = Contained::bare(&lab, 1).unwrap();
    // A file of the machine's own, harmless to lose.
    let file = lab.folder().join("of-the-machine");
    fs::write(&file, "").unwrap();
    let path = file.to_str().unwrap();
    root.run("test", &["-f", path]).unwrap();
    root.shell(&format!("rm {path}; echo new >{path}.new"))
        .unwrap();
    assert!(file.is_file());
    assert!(!lab.folder().join("of-the-machine.new").exists());
    // Asked, and not tried: nothing harms the machine where it could be done.
    for forbidden in ["/proc/sys/kernel/sysrq", "/proc/sysrq-trigger", "/sys/fs"] {
        let output = root.output("test", &["-w", forbidden]).unwrap();
        assert!(!output.status.success(), "{forbidden}");
    }
    const TIME_AND_MODULES: u64 = 1 << 25 | 1 << 16;
    let status = root.run("cat", &["/proc/self/status", "/proc/1/status"]);
    for line in status.unwrap().lines() {
        if let Some(bits) = line
            .strip_prefix("CapBnd:")
            .or(line.strip_prefix("CapEff:"))
        {
            let bits = u64::from_str_radix(bits.trim(), 16).unwrap();
            assert_eq!(bits & TIME_AND_MODULES, 0, "{line}");
        }
    }
    let own = root.init();
    root.down().unwrap();
    assert!(!Path::new(&format!("/proc/{own}")).exists());
    lab.down().unwrap();
}

#[test]
fn it_dies_with_whoever_made_it() {
    let lab = lab("orphan");
    let root = std::thread::scope(|scope| {
        let maker = scope.spawn(|| Contained::bare(&lab, 1).unwrap());
        maker.join().unwrap()
    });
    let init = root.init();
    let path = format!("/proc/{init}/ns/net");
    let gone = wait_until(
        Duration::from_secs(10),
        || Ok(fs::read_link(&path).is_err()),
    );
    assert!(gone.unwrap(), "process {init} is there");
    root.down().unwrap();
    lab.down().unwrap();
}
