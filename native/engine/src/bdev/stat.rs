//! What a bdev has done: counters and times of completed requests, as bdev_get_iostat names them.
//!
//! A time runs from a request's entry into the bdev to its completion. Looking at the clock is most of what counting
//! costs, so an overlay and its base look at it once where they begin and end together ([`together`]).

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::sys::clock;

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
    Unmap,
    Flush,
}

/// Times of requests of one kind, in ticks of [`clock`].
#[derive(Debug)]
pub struct Times {
    pub total: AtomicU64,
    pub max: AtomicU64,
    /// `u64::MAX`: there was none.
    pub min: AtomicU64,
}

impl Default for Times {
    fn default() -> Self {
        Self { total: AtomicU64::new(0), max: AtomicU64::new(0), min: AtomicU64::new(u64::MAX) }
    }
}

impl Times {
    #[inline]
    fn add(&self, ticks: u64) {
        self.total.fetch_add(ticks, Ordering::Relaxed);
        if ticks > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(ticks, Ordering::Relaxed);
        }
        if ticks < self.min.load(Ordering::Relaxed) {
            self.min.fetch_min(ticks, Ordering::Relaxed);
        }
    }

    fn forget_extremes(&self) {
        self.max.store(0, Ordering::Relaxed);
        self.min.store(u64::MAX, Ordering::Relaxed);
    }
}

/// Counters and times of one bdev.
#[derive(Debug, Default)]
pub struct IoStat {
    pub bytes_read: AtomicU64,
    pub num_read_ops: AtomicU64,
    pub read_times: Times,
    pub bytes_written: AtomicU64,
    pub num_write_ops: AtomicU64,
    pub write_times: Times,
    pub bytes_unmapped: AtomicU64,
    pub num_unmap_ops: AtomicU64,
    pub unmap_times: Times,
    pub num_flush_ops: AtomicU64,
    pub num_errors: AtomicU64,
}

thread_local! {
    /// When the layer above began, and when the layer below ended; 0: nobody has looked at the clock.
    static BEGAN: Cell<u64> = const { Cell::new(0) };
    static ENDED: Cell<u64> = const { Cell::new(0) };
}

/// When a request began.
#[derive(Debug, Clone, Copy)]
pub struct Began {
    ticks: u64,
    /// The layer above wants to know the end.
    shared: bool,
}

/// Begin a request.
#[inline]
pub fn begin() -> Began {
    match BEGAN.take() {
        0 => Began { ticks: clock::ticks(), shared: false },
        ticks => Began { ticks, shared: true },
    }
}

/// Call a layer below whose request begins and ends with this one: its answer, and when it ended if it looked.
#[inline]
pub fn together<T>(began: Began, below: impl FnOnce() -> T) -> (T, Option<u64>) {
    BEGAN.set(began.ticks);
    let answer = below();
    BEGAN.set(0); // it may have declined without looking
    let ended = ENDED.take();
    (answer, (ended != 0).then_some(ended))
}

impl IoStat {
    /// Count a request that is completed: an error, or `len` bytes and the time since it began, which is returned.
    #[inline]
    pub fn done<T>(&self, op: Op, len: u64, began: Began, result: &Result<T>) -> u64 {
        self.done_at(op, len, began, None, result)
    }

    /// The same where the end may be known.
    #[inline]
    pub fn done_at<T>(&self, op: Op, len: u64, began: Began, ended: Option<u64>, result: &Result<T>) -> u64 {
        if result.is_err() {
            self.num_errors.fetch_add(1, Ordering::Relaxed);
            return 0;
        }
        let ended = ended.unwrap_or_else(clock::ticks);
        if began.shared {
            ENDED.set(ended);
        }
        let took = ended.saturating_sub(began.ticks);
        self.count(op, len, took);
        took
    }

    fn count(&self, op: Op, len: u64, ticks: u64) {
        let (ops, bytes, times) = match op {
            Op::Read => (&self.num_read_ops, &self.bytes_read, &self.read_times),
            Op::Write => (&self.num_write_ops, &self.bytes_written, &self.write_times),
            Op::Unmap => (&self.num_unmap_ops, &self.bytes_unmapped, &self.unmap_times),
            Op::Flush => {
                self.num_flush_ops.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        ops.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(len, Ordering::Relaxed);
        times.add(ticks);
    }

    /// Forget the longest and the shortest time of each kind.
    pub fn forget_extremes(&self) {
        for times in [&self.read_times, &self.write_times, &self.unmap_times] {
            times.forget_extremes();
        }
    }
}

/// Reads whose bytes somebody else takes from where they lie; each is counted when that is over, which is when this is
/// dropped.
#[derive(Debug, Default)]
pub struct LentReads(Vec<(Arc<IoStat>, Began, u64)>);

impl LentReads {
    /// Count a read of `len` bytes for one more bdev.
    pub fn add(&mut self, stat: &Arc<IoStat>, began: Began, len: u64) {
        self.0.push((Arc::clone(stat), Began { shared: false, ..began }, len));
    }
}

impl Drop for LentReads {
    fn drop(&mut self) {
        let ended = clock::ticks();
        for (stat, began, len) in self.0.drain(..) {
            stat.done_at(Op::Read, len, began, Some(ended), &Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    fn load(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    fn wait() {
        let began = clock::ticks();
        while clock::to_ns(clock::ticks() - began) < 200_000 {}
    }

    #[test]
    fn a_time_runs_from_begin_to_done_and_errors_have_none() {
        let stat = IoStat::default();
        let quick = begin();
        stat.done(Op::Read, 512, quick, &Ok(()));
        let slow = begin();
        wait();
        stat.done(Op::Read, 1024, slow, &Ok(()));
        stat.done(Op::Read, 4096, slow, &Err::<(), _>(Error::new(ErrorKind::Io, "no")));
        assert_eq!((load(&stat.num_read_ops), load(&stat.bytes_read), load(&stat.num_errors)), (2, 1536, 1));
        let times = &stat.read_times;
        assert_eq!(load(&times.total), load(&times.max) + load(&times.min));
        assert!(clock::to_ns(load(&times.max)) >= 200_000);
        assert!(load(&times.min) < load(&times.max));
        stat.forget_extremes();
        assert_eq!((load(&times.max), load(&times.min)), (0, u64::MAX));
        assert!(load(&times.total) > 0);
        assert_eq!(load(&stat.write_times.total), 0);
    }

    #[test]
    fn layers_that_begin_and_end_together_have_the_same_time() {
        let (above, below) = (IoStat::default(), IoStat::default());
        let began = begin();
        let ((), ended) = together(began, || {
            let began = begin();
            wait();
            below.done(Op::Write, 512, began, &Ok(()));
        });
        assert!(ended.is_some());
        above.done_at(Op::Write, 512, began, ended, &Ok(()));
        assert_eq!(load(&above.write_times.total), load(&below.write_times.total));
        let ((), ended) = together(begin(), || ());
        assert_eq!(ended, None, "it declined");
        assert!(!begin().shared, "nothing is left for the next request");
    }

    #[test]
    fn a_lent_read_is_counted_for_every_layer_when_it_is_over() {
        let (above, below) = (Arc::new(IoStat::default()), Arc::new(IoStat::default()));
        let mut reads = LentReads::default();
        let began = begin();
        reads.add(&below, began, 512);
        reads.add(&above, began, 512);
        wait();
        assert_eq!(load(&above.num_read_ops), 0);
        drop(reads);
        for stat in [above, below] {
            assert_eq!((load(&stat.num_read_ops), load(&stat.bytes_read)), (1, 512));
            assert!(clock::to_ns(load(&stat.read_times.max)) >= 200_000);
        }
    }
}
