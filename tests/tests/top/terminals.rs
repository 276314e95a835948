//! The terminal is given back, whatever ends the command, and needed.

use std::process::{Command, Stdio};

use homing_tests::lab::{Lab, Node, unique, wait_until};
use nix::sys::signal::Signal;

use super::terminal::{PATIENCE, Terminal};

const HOST: Node = Node::Host(1);

#[test]
fn whatever_ends_it_the_terminal_is_given_back() {
    let lab = Lab::builder().name(&unique("topend")).hosts(1).racks(1);
    let mut lab = lab.up().unwrap();
    let start = |lab: &Lab| {
        let mut top = Terminal::start(lab, HOST, &["top", "--interval", "100ms"], (24, 80));
        top.wait("a picture", |text| text.starts_with("host 1 in rack-1"));
        assert!(top.is_taken());
        top
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut top = start(&lab);
        top.signal(signal);
        assert_eq!(top.ends(), 0, "{signal}");
        top.is_given_back();
    }
    for keys in ["q", "\x1b", "\x03"] {
        let mut top = start(&lab);
        top.types(keys);
        assert_eq!(top.ends(), 0, "{keys:?}");
        top.is_given_back();
    }

    // A terminal that takes nothing cannot be told to show what it showed; its modes are
    // the kernel's, and signals are heard all the same.
    let mut top = start(&lab);
    top.stall();
    top.types("?");
    top.signal(Signal::SIGTERM);
    assert_eq!(top.ends(), 0);
    top.has_its_modes();

    // Without an agent it does not begin.
    lab.stop(1).unwrap();
    let mut top = Terminal::start(&lab, HOST, &["top"], (24, 80));
    assert_eq!(top.ends(), 3);
    top.is_given_back();
    let is_told = || Ok(top.text().contains("homing: cannot reach the agent at"));
    assert!(wait_until(PATIENCE, is_told).unwrap(), "{}", top.text());
    drop(top);
    lab.down().unwrap();
}

#[test]
fn without_a_terminal_it_says_what_to_use_instead() {
    let lab = Lab::builder().name(&unique("topno")).hosts(1).racks(1);
    let lab = lab.no_homing().up().unwrap();
    for (args, why) in [
        (vec!["top"], "the standard output is not a terminal"),
        (vec!["top", "--json"], "it has no JSON"),
    ] {
        let mut command = Command::new("homing");
        command.args(args).stdin(Stdio::null());
        lab.place(HOST, &mut command).unwrap();
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty());
        let wanted = format!(
            "homing: cannot show the screen of `homing top`: {why}; use `homing stats --watch`"
        );
        assert!(said.starts_with(&wanted), "{said}");
    }
    lab.down().unwrap();
}
