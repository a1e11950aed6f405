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

/// What is known of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It is of the mesh.
    Known,
    /// Nobody in the mesh knows it.
    Absent,
    /// The control plane was asked, and has not answered in time.
    None,
}

/// Shared by all workers and the control task.
pub struct Hosts {
    wanted: mpsc::Sender<String>,
    /// Grows whenever something was learnt.
    news: watch::Sender<u64>,
    /// What was said of hosts that are not known, and when.
    absent: Mutex<HashMap<String, (Word, Instant)>>,
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

    /// The last word on a host that is not known. While nobody can be asked it holds: no request waits in vain for
    /// another.
    fn remembered(&self, host: &str, now: Instant) -> Option<Word> {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        let (word, since) = absent.get(host)?;
        let holds = now.duration_since(*since) < REMEMBERED || !self.answered.load(Relaxed);
        holds.then_some(*word)
    }

    /// Remembers that nobody knows these.
    pub fn absent(&self, hosts: Vec<String>, now: Instant) {
        self.remember(hosts, Word::Absent, now);
    }

    fn remember(&self, hosts: Vec<String>, word: Word, now: Instant) {
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        if absent.len() + hosts.len() > REMEMBERED_MAX {
            absent.retain(|_, (_, since)| now.duration_since(*since) < REMEMBERED);
        }
        if absent.len() < REMEMBERED_MAX {
            for host in hosts {
                let before = absent.entry(host).or_insert((word, now));
                // A word of before is still the last one, where none has come.
                *before = (if word == Word::None { before.0 } else { word }, now);
            }
        }
        drop(absent);
        self.learnt();
    }

    /// Wakes those who wait: there is another runtime, or another absence.
    pub fn learnt(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// What is known of `host`: what was said lately, or what is said once it is asked for, within `wait`.
    pub async fn ask(&self, host: &str, wait: Duration, known: impl Fn() -> bool) -> Word {
        if let Some(word) = self.remembered(host, Instant::now()) {
            return if known() { Word::Known } else { word };
        }
        let mut news = self.news.subscribe();
        let _ = self.wanted.try_send(host.to_owned());
        let told = async {
            loop {
                if known() {
                    return Word::Known;
                }
                if let Some(word) = self.remembered(host, Instant::now()) {
                    return word;
                }
                if news.changed().await.is_err() {
                    return Word::None;
                }
            }
        };
        match tokio::time::timeout(wait, told).await {
            Ok(word) => word,
            Err(_) => {
                self.remember(vec![host.to_owned()], Word::None, Instant::now());
                self.remembered(host, Instant::now()).unwrap_or(Word::None)
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
        assert_eq!(answer, Word::Known);

        let (answer, ()) = tokio::join!(hosts.ask("b", WAIT, || false), async {
            questions.recv().await;
            hosts.absent(vec!["b".into()], Instant::now());
        });
        let remembered = |host, later| hosts.remembered(host, Instant::now() + later);
        assert_eq!((answer, remembered("b", Duration::ZERO)), (Word::Absent, Some(Word::Absent)));
        assert_eq!(remembered("b", REMEMBERED), None);
        hosts.set_answered(false);
        assert_eq!(remembered("b", REMEMBERED), Some(Word::Absent), "while nobody can be asked");

        assert_eq!(hosts.ask("c", Duration::ZERO, || false).await, Word::None, "nobody answers");
        assert_eq!(remembered("c", Duration::ZERO), Some(Word::None), "the next request does not wait");
        hosts.set_answered(true);
        hosts.absent(vec!["c".into()], Instant::now());
        assert_eq!(hosts.ask("c", WAIT, || false).await, Word::Absent);
        hosts.remember(vec!["c".into()], Word::None, Instant::now());
        assert_eq!(remembered("c", Duration::ZERO), Some(Word::Absent), "the last word that came");
    }
}
