//! Requests that are not in whole blocks, of clients that never asked for the block size.
//!
//! What they change is read, merged and written back under a lock on its blocks, so that two of them in one block lose
//! no byte, whichever of the bdev's exports they come by. From the first such change on, every change of the bdev takes
//! that lock; before, nobody does. The first one waits until the changes that began without a lock have ended.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::bdev::{Bdev, ZeroFlags};
use crate::error::Result;
use crate::reactor::exec;
use crate::reactor::lane::Lanes;
use crate::reactor::sync::{Promise, lock};
use crate::sys::buf::{IoBuf, IoData};

/// The whole blocks (of a power of two bytes) around a range; None when they would leave 64 bits.
#[inline]
pub fn blocks_around(block: u64, offset: u64, len: u64) -> Option<Range<u64>> {
    let mask = block - 1;
    let end = if fault!(EndWraps) { Some(offset.wrapping_add(len)) } else { offset.checked_add(len) };
    let end = end?.checked_add(mask)?;
    Some(offset & !mask..end & !mask)
}

/// How often the first unaligned change looks whether the changes before it have ended.
const DRAIN_POLL: Duration = Duration::from_micros(100);

/// The locks of every bdev that is exported: exports of one bdev share them.
static LOCKS: Mutex<Vec<LocksOfBdev>> = Mutex::new(Vec::new());

type LocksOfBdev = (Weak<dyn Bdev>, Weak<RangeLocks>);

/// Ranges of one bdev that somebody changes just now.
#[derive(Default)]
pub struct RangeLocks {
    in_use: AtomicBool,
    /// Changes under way that hold no lock, each counted by the thread that began it.
    unlocked: Lanes<AtomicUsize>,
    /// Locks are in use, and every change that began without one has ended.
    drained: AtomicBool,
    held: Mutex<Vec<Held>>,
}

struct Held {
    range: Range<u64>,
    released: Arc<Promise<()>>,
}

/// A locked range; released when dropped.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    released: Arc<Promise<()>>,
}

/// A change under way that holds no lock, since nobody needed locks when it began.
pub struct Unlocked<'a>(&'a AtomicUsize);

impl Drop for Unlocked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A change in whole blocks while it is under way; it ends when dropped.
#[expect(dead_code, reason = "held for what their drop does")]
pub enum Change<'a> {
    Unlocked(Unlocked<'a>),
    Locked(RangeGuard<'a>),
}

impl RangeLocks {
    /// The locks of a bdev, the same ones for each of its exports.
    pub fn of(bdev: &Arc<dyn Bdev>) -> Arc<Self> {
        let mut all = lock(&LOCKS);
        all.retain(|(bdev, locks)| bdev.strong_count() > 0 && locks.strong_count() > 0);
        let known = all.iter().find(|(known, _)| std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(bdev)));
        if let Some(locks) = known.and_then(|(_, locks)| locks.upgrade()) {
            return locks;
        }
        let locks = Arc::new(Self::default());
        all.push((Arc::downgrade(bdev), Arc::downgrade(&locks)));
        locks
    }

    /// Begin a change without a lock; None when changes have to take the lock of their range.
    #[inline]
    pub fn try_unlocked(&self) -> Option<Unlocked<'_>> {
        // Counted before the look: `use_from_now_on` sees the one or is seen by the other.
        let (unlocked, _) = self.unlocked.mine();
        unlocked.fetch_add(1, Ordering::SeqCst);
        let change = Unlocked(unlocked);
        if self.in_use.load(Ordering::SeqCst) { None } else { Some(change) }
    }

    /// Begin a change in whole blocks, with the lock of its range where locks are in use.
    pub async fn begin(&self, range: Range<u64>) -> Change<'_> {
        match self.try_unlocked() {
            Some(change) => Change::Unlocked(change),
            None => Change::Locked(self.lock(range).await),
        }
    }

    /// From now on changes take the locks of their ranges; returns when none is under way without one.
    pub async fn use_from_now_on(&self) {
        self.in_use.store(true, Ordering::SeqCst);
        while !self.drained.load(Ordering::Acquire) {
            if self.unlocked.iter().all(|count| count.load(Ordering::SeqCst) == 0) {
                self.drained.store(true, Ordering::Release);
            } else {
                exec::sleep(DRAIN_POLL).await;
            }
        }
    }

    /// Wait until nobody holds a part of the range, then hold it.
    pub async fn lock(&self, range: Range<u64>) -> RangeGuard<'_> {
        loop {
            let other = {
                let mut held = lock(&self.held);
                let overlapping = held.iter().find(|held| held.range.start < range.end && range.start < held.range.end);
                match overlapping {
                    Some(held) => Arc::clone(&held.released),
                    None => {
                        let released = Promise::new();
                        held.push(Held { range, released: Arc::clone(&released) });
                        return RangeGuard { locks: self, released };
                    }
                }
            };
            other.wait().await;
        }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        lock(&self.locks.held).retain(|held| !Arc::ptr_eq(&held.released, &self.released));
        self.released.set(());
    }
}

/// A bdev and the locks of what is changed on it.
pub struct Unaligned<'a> {
    pub bdev: &'a dyn Bdev,
    pub locks: &'a RangeLocks,
}

impl Unaligned<'_> {
    fn block(&self) -> u64 {
        u64::from(self.bdev.info().block_size)
    }

    /// The blocks around a range that was checked to lie on the bdev.
    fn around(&self, range: &Range<u64>) -> Range<u64> {
        let mask = self.block() - 1;
        range.start & !mask..range.end.next_multiple_of(self.block())
    }

    /// The whole blocks inside a range; empty where there is none.
    fn inside(&self, range: &Range<u64>) -> Range<u64> {
        let (start, end) = (range.start.next_multiple_of(self.block()), range.end & !(self.block() - 1));
        start..end.max(start)
    }

    /// Read any range.
    ///
    /// # Errors
    /// What the bdev said.
    pub async fn read(&self, range: Range<u64>) -> Result<IoBuf> {
        let blocks = self.around(&range);
        let buf = self.bdev.read(blocks.start, (blocks.end - blocks.start) as usize).await?;
        let skip = (range.start - blocks.start) as usize;
        Ok(IoBuf::from_slice(&buf[skip..skip + (range.end - range.start) as usize]))
    }

    /// Write any range; the bytes around it in its first and last block stay what they are.
    ///
    /// # Errors
    /// What the bdev said.
    pub async fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        let range = offset..offset + data.len() as u64;
        let _held = self.locks.lock(self.around(&range)).await;
        self.merge(&range, data, fua).await
    }

    /// Make any range zero: its whole blocks as zeros, its ends by merging, which is never fast.
    ///
    /// # Errors
    /// What the bdev said; parts may be zero then. `Unsupported`, with nothing changed, where it had to be fast.
    pub async fn write_zeroes(&self, range: Range<u64>, flags: ZeroFlags) -> Result<()> {
        if flags.fast {
            return Err(ZeroFlags::not_fast(&self.bdev.info().name));
        }
        let _held = self.locks.lock(self.around(&range)).await;
        let inside = self.inside(&range);
        if inside.is_empty() {
            return self.zero_by_merging(&range, flags.fua).await;
        }
        self.zero_by_merging(&(range.start..inside.start), flags.fua).await?;
        self.zero_by_merging(&(inside.end..range.end), flags.fua).await?;
        self.bdev.write_zeroes(inside.start, inside.end - inside.start, flags).await
    }

    /// Discard the whole blocks of any range.
    ///
    /// # Errors
    /// What the bdev said.
    pub async fn discard(&self, range: Range<u64>, fua: bool) -> Result<()> {
        let inside = self.inside(&range);
        if inside.is_empty() {
            return Ok(());
        }
        let _held = self.locks.lock(inside.clone()).await;
        self.bdev.discard(inside.start, inside.end - inside.start, fua).await
    }

    /// Prefetch the blocks around any range.
    ///
    /// # Errors
    /// What the bdev said.
    pub async fn prefetch(&self, range: Range<u64>) -> Result<()> {
        let blocks = self.around(&range);
        self.bdev.prefetch(blocks.start, blocks.end - blocks.start).await
    }

    /// Zero a range that is less than two blocks, or nothing.
    async fn zero_by_merging(&self, range: &Range<u64>, fua: bool) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.merge(range, &vec![0; (range.end - range.start) as usize], fua).await
    }

    /// Write `data` and what its first and last block have around it. The caller holds the blocks' lock.
    async fn merge(&self, range: &Range<u64>, data: &[u8], fua: bool) -> Result<()> {
        let (block, blocks) = (self.block(), self.around(range));
        let mut buf = IoBuf::new((blocks.end - blocks.start) as usize);
        let last = blocks.end - block;
        if range.start != blocks.start {
            let head = self.bdev.read(blocks.start, block as usize).await?;
            buf[..block as usize].copy_from_slice(&head);
        }
        if !fault!(TailOverwritten) && range.end != blocks.end && (last != blocks.start || range.start == blocks.start)
        {
            let tail = self.bdev.read(last, block as usize).await?;
            buf[(last - blocks.start) as usize..].copy_from_slice(&tail);
        }
        let skip = (range.start - blocks.start) as usize;
        buf[skip..skip + data.len()].copy_from_slice(data);
        self.bdev.write(blocks.start, IoData::new(buf), fua).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::malloc::MallocBdev;
    use crate::reactor::exec::{block_on, join_all, yield_now};

    #[test]
    fn blocks_around_a_range_are_whole_and_never_wrap() {
        assert_eq!(blocks_around(512, 512, 512), Some(512..1024));
        assert_eq!(blocks_around(512, 1, 1), Some(0..512));
        assert_eq!(blocks_around(4096, 4095, 2), Some(0..8192));
        assert_eq!(blocks_around(512, u64::MAX - 511, 512), None);
        assert_eq!(blocks_around(512, u64::MAX, 0), None);
        assert_eq!(blocks_around(512, u64::MAX - 1023, 512), Some(u64::MAX - 1023..u64::MAX - 511));
    }

    #[test]
    fn the_first_lock_waits_for_changes_that_began_without_one_on_any_reactor() {
        let locks = Arc::new(RangeLocks::default());
        let (began, has_begun) = std::sync::mpsc::channel();
        let (end, may_end) = std::sync::mpsc::channel();
        let other = Arc::clone(&locks);
        let reactor = std::thread::spawn(move || {
            crate::reactor::lane::install(3);
            let change = other.try_unlocked().expect("nobody needs locks yet");
            began.send(()).expect("the test waits");
            may_end.recv().expect("the test says when");
            drop(change);
        });
        has_begun.recv().expect("it has begun");
        block_on(async move {
            let waited = exec::race(locks.use_from_now_on(), exec::sleep(Duration::from_millis(20))).await;
            assert!(matches!(waited, exec::Either::Right(())), "a change is under way");
            assert!(locks.try_unlocked().is_none(), "and none begins");
            end.send(()).expect("it waits");
            locks.use_from_now_on().await;
        });
        reactor.join().expect("the other reactor");
    }

    #[test]
    fn an_overlapping_range_waits_and_another_does_not() {
        block_on(async {
            let locks = RangeLocks::default();
            let order = Mutex::new(Vec::new());
            let hold = |name: char, range: Range<u64>| -> crate::bdev::LocalFuture<'_, ()> {
                let (locks, order) = (&locks, &order);
                Box::pin(async move {
                    let _held = locks.lock(range).await;
                    lock(order).push(name);
                    yield_now().await;
                    yield_now().await;
                    lock(order).push(name);
                })
            };
            join_all(vec![hold('a', 0..512), hold('b', 0..1024), hold('c', 1024..2048)]).await;
            let order = order.lock().expect("not poisoned").iter().collect::<String>();
            assert!(order.starts_with("ac"), "the one that overlaps nothing starts at once: {order}");
            assert!(order.rfind('a') < order.find('b'), "the overlapping one comes afterwards: {order}");
        });
    }

    /// Every kind of change at every offset and length, against a copy in memory.
    #[test]
    fn changes_anywhere_touch_their_bytes_and_no_other() {
        block_on(async {
            let bdev = MallocBdev::new("m", 8, 512).expect("malloc");
            let locks = RangeLocks::default();
            let unaligned = Unaligned { bdev: &bdev, locks: &locks };
            let mut model = vec![0u8; 4096];
            for (turn, start) in (0..4096usize).step_by(73).enumerate() {
                for len in [1, 2, 511, 512, 513, 1024, 1500, 2600] {
                    let end = (start + len).min(4096);
                    let range = start as u64..end as u64;
                    if (turn + len) % 3 == 0 {
                        unaligned.write_zeroes(range, ZeroFlags::default()).await.expect("zero");
                        model[start..end].fill(0);
                    } else {
                        let data = vec![(turn * 7 + len) as u8 | 1; end - start];
                        unaligned.write(range.start, &data, false).await.expect("write");
                        model[start..end].copy_from_slice(&data);
                    }
                    assert_eq!(bdev.read(0, 4096).await.expect("read")[..], model, "{len} at {start}");
                    let got = unaligned.read(start as u64..end as u64).await.expect("read");
                    assert_eq!(got[..], model[start..end]);
                }
            }
            unaligned.write(0, &[9; 4096], false).await.expect("write");
            unaligned.discard(100..1600, false).await.expect("discard");
            let after = bdev.read(0, 4096).await.expect("read");
            assert!(after[..512].iter().chain(&after[1536..]).all(|&byte| byte == 9), "only whole blocks");
            unaligned.discard(100..600, false).await.expect("nothing to discard");
        });
    }
}
