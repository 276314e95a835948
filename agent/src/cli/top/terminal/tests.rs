//! What only a failure of the command itself shows: these tests run themselves once more, in a
//! pseudo-terminal, and look at what is left of it.

use std::{
    io::Read as _,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    pty::{OpenptyResult, openpty},
    sys::termios::{Termios, tcgetattr},
};
use ratatui::widgets::Paragraph;

use super::*;

/// Says to the test that it is the one in the terminal.
const INSIDE: &str = "HOMING_TEST_INSIDE";

/// How long the test in the terminal may take.
const WITHIN: Duration = Duration::from_secs(20);

/// Whether this is the run in the terminal.
fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// A test of this module that runs in a terminal.
struct Inside {
    master: File,
    slave: OwnedFd,
    before: Termios,
    child: Child,
}

impl Inside {
    fn run(test: &str) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).expect("a terminal");
        let before = tcgetattr(&slave).expect("modes");
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        let name = format!("cli::top::terminal::tests::{test}");
        command.args([&name, "--exact", "--nocapture", "--test-threads=1"]);
        command.env(INSIDE, "1").env("RUST_BACKTRACE", "0");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only two system calls are made.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                // The standard input is the terminal by now.
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        Self {
            master: master.into(),
            slave,
            before,
            child: command.spawn().expect("it starts"),
        }
    }

    /// Waits for its end, without reading what it writes.
    fn ends(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            if begun.elapsed() > WITHIN {
                let _ = self.child.kill();
                panic!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that it has written, once nobody else has the terminal.
    fn written(mut self) -> String {
        drop(self.slave);
        let mut bytes = Vec::new();
        // That the other end is gone is an error here.
        let _ = self.master.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[test]
fn a_panic_is_told_on_the_screen_that_was_there_before() {
    if is_inside() {
        let _terminal = Terminal::take().expect("a terminal");
        panic!("as this test wants it");
    }
    let mut inside = Inside::run("a_panic_is_told_on_the_screen_that_was_there_before");
    assert!(!inside.ends().success());
    assert_eq!(tcgetattr(&inside.slave).expect("modes"), inside.before);
    let text = inside.written();
    let at = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("no {what:?} in {text:?}"))
    };
    assert!(at("\x1b[?1049h") < at("\x1b[?1049l"), "{text:?}");
    assert!(at("\x1b[?25l") < at("\x1b[?25h"), "{text:?}");
    assert!(at("\x1b[?1049l") < at("as this test wants it"), "{text:?}");
    assert_eq!(text.matches("\x1b[?1049l").count(), 1, "{text:?}");
}

#[test]
fn a_terminal_that_takes_nothing_holds_nobody_up() {
    if is_inside() {
        let mut terminal = Terminal::take().expect("a terminal");
        let mut letters = ('a'..='z').cycle();
        let mut fill = || {
            letters
                .next()
                .map_or_else(String::new, |c| c.to_string().repeat(80 * 24))
        };
        let begun = Instant::now();
        let mut draw = || {
            let text = fill();
            let drawn = terminal.draw(|frame| {
                let wrap = ratatui::widgets::Wrap { trim: false };
                frame.render_widget(Paragraph::new(text).wrap(wrap), frame.area());
            });
            drawn.expect("it is there").is_some()
        };
        while draw() {
            assert!(begun.elapsed() < WITHIN / 2, "nobody reads, and it goes on");
        }
        drop(terminal);
        // What tells of tests would wait for the terminal.
        std::process::exit(7);
    }
    let mut inside = Inside::run("a_terminal_that_takes_nothing_holds_nobody_up");
    assert_eq!(inside.ends().code(), Some(7));
    assert_eq!(tcgetattr(&inside.slave).expect("modes"), inside.before);
}
