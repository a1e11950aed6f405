//! A bounded queue that many threads fill and one task empties in batches.
//!
//! Made for telemetry: adding costs a short lock and no wake-up, but for the first item of a batch and the
//! one that makes it half full. What does not fit is refused at once; nobody ever waits to add.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    capacity: usize,
    first: Notify,
    half: Notify,
}

struct State<T> {
    items: Vec<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        let state = Mutex::new(State { items: Vec::new(), closed: false });
        Self { state, capacity, first: Notify::new(), half: Notify::new() }
    }

    /// Lets `fill` add `more` items, or answers false when they do not fit.
    pub(crate) fn offer(&self, more: usize, fill: impl FnOnce(&mut Vec<T>)) -> bool {
        let (before, after) = {
            let mut state = self.lock();
            let before = state.items.len();
            if state.closed || before + more > self.capacity {
                return false;
            }
            fill(&mut state.items);
            (before, state.items.len())
        };
        if before == 0 {
            self.first.notify_one();
        }
        if (before..after).contains(&(self.capacity / 2)) {
            self.half.notify_one();
        }
        true
    }

    /// Waits for the first item, then for more until `linger` is over or the queue is half full. Nothing is
    /// lost when this is given up half way.
    pub(crate) async fn batch(&self, linger: Duration) -> Vec<T> {
        while self.lock().items.is_empty() {
            self.first.notified().await;
        }
        let _ = timeout(linger, self.half.notified()).await;
        std::mem::take(&mut self.lock().items)
    }

    /// Refuses items from now on, and gives those that are left.
    pub(crate) fn close(&self) -> Vec<T> {
        let mut state = self.lock();
        state.closed = true;
        std::mem::take(&mut state.items)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn batches_by_time_or_by_size_and_refuses_the_rest() {
        let queue = Queue::new(4);
        let add = |item: u8| queue.offer(1, |items| items.push(item));
        assert!(timeout(SHORT, queue.batch(Duration::ZERO)).await.is_err(), "waits for the first");
        assert!(add(1));
        assert_eq!(queue.batch(SHORT).await, [1]);
        assert!(add(1) && add(2) && add(3) && add(4) && !add(5));
        assert_eq!(
            timeout(LONG, queue.batch(2 * LONG)).await.unwrap(),
            [1, 2, 3, 4],
            "does not wait when half full"
        );
        assert!(add(6));
        assert!(timeout(SHORT, queue.batch(LONG)).await.is_err());
        assert_eq!(queue.batch(SHORT).await, [6], "given up half way, nothing is lost");
        assert!(add(7));
        assert_eq!(queue.close(), [7]);
        assert!(!add(8));
    }
}
