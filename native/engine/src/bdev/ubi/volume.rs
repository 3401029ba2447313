//! What all parts of an open volume share, and the tasks that outlive the request that started them.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use super::UbiOptions;
use super::examine::Recovery;
use super::fetch::Fetches;
use super::flush::Rounds;
use super::geometry::{Geometry, StripeIndex};
use super::standing::Standing;
use super::status::{Counters, UbiStatus};
use super::stripes::StripeMap;
use super::superblock::VolumeState;
use crate::bdev::{Bdev, BdevInfo, IoStat};
use crate::error::{Error, Result};
use crate::events::Level;
use crate::image::Image;
use crate::reactor::exec;
use crate::reactor::sync::{Promise, add_waker, lock};

/// See the module. Every field may be used from every reactor at once.
pub struct Volume {
    pub options: UbiOptions,
    pub info: BdevInfo,
    pub geometry: Geometry,
    pub base: Arc<dyn Bdev>,
    pub image: Arc<dyn Image>,
    pub stripes: StripeMap,
    pub fetches: Fetches,
    pub rounds: Rounds,
    pub standing: Standing,
    pub counters: Counters,
    pub stat: Arc<IoStat>,
    pub tasks: Tasks,
    /// No fetch starts and no timer fires any more.
    pub closing: AtomicBool,
}

impl Volume {
    /// The stripes of the image that a range touches.
    pub fn stripes_of(&self, range: &Range<u64>) -> Range<StripeIndex> {
        self.geometry.stripes_of(range.start, range.end)
    }

    /// Start a task that `close` waits for. It keeps the volume, so that an operation on the base always ends
    /// with its owner, whatever becomes of the request.
    pub fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + 'static) {
        let running = Running::new(Arc::clone(self));
        exec::spawn(async move {
            task.await;
            drop(running);
        });
    }

    /// Run a task of its own to its end and wait for what it says.
    pub async fn run<T: Clone + 'static>(self: &Arc<Self>, task: impl Future<Output = T> + 'static) -> T {
        let promise = Promise::new();
        let answer = Arc::clone(&promise);
        self.spawn(async move { answer.set(task.await) });
        promise.wait().await
    }

    /// Claim a stripe; None when it is not Missing.
    pub fn claim(self: &Arc<Self>, stripe: StripeIndex) -> Option<Claim> {
        self.stripes.claim(stripe).then(|| Claim { volume: Arc::clone(self), stripe, filled: false })
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Read whole or partial blocks of the base at a volume's position.
    pub async fn read_base(&self, range: Range<u64>) -> Result<crate::sys::buf::IoData> {
        let blocks = self.geometry.to_blocks(&range);
        let len = (blocks.end - blocks.start) as usize;
        let buf = self.base.read(self.geometry.on_base(blocks.start), len).await?;
        let data = crate::sys::buf::IoData::new(buf);
        Ok(data.slice((range.start - blocks.start) as usize, (range.end - range.start) as usize))
    }

    /// Remember a failed fetch and tell the operator, but not of each one.
    pub fn note_fetch_error(&self, error: &Error) {
        Counters::add(&self.counters.fetch_errors, 1);
        self.note_error(Level::Warning, error);
    }

    /// Remember an error and tell the operator, but not of each one.
    pub fn note_error(&self, level: Level, error: &Error) {
        if self.counters.note_error(level, error.message()) {
            self.tell(level, error.message());
        }
    }

    /// Tell the operator.
    pub fn tell(&self, level: Level, message: &str) {
        if let Some(events) = &self.options.events {
            events.post(level, &self.options.name, message);
        }
    }

    pub fn status(&self) -> UbiStatus {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (filling, present, published) = self.stripes.counts();
        let fetched_bytes = load(&self.counters.fetched_bytes);
        let superblock = self.standing.superblock();
        let guest_bytes = self.stat.totals().write.bytes.saturating_sub(load(&self.counters.zeroed_bytes));
        UbiStatus {
            uuid: superblock.uuid,
            state: if self.rounds.has_failed() { VolumeState::SyncFailed } else { superblock.state },
            epoch: superblock.epoch,
            map_path: String::from_utf8_lossy(&superblock.map_path).into_owned(),
            acknowledged_by: if self.standing.is_marked() && self.standing.map().is_none() { "header" } else { "map" },
            recovered: self.standing.recovery.map_or("", Recovery::as_str),
            image_path: self.image.name().into(),
            image_size_bytes: self.geometry.image_bytes,
            stripe_size_kb: self.geometry.stripe_size_kb,
            stripes_total: self.geometry.stripes.into(),
            stripes_present: present.into(),
            stripes_filling: filling.into(),
            stripes_published: published.into(),
            fetched_bytes,
            bytes_written_to_base: guest_bytes + fetched_bytes,
            metadata_bytes_written: load(&self.counters.metadata_bytes),
            syncs: load(&self.counters.syncs),
            fetch_errors: load(&self.counters.fetch_errors),
            sync_failed: self.rounds.has_failed(),
            copy_on_read: self.options.copy_on_read,
            no_sync: self.options.no_sync,
            directio: self.image.directio_in_effect(),
            last_error: self.counters.last_error(),
        }
    }
}

/// Ownership of a Filling stripe. Dropped before `present`, it gives the stripe back as Missing.
pub struct Claim {
    volume: Arc<Volume>,
    stripe: StripeIndex,
    filled: bool,
}

impl Claim {
    pub fn stripe(&self) -> StripeIndex {
        self.stripe
    }

    /// Every operation of the owner has completed with its full length: the base holds the stripe now.
    pub fn present(mut self) {
        self.filled = true;
        self.volume.add_unpublished(self.stripe);
        if !fault!(LostWakeUp) {
            self.volume.stripes.wake(self.stripe);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.filled {
            self.volume.stripes.set_missing(self.stripe);
            self.volume.stripes.wake(self.stripe);
        }
    }
}

/// How many tasks of a volume run, and who waits for them to end.
#[derive(Default)]
pub struct Tasks {
    state: Mutex<(usize, Vec<Waker>)>,
}

impl Tasks {
    /// Wait until none runs.
    pub async fn wait_for_end(&self) {
        std::future::poll_fn(|context| {
            let mut state = lock(&self.state);
            if state.0 == 0 {
                return Poll::Ready(());
            }
            add_waker(&mut state.1, context.waker());
            Poll::Pending
        })
        .await;
    }
}

/// One running task.
struct Running(Arc<Volume>);

impl Running {
    fn new(volume: Arc<Volume>) -> Self {
        lock(&volume.tasks.state).0 += 1;
        Self(volume)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let waiters = {
            let mut state = lock(&self.0.tasks.state);
            state.0 -= 1;
            if state.0 == 0 { std::mem::take(&mut state.1) } else { Vec::new() }
        };
        for waiter in waiters {
            waiter.wake();
        }
    }
}
