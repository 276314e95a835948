//! What the agent tells systemd: that it is ready, that it stops, that it lives.
//!
//! Outside of systemd all of it does nothing.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;

use super::View;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(
            %error,
            fix = "run the agent by the unit that comes with it (Type=notify); without notices systemd takes it for hung and starts it again",
            "cannot notify systemd"
        );
    }
}

/// The agent does its work: what `Type=notify` waits for.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The agent has begun to stop.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Feeds the watchdog (`WatchdogSec=`) for as long as the agent answers; never
/// returns. Without a watchdog it waits for ever.
///
/// An answer counts, good or bad: a restart heals an agent that hangs, and not a
/// POP that is in trouble.
pub async fn watchdog<V: View>(view: Arc<V>) {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    feed(period, &*view, || tell(&[NotifyState::Watchdog])).await
}

async fn feed<V: View>(period: Duration, view: &V, notify: impl Fn()) {
    // Twice in a period, as sd_watchdog_enabled(3) recommends.
    let mut ticks = tokio::time::interval(period / 2);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match tokio::time::timeout(period / 2, view.health()).await {
            Ok(_) => notify(),
            Err(_) => tracing::error!(
                waited_s = (period / 2).as_secs_f64(),
                fix = "nothing at once: if it goes on, systemd ends the agent and starts it again, and connections live on; then look at the load of the machine, and keep this log",
                "the agent does not answer its watchdog"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_hangs_starves_its_watchdog() {
        let view = super::super::fake::Fake::default();
        let fed = AtomicUsize::new(0);
        let run = async |view: &super::super::fake::Fake| {
            let feed = feed(Duration::from_secs(10), view, || {
                fed.fetch_add(1, Ordering::Relaxed);
            });
            let minute = Duration::from_secs(59);
            assert!(tokio::time::timeout(minute, feed).await.is_err());
            fed.swap(0, Ordering::Relaxed)
        };
        assert_eq!(run(&view).await, 12);
        view.unhealthy.store(true, Ordering::Relaxed);
        assert_eq!(run(&view).await, 12);
        view.hangs.store(true, Ordering::Relaxed);
        assert_eq!(run(&view).await, 0);
    }
}
