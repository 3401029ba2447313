//! What a bdev has done: counters and times of completed requests, as bdev_get_iostat names them.
//!
//! A time runs from a request's entry into the bdev to its completion. What is carried out in place passes through
//! overlays to a base and begins and ends with them: the base looks at the clock, and counts it for all of them
//! ([`Above`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::LocalFuture;
use crate::error::Result;
use crate::reactor::lane::Lanes;
use crate::sys::clock;

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
    Unmap,
    Flush,
}

/// Completed requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    pub ops: u64,
    pub bytes: u64,
    /// All their times together, and the longest and the shortest one, in ticks of [`clock`].
    pub ticks: u64,
    pub max: u64,
    /// None: there was none.
    pub min: Option<u64>,
}

/// All that a bdev has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub read: Sum,
    pub write: Sum,
    pub unmap: Sum,
    pub flushes: u64,
    pub errors: u64,
}

/// Counters of one kind of requests; what a request changes is one cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Counters {
    ops: AtomicU64,
    bytes: AtomicU64,
    ticks: AtomicU64,
    max: AtomicU64,
    /// `u64::MAX`: there was none.
    min: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self { ops: zero(), bytes: zero(), ticks: zero(), max: zero(), min: AtomicU64::new(u64::MAX) }
    }
}

/// Add to a counter; cheaper where nobody else writes to it.
#[inline]
fn add(counter: &AtomicU64, count: u64, is_own: bool) {
    if is_own {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    } else {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

impl Counters {
    #[inline]
    fn count(&self, len: u64, ticks: u64, is_own: bool) {
        add(&self.ops, 1, is_own);
        add(&self.bytes, len, is_own);
        add(&self.ticks, ticks, is_own);
        if ticks > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(ticks, Ordering::Relaxed);
        }
        if ticks < self.min.load(Ordering::Relaxed) {
            self.min.fetch_min(ticks, Ordering::Relaxed);
        }
    }

    fn add_to(&self, sum: &mut Sum) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let min = Some(load(&self.min)).filter(|&min| min != u64::MAX);
        *sum = Sum {
            ops: sum.ops + load(&self.ops),
            bytes: sum.bytes + load(&self.bytes),
            ticks: sum.ticks + load(&self.ticks),
            max: sum.max.max(load(&self.max)),
            min: sum.min.into_iter().chain(min).min(),
        };
    }

    fn forget_extremes(&self) {
        self.max.store(0, Ordering::Relaxed);
        self.min.store(u64::MAX, Ordering::Relaxed);
    }
}

/// What one thread has counted.
#[derive(Debug, Default)]
struct Lane {
    read: Counters,
    write: Counters,
    unmap: Counters,
    flushes: AtomicU64,
    errors: AtomicU64,
}

/// Counters and times of one bdev.
#[derive(Debug, Default)]
pub struct IoStat {
    lanes: Lanes<Lane>,
}

/// When a request began.
#[derive(Debug, Clone, Copy)]
pub struct Began(u64);

/// Begin a request.
#[inline]
pub fn begin() -> Began {
    Began(clock::ticks())
}

/// A bdev through which a request comes to the one below, and those above it.
#[derive(Debug, Clone, Copy)]
pub struct Above<'a> {
    pub stat: &'a IoStat,
    pub above: Option<&'a Above<'a>>,
}

impl IoStat {
    /// Count a request that is completed: an error, or `len` bytes and the time since it began.
    #[inline]
    pub fn done<T>(&self, op: Op, len: u64, began: Began, result: &Result<T>) {
        if result.is_ok() {
            self.count(op, len, clock::ticks().saturating_sub(began.0));
        } else {
            let (lane, is_own) = self.lanes.mine();
            add(&lane.errors, 1, is_own);
        }
    }

    /// Count a request that has succeeded in place, here and wherever it has come through; returns how long it took.
    #[inline]
    pub fn done_in_place(&self, op: Op, len: u64, began: Began, above: Option<&Above<'_>>) -> u64 {
        let took = clock::ticks().saturating_sub(began.0);
        self.count(op, len, took);
        let mut next = above;
        while let Some(Above { stat, above }) = next {
            stat.count(op, len, took);
            next = *above;
        }
        took
    }

    /// Count a request that has succeeded, and answer it.
    pub fn answer(&self, op: Op, len: u64, began: Began) -> LocalFuture<'static, Result<()>> {
        self.done(op, len, began, &Ok(()));
        Box::pin(std::future::ready(Ok(())))
    }

    #[inline]
    fn count(&self, op: Op, len: u64, took: u64) {
        let (lane, is_own) = self.lanes.mine();
        match op {
            Op::Read => lane.read.count(len, took, is_own),
            Op::Write => lane.write.count(len, took, is_own),
            Op::Unmap => lane.unmap.count(len, took, is_own),
            Op::Flush => add(&lane.flushes, 1, is_own),
        }
    }

    /// All that was done so far. What completes meanwhile may be in one number and not yet in another.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for lane in self.lanes.iter() {
            lane.read.add_to(&mut totals.read);
            lane.write.add_to(&mut totals.write);
            lane.unmap.add_to(&mut totals.unmap);
            totals.flushes += lane.flushes.load(Ordering::Relaxed);
            totals.errors += lane.errors.load(Ordering::Relaxed);
        }
        totals
    }

    /// Forget the longest and the shortest time of each kind.
    pub fn forget_extremes(&self) {
        for lane in self.lanes.iter() {
            for counters in [&lane.read, &lane.write, &lane.unmap] {
                counters.forget_extremes();
            }
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
        self.0.push((Arc::clone(stat), began, len));
    }
}

impl Drop for LentReads {
    fn drop(&mut self) {
        let ended = clock::ticks();
        for (stat, began, len) in self.0.drain(..) {
            stat.count(Op::Read, len, ended.saturating_sub(began.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::reactor::lane;

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
        let Totals { read, write, errors, .. } = stat.totals();
        assert_eq!((read.ops, read.bytes, errors), (2, 1536, 1));
        let min = read.min.expect("there was one");
        assert_eq!(read.ticks, read.max + min);
        assert!(clock::to_ns(read.max) >= 200_000);
        assert!(min < read.max);
        assert_eq!(write, Sum::default());
        stat.forget_extremes();
        assert_eq!(stat.totals().read, Sum { max: 0, min: None, ..read });
    }

    #[test]
    fn every_reactor_counts_for_itself_and_the_sum_has_all_of_it() {
        let stat = IoStat::default();
        std::thread::scope(|scope| {
            for reactor in 0..12 {
                let stat = &stat;
                scope.spawn(move || {
                    lane::install(reactor);
                    for _ in 0..1000 {
                        stat.done(Op::Write, 512, begin(), &Ok(()));
                        stat.done(Op::Flush, 0, begin(), &Ok(()));
                    }
                });
            }
        });
        let Totals { write, flushes, .. } = stat.totals();
        assert_eq!((write.ops, write.bytes, flushes), (12_000, 12_000 * 512, 12_000));
        assert!(write.min.is_some_and(|min| min <= write.max) && write.ticks >= write.max);
    }

    #[test]
    fn what_is_done_in_place_counts_alike_for_all_that_it_came_through() {
        let (top, middle, base) = (IoStat::default(), IoStat::default(), IoStat::default());
        let top_layer = Above { stat: &top, above: None };
        let layers = Above { stat: &middle, above: Some(&top_layer) };
        let slow = begin();
        wait();
        let took = base.done_in_place(Op::Write, 1024, slow, Some(&layers));
        let write = base.totals().write;
        assert_eq!((write.ops, write.bytes, write.ticks, write.max), (1, 1024, took, took));
        assert_eq!((top.totals(), middle.totals()), (base.totals(), base.totals()));
        base.done_in_place(Op::Read, 512, begin(), None);
        assert_eq!((base.totals().read.ops, middle.totals().read.ops), (1, 0), "of somebody who asked the base itself");
    }

    #[test]
    fn a_lent_read_is_counted_for_every_layer_when_it_is_over() {
        let (above, below) = (Arc::new(IoStat::default()), Arc::new(IoStat::default()));
        let mut reads = LentReads::default();
        let began = begin();
        reads.add(&below, began, 512);
        reads.add(&above, began, 512);
        wait();
        assert_eq!(above.totals(), Totals::default());
        drop(reads);
        for stat in [above, below] {
            let read = stat.totals().read;
            assert_eq!((read.ops, read.bytes), (1, 512));
            assert!(clock::to_ns(read.max) >= 200_000);
        }
    }
}
