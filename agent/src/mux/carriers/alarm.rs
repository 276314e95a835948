//! One timer of a task, which is set anew all the time and hardly ever ends.

use std::{future::poll_fn, pin::Pin, task::Context, task::Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer. To set it costs something only if it has to end sooner than before: it may end
/// too early, never too late.
pub(super) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    ended: bool,
}

impl Alarm {
    pub fn new(at: Instant) -> Self {
        Self {
            sleep: Box::pin(sleep_until(at)),
            ended: false,
        }
    }

    /// Has it end at this time, or before.
    pub fn set(&mut self, at: Instant) {
        if self.ended || at < self.sleep.deadline() {
            self.ended = false;
            self.sleep.as_mut().reset(at);
        }
    }

    /// Waits for its end.
    pub async fn end(&mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.sleep.as_mut().poll(cx);
        self.ended = polled.is_ready();
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_no_later_than_it_was_last_set_to() {
        let at = |ms| Instant::now() + Duration::from_millis(ms);
        let began = Instant::now();
        let mut alarm = Alarm::new(at(100));
        alarm.set(at(30));
        alarm.set(at(50));
        alarm.end().await;
        assert_eq!(began.elapsed(), Duration::from_millis(30));
        // It does not end twice.
        alarm.set(at(20));
        alarm.end().await;
        assert_eq!(began.elapsed(), Duration::from_millis(50));
    }
}
