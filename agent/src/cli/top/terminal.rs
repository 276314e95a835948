//! The terminal: taken, drawn on, and given back as it was found.
//!
//! It is given back when a [`Terminal`] is dropped, which an error does too, and before a panic
//! is told of, which would else be written onto a screen that vanishes. What is written never
//! waits for long: a terminal that takes nothing, such as one behind a connection that stands
//! still, must not keep a signal from ending the command.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Write},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossterm::{
    cursor, execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::{
    Frame,
    backend::{Backend as _, CrosstermBackend},
};

/// How long a terminal may take nothing until drawing is given up for now.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether the terminal is to be given back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal of the standard output, in raw mode and on its other screen.
pub(super) struct Terminal {
    inner: ratatui::Terminal<CrosstermBackend<BufWriter<Writer>>>,
}

impl Terminal {
    /// Takes it. There is one at a time.
    ///
    /// # Errors
    ///
    /// There is no terminal, or it does not do what it is told.
    pub(super) fn take() -> io::Result<Self> {
        give_back_before_panics();
        let writer = Writer::open(Purpose::Draw)?;
        let backend = CrosstermBackend::new(BufWriter::with_capacity(1 << 16, writer));
        // From here on, what is dropped gives it back.
        TAKEN.store(true, Ordering::SeqCst);
        let mut terminal = Self {
            inner: ratatui::Terminal::new(backend)?,
        };
        enable_raw_mode()?;
        execute!(
            terminal.inner.backend_mut(),
            EnterAlternateScreen,
            cursor::Hide
        )?;
        // Not by the terminal's own name for it, which asks where the cursor is, and waits for
        // an answer.
        terminal.inner.backend_mut().clear()?;
        Ok(terminal)
    }

    /// Draws what has changed, and returns what `draw` does; none if the terminal takes
    /// nothing at the moment.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub(super) fn draw<T>(
        &mut self,
        draw: impl FnOnce(&mut Frame<'_>) -> T,
    ) -> io::Result<Option<T>> {
        let mut done = None;
        match self.inner.draw(|frame| done = Some(draw(frame))) {
            Ok(_) => Ok(done),
            Err(error) if error.kind() == ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back, if it was taken.
fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    // Nobody is left to tell if these fail.
    if let Ok(mut writer) = Writer::open(Purpose::GiveBack) {
        let _ = execute!(writer, LeaveAlternateScreen, cursor::Show);
    }
    let _ = disable_raw_mode();
}

fn give_back_before_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            give_back();
            tell(info);
        }));
    });
}

/// The standard output, without what the library of the language keeps of it: that may be
/// locked, in the middle of a line, when a panic comes.
struct Writer {
    file: File,
    purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// What is left to be drawn once the terminal was given back goes nowhere.
    Draw,
    GiveBack,
}

impl Writer {
    fn open(purpose: Purpose) -> io::Result<Self> {
        // Opened once more it can be told not to wait, which the shell's own must not be.
        // Another user's terminal (after `su`) can be opened by this name alone; where not even
        // that can be, writing may wait.
        let open = |path| {
            let mut options = OpenOptions::new();
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            options.write(true).custom_flags(flags).open(path)
        };
        let again = open("/proc/self/fd/1").or_else(|_| open("/dev/tty"));
        let file = match again {
            Ok(file) => file,
            Err(_) => io::stdout().as_fd().try_clone_to_owned()?.into(),
        };
        Ok(Self { file, purpose })
    }

    /// Waits until something can be written; fails with [`ErrorKind::TimedOut`].
    fn wait(&self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, timeout) {
            Ok(0) => Err(ErrorKind::TimedOut.into()),
            // A signal is looked after elsewhere.
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.purpose == Purpose::Draw && !TAKEN.load(Ordering::SeqCst) {
            return Ok(bytes.len());
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match self.file.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(until)?,
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
