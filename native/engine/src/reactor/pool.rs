//! The backend without io_uring: epoll for sockets, a pool of threads for storage.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use slab::Slab;

use super::Doorbell;
use super::backend::{Backend, PollKey, ReadySlot};
use super::ops::{Completion, Driver, Op, Slot, run_blocking};
use crate::error::{Error, Result};
use crate::sys::epoll::{Epoll, Interest};

/// Threads that run storage operations for every reactor; started as they are needed. A volume whose image hangs
/// keeps up to 16 of them, so there are enough for several such volumes beside the healthy ones (INV-9).
const MAX_WORKERS: usize = 256;

struct Work {
    op: Op,
    key: usize,
    outbox: Arc<Outbox>,
}

/// Where workers leave one reactor's completions.
struct Outbox {
    done: Mutex<Vec<(usize, Completion)>>,
    doorbell: Arc<Doorbell>,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    idle: usize,
    workers: usize,
    closed: bool,
}

/// The storage threads. They end when the pool is dropped.
#[derive(Default)]
pub struct WorkerPool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

impl WorkerPool {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn submit(&self, work: Work) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.work.push_back(work);
        if queue.work.len() <= queue.idle || queue.workers == MAX_WORKERS {
            self.shared.more.notify_one();
            return;
        }
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new().name("storage".into()).spawn(move || shared.work());
        match started {
            Ok(_) => queue.workers += 1,
            // No thread to be had: those that exist will come to it; without any, this thread does it.
            Err(_) if queue.workers > 0 => {}
            Err(_) => {
                let work = queue.work.pop_back();
                drop(queue);
                if let Some(work) = work {
                    work.run();
                }
            }
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.more.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(work) = queue.work.pop_front() {
                drop(queue);
                work.run();
                queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            } else if queue.closed {
                return;
            } else {
                queue.idle += 1;
                queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}

impl Work {
    fn run(self) {
        let completion = run_blocking(self.op);
        self.outbox.done.lock().unwrap_or_else(PoisonError::into_inner).push((self.key, completion));
        self.outbox.doorbell.ring();
    }
}

/// Who waits for one descriptor.
#[derive(Default)]
struct Watchers {
    readable: Option<(usize, Rc<ReadySlot>)>,
    writable: Option<(usize, Rc<ReadySlot>)>,
}

impl Watchers {
    fn interest(&self) -> Interest {
        Interest { readable: self.readable.is_some(), writable: self.writable.is_some() }
    }
}

pub struct PoolBackend {
    epoll: Epoll,
    pool: Arc<WorkerPool>,
    outbox: Arc<Outbox>,
    waiting: RefCell<Slab<Rc<Slot>>>,
    watchers: RefCell<HashMap<RawFd, Watchers>>,
    keys: RefCell<Slab<RawFd>>,
}

impl PoolBackend {
    pub fn new(doorbell: Arc<Doorbell>, pool: Arc<WorkerPool>) -> Result<Self> {
        let epoll = Epoll::new().map_err(|error| Error::from_io("make an epoll instance", &error))?;
        let watch_bell = epoll.arm(doorbell.event().raw_fd(), Interest { readable: true, writable: false });
        watch_bell.map_err(|error| Error::from_io("watch an eventfd", &error))?;
        Ok(Self {
            epoll,
            pool,
            outbox: Arc::new(Outbox { done: Mutex::new(Vec::new()), doorbell }),
            waiting: RefCell::new(Slab::new()),
            watchers: RefCell::new(HashMap::new()),
            keys: RefCell::new(Slab::new()),
        })
    }

    fn arm(&self, fd: RawFd, interest: Interest) {
        self.epoll.arm(fd, interest).unwrap_or_else(|error| panic!("epoll_ctl: {error}"));
    }

    fn fire(&self, fd: RawFd, ready: Interest) {
        if fd == self.outbox.doorbell.event().raw_fd() {
            self.outbox.doorbell.event().clear();
            self.arm(fd, Interest { readable: true, writable: false });
            return;
        }
        let mut watchers = self.watchers.borrow_mut();
        let Some(entry) = watchers.get_mut(&fd) else { return };
        let mut fired = Vec::new();
        if ready.readable {
            fired.extend(entry.readable.take());
        }
        if ready.writable {
            fired.extend(entry.writable.take());
        }
        self.rearm_or_forget(&mut watchers, fd);
        for (key, slot) in fired {
            self.keys.borrow_mut().remove(key);
            slot.set_ready();
        }
    }

    fn rearm_or_forget(&self, watchers: &mut HashMap<RawFd, Watchers>, fd: RawFd) {
        match watchers.get(&fd).map(Watchers::interest) {
            Some(interest) if interest != Interest::default() => self.arm(fd, interest),
            _ => {
                // Removed while the descriptor is still open: its number may soon belong to another.
                watchers.remove(&fd);
                self.epoll.remove(fd);
            }
        }
    }

    fn deliver(&self) {
        let done = std::mem::take(&mut *self.outbox.done.lock().unwrap_or_else(PoisonError::into_inner));
        for (key, completion) in done {
            let slot = self.waiting.borrow_mut().remove(key);
            slot.complete(completion);
        }
    }
}

impl Driver for PoolBackend {
    fn submit(&self, op: Op, slot: Rc<Slot>) {
        let key = self.waiting.borrow_mut().insert(slot);
        self.pool.submit(Work { op, key, outbox: Arc::clone(&self.outbox) });
    }
}

impl Backend for PoolBackend {
    fn watch(&self, fd: RawFd, writable: bool, slot: Rc<ReadySlot>) -> PollKey {
        let key = self.keys.borrow_mut().insert(fd);
        let mut watchers = self.watchers.borrow_mut();
        let entry = watchers.entry(fd).or_default();
        let place = if writable { &mut entry.writable } else { &mut entry.readable };
        assert!(place.is_none(), "one watcher for each direction of a descriptor");
        *place = Some((key, slot));
        let interest = entry.interest();
        self.arm(fd, interest);
        PollKey(key)
    }

    fn unwatch(&self, key: PollKey) {
        let Some(fd) = self.keys.borrow().get(key.0).copied() else { return };
        let mut watchers = self.watchers.borrow_mut();
        let Some(entry) = watchers.get_mut(&fd) else { return };
        let is_it = |place: &Option<(usize, Rc<ReadySlot>)>| place.as_ref().is_some_and(|(own, _)| *own == key.0);
        if is_it(&entry.readable) {
            entry.readable = None;
        } else if is_it(&entry.writable) {
            entry.writable = None;
        } else {
            return;
        }
        self.keys.borrow_mut().remove(key.0);
        self.rearm_or_forget(&mut watchers, fd);
    }

    fn poll(&self) {
        self.deliver();
    }

    fn has_completions(&self) -> bool {
        !self.outbox.done.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn wait(&self, timeout: Option<Duration>) {
        let ready = self.epoll.wait(timeout).unwrap_or_else(|error| panic!("epoll_wait: {error}"));
        for (fd, interest) in ready {
            self.fire(fd, interest);
        }
        self.deliver();
    }

    fn ops_in_flight(&self) -> usize {
        self.waiting.borrow().len()
    }
}
