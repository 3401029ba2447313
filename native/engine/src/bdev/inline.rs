//! Whether writes to a page cache are carried out in place, on the reactor's own thread: as long as none of them blocks.
//!
//! A write waits in the kernel where too much is dirty or a journal commits, for as long as that takes, and everything else
//! of its reactor with it (INV-4). After one that did, writes go through the ring for a while. Times are ticks of [`clock`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::reactor::blocking;
use crate::sys::clock;

/// Largest write that is carried out in place, bytes; above, the copy itself would hold up the reactor.
const LEN_MAX: usize = 256 << 10;
/// What takes longer may have blocked.
const SLOW: Duration = Duration::from_millis(1);
/// Time without writes in place after one that has, in times that it took: one bdev holds up its reactor for a tenth of the
/// time, until `REST_MAX`.
const REST_TIMES: u64 = 9;
/// Longest time without.
const REST_MAX: Duration = Duration::from_secs(1);

/// The writes of one bdev.
pub struct InlineWrites {
    slow: u64,
    rest_max: u64,
    /// 0: no rest.
    rests_until: AtomicU64,
}

impl InlineWrites {
    pub fn new() -> Self {
        Self { slow: clock::about(SLOW), rest_max: clock::about(REST_MAX), rests_until: AtomicU64::new(0) }
    }

    /// Whether one of `len` bytes should be, now.
    pub fn may(&self, len: usize) -> bool {
        len <= LEN_MAX
            && match self.rests_until.load(Ordering::Relaxed) {
                0 => true,
                until if clock::ticks() >= until => {
                    // So that nobody looks at the clock any more, unless another one has blocked meanwhile.
                    let _ = self.rests_until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
                    true
                }
                _ => false,
            }
    }

    /// Called before each of them.
    pub fn begin(&self) {
        blocking::watch();
    }

    /// Note how long one has taken. Who merely lost the CPU to others meanwhile would lose it anywhere.
    pub fn end(&self, took: u64) {
        if took > self.slow && blocking::has_blocked() {
            let rest = took.saturating_mul(REST_TIMES).min(self.rest_max);
            self.rests_until.fetch_max(clock::ticks() + rest, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() {
        std::thread::sleep(Duration::from_micros(1));
    }

    #[test]
    fn what_blocks_is_followed_by_a_rest_and_what_is_only_slow_is_not() {
        let writes = InlineWrites::new();
        let slow = clock::about(Duration::from_millis(10));
        assert!(writes.may(LEN_MAX) && !writes.may(LEN_MAX + 1));
        writes.begin();
        writes.end(slow);
        assert!(writes.may(512), "its thread had to share the CPU");
        block();
        writes.begin();
        writes.end(writes.slow);
        assert!(writes.may(512), "so short a time is none");
        let before = clock::ticks();
        writes.end(slow);
        let rest = slow * REST_TIMES;
        assert!(!writes.may(512) || clock::ticks() >= before + rest);
        while clock::ticks() < before + rest + slow {
            block();
        }
        assert!(writes.may(512));
        writes.end(slow);
        assert!(!writes.may(512) || clock::ticks() >= before + 2 * rest, "it has blocked meanwhile");
    }

    #[test]
    fn a_very_long_wait_is_not_followed_by_a_longer_one() {
        let writes = InlineWrites::new();
        block();
        writes.end(u64::MAX);
        let most = clock::ticks() + writes.rest_max;
        let until = writes.rests_until.load(Ordering::Relaxed);
        assert!((1..=most).contains(&until));
        block();
        writes.end(writes.slow + 1);
        assert!(writes.rests_until.load(Ordering::Relaxed) >= until, "a shorter one does not end it");
    }
}
