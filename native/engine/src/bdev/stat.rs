//! What a bdev has done: counters and times of completed requests, as bdev_get_iostat names them.
//!
//! A time runs from a request's entry into the bdev to its completion. What is carried out in place passes through an
//! overlay to its base and is the same request there: the base counts it for both ([`IoStat::done_in_place`]), which
//! leaves nothing to do on the way.

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

impl Sum {
    /// This, and what has come to another one since it was `before`; the extremes are those of `now`.
    fn and_since(self, before: Self, now: Self) -> Self {
        Self {
            ops: self.ops + now.ops - before.ops,
            bytes: self.bytes + now.bytes - before.bytes,
            ticks: self.ticks + now.ticks - before.ticks,
            max: self.max.max(now.max),
            min: self.min.into_iter().chain(now.min).min(),
        }
    }
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
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counters {
    ops: AtomicU64,
    bytes: AtomicU64,
    ticks: AtomicU64,
    extremes: Extremes,
    /// The same for the bdev above, which forgets them at other times.
    above: Extremes,
}

#[derive(Debug)]
struct Extremes {
    max: AtomicU64,
    /// `u64::MAX`: there was none.
    min: AtomicU64,
}

impl Default for Extremes {
    fn default() -> Self {
        Self { max: AtomicU64::new(0), min: AtomicU64::new(u64::MAX) }
    }
}

impl Extremes {
    #[inline]
    fn note(&self, ticks: u64) {
        if ticks > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(ticks, Ordering::Relaxed);
        }
        if ticks < self.min.load(Ordering::Relaxed) {
            self.min.fetch_min(ticks, Ordering::Relaxed);
        }
    }

    fn forget(&self) {
        self.max.store(0, Ordering::Relaxed);
        self.min.store(u64::MAX, Ordering::Relaxed);
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
        self.extremes.note(ticks);
    }

    fn add_to(&self, sum: &mut Sum, extremes: &Extremes) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let min = Some(load(&extremes.min)).filter(|&min| min != u64::MAX);
        *sum = Sum {
            ops: sum.ops + load(&self.ops),
            bytes: sum.bytes + load(&self.bytes),
            ticks: sum.ticks + load(&self.ticks),
            max: sum.max.max(load(&extremes.max)),
            min: sum.min.into_iter().chain(min).min(),
        };
    }
}

/// What one thread has counted.
#[derive(Debug, Default)]
struct Lane {
    read: Counters,
    write: Counters,
    unmap: Counters,
    /// Those that were carried out in place, for the bdev above as well.
    read_in_place: Counters,
    write_in_place: Counters,
    flushes: AtomicU64,
    errors: AtomicU64,
}

/// Counters and times of one bdev.
#[derive(Debug, Default)]
pub struct IoStat {
    lanes: Lanes<Lane>,
    below: Option<Below>,
}

/// Who counts what passes through an overlay.
#[derive(Debug)]
struct Below {
    stat: Arc<IoStat>,
    /// Reads and writes in place before the overlay was there.
    before: [Sum; 2],
}

/// When a request began.
#[derive(Debug, Clone, Copy)]
pub struct Began(u64);

/// Begin a request.
#[inline]
pub fn begin() -> Began {
    Began(clock::ticks())
}

impl IoStat {
    /// The counters of an overlay that carries out in place what its base does, and nothing else; from now on all that
    /// the base does in place is the overlay's.
    pub fn over(base: &Arc<Self>) -> Self {
        base.forget_extremes_above();
        let below = Below { stat: Arc::clone(base), before: base.in_place_above() };
        Self { lanes: Lanes::default(), below: Some(below) }
    }

    /// Count a request that is completed: an error, or `len` bytes and the time since it began.
    #[inline]
    pub fn done<T>(&self, op: Op, len: u64, began: Began, result: &Result<T>) {
        self.done_at(op, len, began, clock::ticks(), result);
    }

    /// Count a request that has succeeded, and answer it.
    pub fn answer(&self, op: Op, len: u64, began: Began) -> LocalFuture<'static, Result<()>> {
        self.done(op, len, began, &Ok(()));
        Box::pin(std::future::ready(Ok(())))
    }

    fn done_at<T>(&self, op: Op, len: u64, began: Began, ended: u64, result: &Result<T>) {
        let (lane, is_own) = self.lanes.mine();
        let took = ended.saturating_sub(began.0);
        match op {
            _ if result.is_err() => add(&lane.errors, 1, is_own),
            Op::Read => lane.read.count(len, took, is_own),
            Op::Write => lane.write.count(len, took, is_own),
            Op::Unmap => lane.unmap.count(len, took, is_own),
            Op::Flush => add(&lane.flushes, 1, is_own),
        }
    }

    /// Count a read or write that was carried out in place, for this bdev and the one above; returns how long it took.
    #[inline]
    pub fn done_in_place(&self, op: Op, len: u64, began: Began) -> u64 {
        let (lane, is_own) = self.lanes.mine();
        let took = clock::ticks().saturating_sub(began.0);
        let counters = if op == Op::Read { &lane.read_in_place } else { &lane.write_in_place };
        counters.count(len, took, is_own);
        counters.above.note(took);
        took
    }

    /// All that was done so far. What completes meanwhile may be in one number and not yet in another.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for lane in self.lanes.iter() {
            for (sum, counters) in [
                (&mut totals.read, [Some(&lane.read), Some(&lane.read_in_place)]),
                (&mut totals.write, [Some(&lane.write), Some(&lane.write_in_place)]),
                (&mut totals.unmap, [Some(&lane.unmap), None]),
            ] {
                counters.into_iter().flatten().for_each(|counters| counters.add_to(sum, &counters.extremes));
            }
            totals.flushes += lane.flushes.load(Ordering::Relaxed);
            totals.errors += lane.errors.load(Ordering::Relaxed);
        }
        if let Some(Below { stat, before }) = &self.below {
            let [read, write] = stat.in_place_above();
            totals.read = totals.read.and_since(before[0], read);
            totals.write = totals.write.and_since(before[1], write);
        }
        totals
    }

    /// Reads and writes in place, with the extremes for the bdev above.
    fn in_place_above(&self) -> [Sum; 2] {
        let mut sums = [Sum::default(); 2];
        for lane in self.lanes.iter() {
            for (sum, counters) in sums.iter_mut().zip([&lane.read_in_place, &lane.write_in_place]) {
                counters.add_to(sum, &counters.above);
            }
        }
        sums
    }

    /// Forget the longest and the shortest time of each kind.
    pub fn forget_extremes(&self) {
        for lane in self.lanes.iter() {
            for counters in [&lane.read, &lane.write, &lane.unmap, &lane.read_in_place, &lane.write_in_place] {
                counters.extremes.forget();
            }
        }
        if let Some(below) = &self.below {
            below.stat.forget_extremes_above();
        }
    }

    fn forget_extremes_above(&self) {
        for lane in self.lanes.iter() {
            lane.read_in_place.above.forget();
            lane.write_in_place.above.forget();
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
            stat.done_at(Op::Read, len, began, ended, &Ok(()));
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
    fn what_is_done_in_place_counts_for_the_base_and_from_then_on_for_its_overlay() {
        let base = Arc::new(IoStat::default());
        base.done_in_place(Op::Write, 512, begin());
        let overlay = IoStat::over(&base);
        assert_eq!(overlay.totals(), Totals::default());
        let slow = begin();
        wait();
        let took = base.done_in_place(Op::Write, 1024, slow);
        base.done_in_place(Op::Read, 4096, begin());
        base.done(Op::Write, 8192, begin(), &Ok(()));
        overlay.done(Op::Write, 2048, begin(), &Ok(()));
        let (above, below) = (overlay.totals(), base.totals());
        assert_eq!((above.read.ops, above.read.bytes), (1, 4096));
        assert_eq!((above.write.ops, above.write.bytes, above.write.max), (2, 1024 + 2048, took));
        assert_eq!((below.write.ops, below.write.bytes, below.write.max), (3, 512 + 1024 + 8192, took));
        assert_eq!(above.read, below.read);
        overlay.forget_extremes();
        assert_eq!((overlay.totals().write.max, overlay.totals().write.min), (0, None));
        assert_eq!((base.totals().write.max, overlay.totals().write.ops), (took, 2), "each has extremes of its own");
        base.done_in_place(Op::Write, 512, begin());
        base.forget_extremes();
        assert_eq!((base.totals().write.max, overlay.totals().write.ops), (0, 3));
        assert!(overlay.totals().write.max > 0);
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
