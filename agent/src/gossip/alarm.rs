//! A timer with the kernel's precision: the runtime's own counts in
//! milliseconds, and announcements wait for a fifth of one.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    time::Duration,
};

use nix::{
    sys::time::TimeSpec,
    sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::io::unix::AsyncFd;

/// Waits for one moment at a time.
pub(super) struct Alarm {
    timer: AsyncFd<Timer>,
    /// The moment that the timer is set to.
    set_to: Option<u64>,
}

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    /// An alarm that is not set. Must be called within a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        Ok(Self {
            // SAFETY: the timer owns its file descriptor, keeps it open, and
            // always returns that same one.
            timer: unsafe { AsyncFd::register(timer)? },
            set_to: None,
        })
    }

    /// Waits from `now` until `until`, both in microseconds of one clock.
    /// Cancelling it and waiting again for the same moment costs nothing.
    pub async fn wait(&mut self, now: u64, until: u64) -> io::Result<()> {
        if until <= now {
            return Ok(());
        }
        if self.set_to != Some(until) {
            // A zero would switch the timer off; `until` is later than `now`.
            let wait = TimeSpec::from_duration(Duration::from_micros(until - now));
            let expiration = Expiration::OneShot(wait);
            self.timer
                .get_ref()
                .0
                .set(expiration, TimerSetTimeFlags::empty())?;
            self.set_to = Some(until);
        }
        // Setting the timer anew makes it unreadable, but readiness may be left
        // over from before: then this returns early, which its caller must bear.
        self.timer.readable().await?.clear_ready();
        self.set_to = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn alarm_is_precise_and_never_early_by_more_than_a_leftover() {
        let mut alarm = Alarm::new().unwrap();
        let start = Instant::now();
        let now = || start.elapsed().as_micros() as u64;
        let mut waits = 0;
        for _ in 0..20 {
            let until = now() + 300;
            while now() < until {
                waits += 1;
                alarm.wait(now(), until).await.unwrap();
            }
        }
        // The runtime's own timer would need at least 20 ms, and mostly 40.
        assert!(start.elapsed() >= Duration::from_millis(6));
        assert!(waits <= 40, "{waits} waits");
    }
}
