//! Connections that have not said yet where they lead.
//!
//! Whoever means to go somewhere says so at once. So of too many the one that has been silent for longest goes, and those
//! who only come to take a place take it from each other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// All of them, oldest first.
#[derive(Debug)]
pub(super) struct Silent {
    most: usize,
    all: Mutex<(u64, BTreeMap<u64, Arc<Notify>>)>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    silent: &'a Silent,
    number: u64,
    end: Arc<Notify>,
}

impl Silent {
    /// None yet; later so many.
    pub fn new(most: usize) -> Self {
        Silent { most: most.max(1), all: Mutex::default() }
    }

    /// One more, in the place of the oldest if there are too many.
    pub fn enter(&self) -> Waiting<'_> {
        let end = Arc::<Notify>::default();
        let mut all = self.all();
        let (next, waiting) = &mut *all;
        if waiting.len() >= self.most
            && let Some((_, oldest)) = waiting.pop_first()
        {
            oldest.notify_one();
        }
        let number = *next;
        *next += 1;
        waiting.insert(number, end.clone());
        drop(all);
        Waiting { silent: self, number, end }
    }

    fn all(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Notify>>)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// Ends when another one has taken its place.
    pub async fn crowded_out(&self) {
        self.end.notified().await;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.silent.all().1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_goes() {
        let silent = Silent::new(2);
        let out = |one: &Waiting<'_>| one.crowded_out().now_or_never().is_some();
        let (first, second) = (silent.enter(), silent.enter());
        assert!(!out(&first) && !out(&second));
        let third = silent.enter();
        assert!(out(&first) && !out(&second) && !out(&third));
        // Who has spoken takes no place any more.
        drop((first, second));
        let fourth = silent.enter();
        assert!(!out(&third) && !out(&fourth));
    }
}
