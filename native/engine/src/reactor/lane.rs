//! One copy of a counter for each reactor, so that reactors which work for one bdev do not pass its cache lines to and fro.

use std::cell::Cell;

/// Reactors that have a copy for themselves; more of them, and all other threads, share the last one.
const OWN: usize = 8;
const SHARED: usize = OWN;

thread_local! {
    static LANE: Cell<usize> = const { Cell::new(SHARED) };
}

/// Make this thread the reactor of that number; no other thread of its engine has it.
pub fn install(reactor: usize) {
    LANE.set(reactor.min(SHARED));
}

/// Copies of something, each in cache lines of its own: one for each reactor, and one for everybody else.
///
/// What has them belongs to one engine: reactors of two have the same numbers.
#[derive(Debug, Default)]
pub struct Lanes<T>([Lane<T>; OWN + 1]);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Lane<T>(T);

impl<T> Lanes<T> {
    /// This thread's copy, and whether no other thread writes to it.
    #[inline]
    pub fn mine(&self) -> (&T, bool) {
        let lane = LANE.get();
        (&self.0[lane].0, lane != SHARED)
    }

    /// Every copy.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|lane| &lane.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn reactors_have_copies_of_their_own_as_long_as_there_are_some() {
        let lanes = Lanes::<AtomicUsize>::default();
        let (lanes, add) = (&lanes, |reactor: Option<usize>| {
            if let Some(reactor) = reactor {
                install(reactor);
            }
            let (mine, is_own) = lanes.mine();
            mine.fetch_add(1, Ordering::Relaxed);
            is_own
        });
        let add = &add;
        std::thread::scope(|scope| {
            let owners =
                [None, Some(0), Some(7), Some(8), Some(100), None].map(|reactor| scope.spawn(move || add(reactor)));
            let is_own = owners.map(|thread| thread.join().expect("a thread"));
            assert_eq!(is_own, [false, true, true, false, false, false]);
        });
        let counts: Vec<usize> = lanes.iter().map(|lane| lane.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [1, 0, 0, 0, 0, 0, 0, 1, 4]);
        let of = |index: usize| std::ptr::from_ref(&lanes.0[index]).addr();
        assert!(of(0).is_multiple_of(64) && of(1) - of(0) >= 64, "no two share a cache line");
    }
}
