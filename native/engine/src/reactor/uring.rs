//! The io_uring backend.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Doorbell;
use super::backend::{Backend, PollKey, ReadySlot};
use super::ops::{Driver, Op, Slot};
use crate::error::{Error, Result};
use crate::sys::uring::{Event, Ring};

enum Tag {
    Op(Rc<Slot>),
    Ready(Rc<ReadySlot>),
    Doorbell,
}

pub struct UringBackend {
    ring: RefCell<Ring<Tag>>,
    events: RefCell<Vec<Event<Tag>>>,
    doorbell: Arc<Doorbell>,
    doorbell_armed: Cell<bool>,
    /// Calls of `poll` since the kernel was last entered.
    quiet_polls: Cell<u32>,
}

/// A reactor that never sleeps enters the ring at least every so many turns, to see its sockets' readiness.
const QUIET_POLLS_MAX: u32 = 4;

impl UringBackend {
    pub fn new(doorbell: Arc<Doorbell>) -> Result<Self> {
        let ring = Ring::new().map_err(|error| Error::from_io("set up io_uring (try --io-engine threads)", &error))?;
        Ok(Self {
            ring: RefCell::new(ring),
            events: RefCell::new(Vec::with_capacity(256)),
            doorbell,
            doorbell_armed: Cell::new(false),
            quiet_polls: Cell::new(0),
        })
    }

    /// Hand out what has appeared on the ring. Wakers only queue tasks, so nothing re-enters the ring here.
    fn deliver(&self) {
        let mut events = self.events.borrow_mut();
        self.ring.borrow_mut().reap(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Op(completion, Tag::Op(slot)) => slot.complete(completion),
                Event::Poll(Tag::Ready(slot)) => slot.set_ready(),
                Event::Poll(Tag::Doorbell) => {
                    self.doorbell.event().clear();
                    self.doorbell_armed.set(false);
                }
                Event::Op(_, Tag::Ready(_) | Tag::Doorbell) | Event::Poll(Tag::Op(_)) => {
                    unreachable!("a tag matches what it was submitted for")
                }
            }
        }
    }
}

impl Driver for UringBackend {
    fn submit(&self, op: Op, slot: Rc<Slot>) {
        self.ring.borrow_mut().start(op, Tag::Op(slot));
    }
}

impl Backend for UringBackend {
    fn watch(&self, fd: RawFd, writable: bool, slot: Rc<ReadySlot>) -> PollKey {
        PollKey(self.ring.borrow_mut().poll(fd, writable, Tag::Ready(slot)))
    }

    fn unwatch(&self, key: PollKey) {
        self.ring.borrow_mut().cancel_poll(key.0);
    }

    fn poll(&self) {
        {
            let mut ring = self.ring.borrow_mut();
            // Polls alone can wait a little; storage must start now and its results be seen.
            self.quiet_polls.set(self.quiet_polls.get() + 1);
            let has_enough = ring.has_reapable() && !ring.has_unsubmitted(); // without asking the kernel
            let is_due =
                ring.ops_in_flight() > 0 || ring.has_completions() || self.quiet_polls.get() >= QUIET_POLLS_MAX;
            if is_due && !has_enough {
                self.quiet_polls.set(0);
                ring.kick().unwrap_or_else(|error| panic!("io_uring_enter: {error}"));
            }
        }
        self.deliver();
    }

    fn has_completions(&self) -> bool {
        self.ring.borrow_mut().has_completions()
    }

    fn wait(&self, timeout: Option<Duration>) {
        {
            let mut ring = self.ring.borrow_mut();
            if !self.doorbell_armed.replace(true) {
                ring.poll(self.doorbell.event().raw_fd(), false, Tag::Doorbell);
            }
            ring.wait(timeout).unwrap_or_else(|error| panic!("io_uring_enter: {error}"));
        }
        self.deliver();
    }

    fn ops_in_flight(&self) -> usize {
        self.ring.borrow().ops_in_flight()
    }
}
