//! Hosts that a request names and that this proxy does not know yet: asked for once, waited for within bounds.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};

/// How long a request waits for the control plane's word.
pub const WAIT: Duration = Duration::from_secs(1);

/// How long it is remembered that nobody knows a host.
const REMEMBERED: Duration = Duration::from_secs(5);

/// The most hosts of which it is remembered.
const REMEMBERED_MAX: usize = 4096;

/// Questions that the control task has not taken yet.
const QUEUE: usize = 1024;

/// Shared by all workers and the control task.
pub struct Hosts {
    wanted: mpsc::Sender<String>,
    /// Grows whenever something was learnt.
    news: watch::Sender<u64>,
    absent: Mutex<HashMap<String, Instant>>,
    /// Whether there is somebody to ask.
    answered: AtomicBool,
}

impl Hosts {
    /// The hosts, and the questions for the control task.
    pub fn new() -> (Self, mpsc::Receiver<String>) {
        let (wanted, questions) = mpsc::channel(QUEUE);
        let (news, absent, answered) = (watch::Sender::new(0), Mutex::default(), AtomicBool::new(false));
        (Hosts { wanted, news, absent, answered }, questions)
    }

    /// From now on there is somebody to ask, or nobody.
    pub fn set_answered(&self, answered: bool) {
        self.answered.store(answered, Relaxed);
    }

    /// Whether it is known that nobody knows `host`. While nobody can be asked, the last word holds: no request waits in
    /// vain for another.
    pub fn is_absent(&self, host: &str, now: Instant) -> bool {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |since: &Instant| now.duration_since(*since) < REMEMBERED || !self.answered.load(Relaxed);
        absent.get(host).is_some_and(holds)
    }

    /// Remembers that nobody knows these.
    pub fn absent(&self, hosts: Vec<String>, now: Instant) {
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        if absent.len() + hosts.len() > REMEMBERED_MAX {
            absent.retain(|_, since| now.duration_since(*since) < REMEMBERED);
        }
        if absent.len() < REMEMBERED_MAX {
            absent.extend(hosts.into_iter().map(|host| (host, now)));
        }
        drop(absent);
        self.learnt();
    }

    /// Wakes those who wait: there is another runtime, or another absence.
    pub fn learnt(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// Asks for `host` and waits until `known` says so, or its absence is; at most `wait`, after which it counts as
    /// absent. Whether it is known.
    pub async fn ask(&self, host: &str, wait: Duration, known: impl Fn() -> bool) -> bool {
        let mut news = self.news.subscribe();
        let _ = self.wanted.try_send(host.to_owned());
        let told = async {
            loop {
                if known() {
                    return true;
                }
                if self.is_absent(host, Instant::now()) || news.changed().await.is_err() {
                    return false;
                }
            }
        };
        match tokio::time::timeout(wait, told).await {
            Ok(known) => known,
            Err(_) => {
                self.absent(vec![host.to_owned()], Instant::now());
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn the_word_comes_or_the_time_is_over() {
        let (hosts, mut questions) = Hosts::new();
        hosts.set_answered(true);
        let known = Cell::new(false);
        let (answer, ()) = tokio::join!(hosts.ask("a", WAIT, || known.get()), async {
            assert_eq!(questions.recv().await.as_deref(), Some("a"));
            known.set(true);
            hosts.learnt();
        });
        assert!(answer);

        let (answer, ()) = tokio::join!(hosts.ask("b", WAIT, || false), async {
            questions.recv().await;
            hosts.absent(vec!["b".into()], Instant::now());
        });
        assert!(!answer && hosts.is_absent("b", Instant::now()));
        assert!(!hosts.is_absent("b", Instant::now() + REMEMBERED));
        hosts.set_answered(false);
        assert!(hosts.is_absent("b", Instant::now() + REMEMBERED), "while nobody can be asked");

        assert!(!hosts.ask("c", Duration::ZERO, || false).await, "nobody answers");
        assert!(hosts.is_absent("c", Instant::now()), "the next request does not wait");
    }
}
