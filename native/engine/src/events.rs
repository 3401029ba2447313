//! What operators are told: posted by data threads, logged by the control plane. Data threads never log themselves.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::eventfd::EventFd;

/// Events that wait; when they are more, the oldest go and their number is told.
const CAPACITY: usize = 1024;

/// As Python's logging levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Info => "INFO",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub level: Level,
    /// The name of what it is about.
    pub object: String,
    pub message: String,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    lost: u64,
}

/// A bounded queue and the eventfd that tells of it.
pub struct Events {
    queue: Mutex<Queue>,
    bell: EventFd,
}

impl Events {
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { queue: Mutex::new(Queue::default()), bell: EventFd::new()? }))
    }

    /// Readable while there are events.
    pub fn raw_fd(&self) -> RawFd {
        self.bell.raw_fd()
    }

    /// Tell of something; never blocks for long, never fails.
    pub fn post(&self, level: Level, object: &str, message: impl Into<String>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.events.len() == CAPACITY {
            queue.events.pop_front();
            queue.lost += 1;
        }
        queue.events.push_back(Event { level, object: object.into(), message: message.into() });
        drop(queue);
        self.bell.signal();
    }

    /// Take all of them, in order.
    pub fn drain(&self) -> Vec<Event> {
        self.bell.clear();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events: Vec<Event> = Vec::new();
        let lost = std::mem::take(&mut queue.lost);
        if lost > 0 {
            let message = format!("{lost} events were lost: they came faster than they were read");
            events.push(Event { level: Level::Warning, object: "events".into(), message });
        }
        events.extend(queue.events.drain(..));
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_loses_the_oldest_and_says_so() {
        let events = Events::new().expect("eventfd");
        for number in 0..CAPACITY + 3 {
            events.post(Level::Info, "x", number.to_string());
        }
        let drained = events.drain();
        assert!(drained[0].message.starts_with("3 events were lost"));
        assert_eq!(drained[1].message, "3");
        assert!(events.drain().is_empty());
    }
}
