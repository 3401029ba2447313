//! What the queues of one session share: the bdev, how it is used, and how they tell of failure.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::log::DirtyLog;
use super::proto;
use crate::bdev::Bdev;
use crate::events::{Events, Level};
use crate::frontend::budget::Budget;
use crate::reactor::sync::Promise;
use crate::sys::eventfd::EventFd;
use crate::sys::socket::Socket;

/// When notifications are held back, as SPDK does it: above a rate of requests, the longer the higher the rate.
///
/// Source: SPDK lib/vhost/rte_vhost_user.c, check_session_vq_io_stats.
#[derive(Debug)]
pub struct Coalescing {
    delay_base_us: AtomicU32,
    iops_threshold: AtomicU32,
}

/// Requests are counted over this long.
pub const RATE_WINDOW: Duration = Duration::from_millis(10);

impl Default for Coalescing {
    fn default() -> Self {
        Self { delay_base_us: AtomicU32::new(0), iops_threshold: AtomicU32::new(60_000) }
    }
}

impl Coalescing {
    pub fn set(&self, delay_base_us: u32, iops_threshold: u32) {
        self.delay_base_us.store(delay_base_us, Ordering::Relaxed);
        self.iops_threshold.store(iops_threshold.max(1), Ordering::Relaxed);
    }

    pub fn get(&self) -> (u32, u32) {
        (self.delay_base_us.load(Ordering::Relaxed), self.iops_threshold.load(Ordering::Relaxed))
    }

    pub fn is_on(&self) -> bool {
        self.delay_base_us.load(Ordering::Relaxed) > 0
    }

    /// How long to hold notifications back after a window with so many requests.
    pub fn delay(&self, requests: u32) -> Duration {
        let (base, per_s) = self.get();
        let threshold = u64::from(per_s) * RATE_WINDOW.as_millis() as u64 / 1000;
        let over = u64::from(requests).saturating_sub(threshold.max(1));
        Duration::from_micros((u64::from(base) * over / threshold.max(1)).min(1_000_000))
    }
}

/// The descriptors by which a ring's driver is told something; replaced while the ring runs.
#[derive(Default)]
pub struct Bells {
    call: Mutex<Option<EventFd>>,
    error: Mutex<Option<EventFd>>,
}

impl Bells {
    pub fn set_call(&self, event: Option<EventFd>) {
        *self.call.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }

    pub fn set_error(&self, event: Option<EventFd>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }

    pub fn call(&self) {
        if let Some(event) = &*self.call.lock().unwrap_or_else(PoisonError::into_inner) {
            event.signal_if_room();
        }
    }

    pub fn error(&self) {
        if let Some(event) = &*self.error.lock().unwrap_or_else(PoisonError::into_inner) {
            event.signal_if_room();
        }
    }
}

/// A session's device.
pub struct Device {
    /// The controller's name, for what operators are told.
    pub name: String,
    pub bdev: Arc<dyn Bdev>,
    pub readonly: bool,
    pub log: DirtyLog,
    pub coalescing: Arc<Coalescing>,
    pub budget: Arc<Budget>,
    pub in_flight: AtomicUsize,
    /// Rings that run.
    pub running: AtomicUsize,
    /// Rings that the frontend has set up.
    pub rings: AtomicUsize,
    write_through: AtomicBool,
    events: Option<Arc<Events>>,
    /// The frontend has sent a message.
    pub spoken: AtomicBool,
    /// Set when the session must end.
    pub leave: Arc<Promise<()>>,
    /// Where the frontend listens for requests of the backend.
    backend: Mutex<Option<Socket>>,
}

impl Device {
    pub fn new(
        name: &str,
        bdev: &Arc<dyn Bdev>,
        readonly: bool,
        coalescing: &Arc<Coalescing>,
        budget: &Arc<Budget>,
        events: Option<&Arc<Events>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            bdev: Arc::clone(bdev),
            readonly,
            log: DirtyLog::default(),
            coalescing: Arc::clone(coalescing),
            budget: Arc::clone(budget),
            in_flight: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            rings: AtomicUsize::new(0),
            write_through: AtomicBool::new(true),
            events: events.map(Arc::clone),
            spoken: AtomicBool::new(false),
            leave: Promise::new(),
            backend: Mutex::new(None),
        }
    }

    /// Every write is durable before it is answered.
    pub fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Acquire)
    }

    pub fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Release);
    }

    pub fn tell(&self, level: Level, message: impl Into<String>) {
        if let Some(events) = &self.events {
            events.post(level, &self.name, message);
        }
    }

    /// End the session: it cannot go on.
    pub fn fail(&self, why: &str) {
        if self.leave.get().is_none() {
            self.tell(Level::Error, format!("the session ends: {why}"));
        }
        self.leave.set(());
    }

    pub fn set_backend(&self, socket: Option<Socket>) {
        *self.backend.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// Tell the guest that the config space has changed, if the frontend can pass it on.
    pub fn notify_config_change(&self) {
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = &*backend else { return };
        let message = proto::encode(proto::BACKEND_CONFIG_CHANGE, false, &[]);
        if socket.send(&message).ok() != Some(message.len()) {
            *backend = None; // a message cut in two: the stream cannot be used any more
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_wait_the_longer_the_more_requests_come() {
        let coalescing = Coalescing::default();
        assert_eq!(coalescing.delay(1_000_000), Duration::ZERO, "off by default");
        coalescing.set(100, 60_000);
        assert_eq!(coalescing.delay(600), Duration::ZERO);
        assert_eq!(coalescing.delay(1200), Duration::from_micros(100));
        assert_eq!(coalescing.delay(1800), Duration::from_micros(200));
        coalescing.set(u32::MAX, 1);
        assert_eq!(coalescing.delay(u32::MAX), Duration::from_secs(1), "never longer than a second");
    }
}
