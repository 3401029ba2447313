//! What a reactor needs from the thing that carries out its I/O.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::ops::Driver;

/// Told once when a descriptor is ready.
#[derive(Default)]
pub struct ReadySlot {
    ready: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl ReadySlot {
    pub fn is_ready(&self) -> bool {
        self.ready.get()
    }

    pub fn wait_with(&self, waker: &Waker) {
        *self.waker.borrow_mut() = Some(waker.clone());
    }

    pub fn set_ready(&self) {
        self.ready.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A poll that can be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollKey(pub usize);

/// One thread's I/O: storage operations, readiness of descriptors, and the sleep in between.
pub trait Backend: Driver {
    /// Tell `slot` once when `fd` is readable (or writable), or broken.
    fn watch(&self, fd: RawFd, writable: bool, slot: Rc<ReadySlot>) -> PollKey;

    /// Take a watch back; nothing happens if it has fired.
    fn unwatch(&self, key: PollKey);

    /// Submit what waits and deliver what has completed, without sleeping.
    fn poll(&self);

    /// Whether `poll` would deliver something, as far as can be seen without entering the kernel.
    fn has_completions(&self) -> bool;

    /// Sleep until something completes, the doorbell rings or `timeout` passes; deliver it.
    fn wait(&self, timeout: Option<Duration>);

    /// Storage operations that have not completed.
    fn ops_in_flight(&self) -> usize;
}
