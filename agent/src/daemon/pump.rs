//! Session events on their way to gossip.
//!
//! Opens go on at once, closes after they have lingered; and what is open is
//! counted.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::{sync::mpsc, time::sleep_until};

use super::linger::Linger;
use crate::datapath::{clock::monotonic_ns, local::LocalEvent};

/// Hands session events on to gossip, closes a little later.
pub(super) async fn pump(
    mut from: mpsc::Receiver<Vec<LocalEvent>>,
    to: mpsc::Sender<Vec<LocalEvent>>,
    mut linger: Linger,
    open: &AtomicU64,
) {
    let mut first = true;
    loop {
        let mut news = Vec::new();
        let due_at = linger.next_time();
        let due = async {
            match due_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            events = from.recv() => {
                let Some(events) = events else { return };
                let now = tokio::time::Instant::now();
                for event in events {
                    match event {
                        LocalEvent::Opened { ids, .. } => {
                            open.fetch_add(1, Ordering::Relaxed);
                            linger.opened(ids.id);
                            news.push(event);
                        }
                        LocalEvent::Closed { ids, .. } => {
                            open.fetch_sub(1, Ordering::Relaxed);
                            linger.closed(now, ids);
                        }
                    }
                }
                // The first message may be empty, and gossip waits for it.
                let told = std::mem::take(&mut news);
                if (first || !told.is_empty()) && to.send(told).await.is_err() {
                    return;
                }
                first = false;
            }
            () = due => {}
        }
        let now = tokio::time::Instant::now();
        while let Some(ids) = linger.due(now) {
            // The close becomes news only now.
            news.push(LocalEvent::Closed {
                ids,
                at_ns: monotonic_ns(),
            });
        }
        if !news.is_empty() && to.send(news).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use homing_common::session::SessionId;

    use super::*;
    use crate::datapath::local::Ids;

    const HOLD: Duration = Duration::from_secs(2);

    fn ids(id: u64) -> Ids {
        Ids {
            id: SessionId(id),
            other: None,
        }
    }

    fn opened(id: u64) -> LocalEvent {
        LocalEvent::Opened {
            ids: ids(id),
            generation: 0,
            at_ns: 1,
        }
    }

    fn closed(id: u64) -> LocalEvent {
        LocalEvent::Closed {
            ids: ids(id),
            at_ns: 2,
        }
    }

    /// The sessions named in what gossip is told next, closed ones as negative
    /// numbers.
    async fn told(news: &mut mpsc::Receiver<Vec<LocalEvent>>) -> Vec<i64> {
        let events = news.recv().await.expect("the pump runs");
        let number = |event: &LocalEvent| match event {
            LocalEvent::Opened { ids, .. } => ids.id.0 as i64,
            LocalEvent::Closed { ids, .. } => -(ids.id.0 as i64),
        };
        events.iter().map(number).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn opens_are_told_at_once_and_closes_after_their_hold() {
        let (events, from) = mpsc::channel(4);
        let (to, mut news) = mpsc::channel(4);
        let open = Arc::new(AtomicU64::new(0));
        let count = open.clone();
        tokio::spawn(async move { pump(from, to, Linger::new(HOLD), &count).await });
        let start = tokio::time::Instant::now();

        // The first message goes on even if it is empty: gossip waits for it.
        events.send(vec![]).await.unwrap();
        assert!(told(&mut news).await.is_empty());
        events.send(vec![opened(1), opened(2)]).await.unwrap();
        assert_eq!(told(&mut news).await, [1, 2]);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(open.load(Ordering::Relaxed), 2);

        // Session 2 is opened again in time: it was never closed.
        events.send(vec![closed(1), closed(2)]).await.unwrap();
        events.send(vec![opened(2)]).await.unwrap();
        assert_eq!(told(&mut news).await, [2]);
        assert_eq!(open.load(Ordering::Relaxed), 1);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(told(&mut news).await, [-1]);
        assert!((HOLD..HOLD * 2).contains(&start.elapsed()));
        events.send(vec![closed(2)]).await.unwrap();
        assert_eq!(told(&mut news).await, [-2]);
    }
}
