//! A pseudo-terminal with a program in it, and what somebody in front of it would see.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use homing_tests::lab::{Lab, Node, wait_until};
use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{Termios, tcgetattr},
    },
    unistd::Pid,
};

/// What is on the terminal before the program starts.
const BEFORE: &str = "what was there before";

/// How long what is waited for may take: a host is down after some seconds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal, and the program in it.
pub struct Terminal {
    master: File,
    /// Held, so that the terminal does not hang up when the program ends.
    slave: OwnedFd,
    seen: Arc<Mutex<vt100::Parser>>,
    child: Child,
    before: Termios,
}

impl Terminal {
    /// Starts `homing ARGS` on a host, in a terminal with so many rows and columns.
    pub fn start(lab: &Lab, host: Node, args: &[&str], (rows, columns): (u16, u16)) -> Self {
        let OpenptyResult { master, slave } = openpty(&size(rows, columns), None).unwrap();
        let master = File::from(master);
        let seen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let mut reader = master.try_clone().unwrap();
        let shown = seen.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with an error once nobody holds the other end.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..count]);
            }
        });
        File::from(slave.try_clone().unwrap())
            .write_all(BEFORE.as_bytes())
            .unwrap();
        let before = tcgetattr(&slave).unwrap();
        let mut command = Command::new("homing");
        command.args(args).env("TERM", "xterm-256color");
        let end = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only two system calls are made.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                // The standard input is the terminal by now.
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = lab.spawn(host, &mut command).unwrap();
        Self {
            master,
            slave,
            seen,
            child,
            before,
        }
    }

    /// Types.
    pub fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// What the screen shows.
    pub fn text(&self) -> String {
        let seen = self.seen.lock().unwrap();
        let (_, columns) = seen.screen().size();
        let rows = seen.screen().rows(0, columns);
        let rows: Vec<_> = rows.map(|row| row.trim_end().to_owned()).collect();
        rows.join("\n").trim_end().to_owned()
    }

    /// Waits until the screen shows what is wanted, and returns it.
    #[track_caller]
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        let found = wait_until(PATIENCE, || {
            text = self.text();
            anyhow::ensure!(
                self.child.try_wait()?.is_none(),
                "it has ended, and leaves {text}"
            );
            Ok(wanted(&text))
        });
        match found {
            Ok(true) => text,
            Ok(false) => panic!("no {what} in\n{text}"),
            Err(error) => panic!("while waiting for {what}: {error:#}"),
        }
    }

    /// Makes the terminal another size; the kernel tells the program.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = size(rows, columns);
        self.seen
            .lock()
            .unwrap()
            .screen_mut()
            .set_size(rows, columns);
        // SAFETY: the descriptor is open, and the kernel reads a whole `winsize`.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }

    /// The terminal takes nothing more, as behind a connection that stands still.
    pub fn stall(&self) {
        nix::sys::termios::tcflow(self.slave.as_fd(), nix::sys::termios::FlowArg::TCOOFF).unwrap();
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the program's end; returns its exit code.
    #[track_caller]
    pub fn ends(&mut self) -> i32 {
        let mut status = None;
        wait_until(PATIENCE, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
        .unwrap();
        let Some(status) = status else {
            panic!("it goes on and shows\n{}", self.text());
        };
        assert_eq!(status.signal(), None, "{status}: {}", self.text());
        status.code().unwrap()
    }

    /// The terminal is as the program has found it, and shows what it did.
    #[track_caller]
    pub fn is_given_back(&self) {
        self.is_left();
        assert!(self.text().starts_with(BEFORE), "{}", self.text());
    }

    /// The terminal is as the program has found it; what was on it may have been lost when it
    /// became smaller.
    #[track_caller]
    pub fn is_left(&self) {
        self.has_its_modes();
        let is_back = || {
            let seen = self.seen.lock().unwrap();
            Ok(!seen.screen().alternate_screen() && !seen.screen().hide_cursor())
        };
        assert!(wait_until(PATIENCE, is_back).unwrap(), "{}", self.text());
    }

    /// Its modes are, whatever it shows.
    #[track_caller]
    pub fn has_its_modes(&self) {
        assert_eq!(tcgetattr(&self.slave).unwrap(), self.before);
    }

    /// Whether the program has taken it.
    pub fn is_taken(&self) -> bool {
        let seen = self.seen.lock().unwrap();
        let modes = tcgetattr(&self.slave).unwrap();
        seen.screen().alternate_screen() && seen.screen().hide_cursor() && modes != self.before
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(ws_row: u16, ws_col: u16) -> Winsize {
    Winsize {
        ws_row,
        ws_col,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
