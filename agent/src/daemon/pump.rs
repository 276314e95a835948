//! Session events on their way to gossip.
//!
//! Opens go on at once, closes after they have lingered, unless the session lives on
//! another host now; and what is open is counted.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};

use super::linger::Linger;
use crate::datapath::{
    clock::monotonic_ns,
    local::{LocalEvent, News},
};

/// Hands session events on to gossip, closes a little later: after `hold`, whatever that is
/// by then.
pub(super) async fn pump(
    mut from: mpsc::Receiver<News>,
    to: mpsc::Sender<News>,
    hold: watch::Receiver<Duration>,
    open: &AtomicU64,
) {
    let mut linger = Linger::new(*hold.borrow());
    let mut first = true;
    loop {
        let mut news = News::default();
        let due_at = linger.next_time();
        let due = async {
            match due_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            events = from.recv() => {
                let Some(told) = events else { return };
                let now = tokio::time::Instant::now();
                linger.hold_for(*hold.borrow());
                for event in told.events {
                    match event {
                        LocalEvent::Opened { ids, .. } => {
                            open.fetch_add(1, Ordering::Relaxed);
                            linger.opened(ids.id);
                            news.events.push(event);
                        }
                        LocalEvent::Closed { ids, .. } => {
                            open.fetch_sub(1, Ordering::Relaxed);
                            linger.closed(now, ids);
                        }
                    }
                }
                let released = told.at_once.into_iter().filter(|ids| linger.release(ids.id));
                let at_ns = monotonic_ns();
                news.events.extend(released.map(|ids| LocalEvent::Closed { ids, at_ns }));
                news.done = told.done;
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
            news.events.push(LocalEvent::Closed {
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
    use std::sync::Arc;

    use homing_common::session::SessionId;

    use super::*;
    use crate::datapath::local::Ids;

    const HOLD: Duration = Duration::from_secs(2);

    fn hold() -> watch::Receiver<Duration> {
        watch::Sender::new(HOLD).subscribe()
    }

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
    async fn told(news: &mut mpsc::Receiver<News>) -> Vec<i64> {
        let events = news.recv().await.expect("the pump runs").events;
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
        tokio::spawn(async move { pump(from, to, hold(), &count).await });
        let start = tokio::time::Instant::now();

        // The first message goes on even if it is empty: gossip waits for it.
        events.send(vec![].into()).await.unwrap();
        assert!(told(&mut news).await.is_empty());
        events
            .send(vec![opened(1), opened(2)].into())
            .await
            .unwrap();
        assert_eq!(told(&mut news).await, [1, 2]);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(open.load(Ordering::Relaxed), 2);

        // Session 2 is opened again in time: it was never closed.
        events
            .send(vec![closed(1), closed(2)].into())
            .await
            .unwrap();
        events.send(vec![opened(2)].into()).await.unwrap();
        assert_eq!(told(&mut news).await, [2]);
        assert_eq!(open.load(Ordering::Relaxed), 1);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(told(&mut news).await, [-1]);
        assert!((HOLD..HOLD * 2).contains(&start.elapsed()));
        events.send(vec![closed(2)].into()).await.unwrap();
        assert_eq!(told(&mut news).await, [-2]);
    }
    #[tokio::test(start_paused = true)]
    async fn the_close_of_a_session_that_lives_elsewhere_is_told_at_once_and_once() {
        let (events, from) = mpsc::channel(4);
        let (to, mut news) = mpsc::channel(4);
        let open = Arc::new(AtomicU64::new(0));
        let count = open.clone();
        tokio::spawn(async move { pump(from, to, hold(), &count).await });
        let start = tokio::time::Instant::now();
        let left = |events: Vec<LocalEvent>, id| {
            let (done, answered) = tokio::sync::oneshot::channel();
            let news = News {
                events,
                at_once: vec![ids(id)],
                done: vec![(ids(id), done)],
            };
            (news, answered)
        };
        events
            .send(vec![opened(1), opened(2)].into())
            .await
            .unwrap();
        assert_eq!(told(&mut news).await, [1, 2]);
        // One is told with its close, of the other a scan has told the close before.
        let (one, _first) = left(vec![closed(1)], 1);
        events.send(one).await.unwrap();
        assert_eq!(told(&mut news).await, [-1]);
        events.send(vec![closed(2)].into()).await.unwrap();
        let (two, _second) = left(vec![], 2);
        events.send(two).await.unwrap();
        assert_eq!(told(&mut news).await, [-2]);
        // Nothing is left to tell, but who waits hears of it.
        let (again, answered) = left(vec![], 2);
        events.send(again).await.unwrap();
        let last = news.recv().await.unwrap();
        assert!(last.events.is_empty() && last.at_once.is_empty());
        for (of, done) in last.done {
            assert_eq!(of, ids(2));
            done.send(()).unwrap();
        }
        answered.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(open.load(Ordering::Relaxed), 0);
        tokio::time::sleep(2 * HOLD).await;
        assert!(news.try_recv().is_err());
    }
}
