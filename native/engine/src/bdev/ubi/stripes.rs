//! The state of every stripe of the image: who may touch it, and who waits for it.
//!
//! ```text
//!            claim                 filled                published
//!  Missing ─────────► Filling ─────────────► Present ───────────────► Published
//!     ▲                  │
//!     └──────────────────┘ any error
//! ```
//!
//! A stripe never becomes less than Present again. Reads trust a stripe from Present on; so do writes when a volatile map
//! knows it, else when it is Published, that is when its header is durable.

use std::collections::HashMap;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::task::{Poll, Waker};

use super::geometry::StripeIndex;
use crate::reactor::sync::{add_waker, lock};

const SHARDS: usize = 16;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Only the image has it.
    Missing = 0,
    /// Somebody owns it and is bringing it to the base.
    Filling = 1,
    /// The base has it; its header is not durable yet.
    Present = 2,
    /// The base has it, and its header is durable.
    Published = 3,
}

impl State {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => State::Missing,
            1 => State::Filling,
            2 => State::Present,
            3 => State::Published,
            _ => unreachable!("only states are stored"),
        }
    }

    /// Whether the base holds the stripe.
    pub fn is_ready(self) -> bool {
        self >= State::Present
    }
}

type Waiters = HashMap<StripeIndex, Vec<Waker>>;

/// The states of a volume's stripes. Safe to use from every reactor at once.
pub struct StripeMap {
    states: Box<[AtomicU8]>,
    filling: AtomicU32,
    /// Present and Published.
    ready: AtomicU32,
    published: AtomicU32,
    /// Every stripe is Published: nobody has to look at single states any more.
    complete: AtomicBool,
    waiters: [Mutex<Waiters>; SHARDS],
}

impl StripeMap {
    /// A map with the states that `state` says; none is Filling.
    pub fn new(stripes: u32, state: impl Fn(StripeIndex) -> State) -> Self {
        let states: Box<[AtomicU8]> = (0..stripes).map(|stripe| AtomicU8::new(state(stripe) as u8)).collect();
        let count = |least: State| states.iter().filter(|state| state.load(Ordering::Relaxed) >= least as u8).count();
        let count = |least| u32::try_from(count(least)).expect("at most as many as stripes");
        let (ready, published) = (count(State::Present), count(State::Published));
        Self {
            complete: AtomicBool::new(published == stripes),
            states,
            filling: AtomicU32::new(0),
            ready: AtomicU32::new(ready),
            published: AtomicU32::new(published),
            waiters: std::array::from_fn(|_| Mutex::new(HashMap::new())),
        }
    }

    /// The state just now. What was written to the base before it became ready can be read from there.
    pub fn get(&self, stripe: StripeIndex) -> State {
        State::from_u8(self.states[stripe as usize].load(Ordering::Acquire))
    }

    /// Whether every stripe is Published, for good.
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether every stripe of the range has at least the state `least`.
    #[inline]
    pub fn all_at_least(&self, stripes: Range<StripeIndex>, least: State) -> bool {
        let states = &self.states[stripes.start as usize..stripes.end as usize];
        states.iter().all(|state| state.load(Ordering::Acquire) >= least as u8)
    }

    /// Whether some stripe of the range is Present but not Published.
    pub fn any_unpublished(&self, mut stripes: Range<StripeIndex>) -> bool {
        stripes.any(|stripe| self.get(stripe) == State::Present)
    }

    /// Become the owner of a Missing stripe; false when it is not Missing (any more).
    pub fn claim(&self, stripe: StripeIndex) -> bool {
        let (missing, filling) = (State::Missing as u8, State::Filling as u8);
        let state = &self.states[stripe as usize];
        let missing = if fault!(FetchOverWrite) { state.load(Ordering::Acquire) } else { missing };
        let claimed = state.compare_exchange(missing, filling, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if claimed {
            self.filling.fetch_add(1, Ordering::Relaxed);
        }
        claimed
    }

    /// The owner is done: the base holds the stripe. `wake` its waiters afterwards.
    pub fn set_present(&self, stripe: StripeIndex) {
        self.leave_filling(stripe, State::Present);
        self.ready.fetch_add(1, Ordering::Relaxed);
    }

    /// The owner failed: the image is still the truth. `wake` its waiters afterwards.
    pub fn set_missing(&self, stripe: StripeIndex) {
        self.leave_filling(stripe, State::Missing);
    }

    /// The stripe's header is durable.
    pub fn set_published(&self, stripe: StripeIndex) {
        let before = self.states[stripe as usize].swap(State::Published as u8, Ordering::AcqRel);
        assert_eq!(State::from_u8(before), State::Present, "INV-1: only a filled stripe is published");
        let published = self.published.fetch_add(1, Ordering::AcqRel) + 1;
        if published as usize == self.states.len() {
            self.complete.store(true, Ordering::Release);
        }
    }

    /// Wake everybody who waits for the stripe to be no longer Filling.
    pub fn wake(&self, stripe: StripeIndex) {
        let waiters = lock(self.shard(stripe)).remove(&stripe);
        for waiter in waiters.into_iter().flatten() {
            waiter.wake();
        }
    }

    /// Wait until the stripe is not Filling; what it is then has to be looked at.
    pub async fn wait_while_filling(&self, stripe: StripeIndex) {
        poll_fn(|context| {
            // Looked at under the lock that `wake` takes after the change: no wake-up is lost.
            let mut waiters = lock(self.shard(stripe));
            if self.get(stripe) != State::Filling {
                return Poll::Ready(());
            }
            add_waker(waiters.entry(stripe).or_default(), context.waker());
            Poll::Pending
        })
        .await;
    }

    /// Number of stripes that are Filling, ready (Present or Published), Published.
    pub fn counts(&self) -> (u32, u32, u32) {
        let load = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        (load(&self.filling), load(&self.ready), load(&self.published))
    }

    fn leave_filling(&self, stripe: StripeIndex, to: State) {
        let before = self.states[stripe as usize].swap(to as u8, Ordering::AcqRel);
        assert_eq!(State::from_u8(before), State::Filling, "INV-3: only the owner of a stripe changes its state");
        self.filling.fetch_sub(1, Ordering::Relaxed);
    }

    fn shard(&self, stripe: StripeIndex) -> &Mutex<Waiters> {
        &self.waiters[stripe as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reactor::exec;

    #[test]
    fn a_stripe_has_one_owner_at_a_time() {
        let map = StripeMap::new(2, |_| State::Missing);
        assert!(map.claim(1));
        assert!(!map.claim(1));
        map.set_missing(1);
        assert!(map.claim(1));
        map.set_present(1);
        assert!(!map.claim(1));
        assert_eq!((map.get(0), map.get(1), map.counts()), (State::Missing, State::Present, (0, 1, 0)));
    }

    #[test]
    fn the_map_is_complete_when_the_last_stripe_is_published() {
        let map = StripeMap::new(2, |stripe| if stripe == 0 { State::Published } else { State::Missing });
        assert!(map.claim(1));
        map.set_present(1);
        assert!(!map.is_complete() && map.any_unpublished(0..2));
        map.set_published(1);
        assert!(map.is_complete() && !map.any_unpublished(0..2));
        assert!(StripeMap::new(0, |_| State::Missing).is_complete());
    }

    #[test]
    #[should_panic(expected = "INV-1")]
    fn inv_1_a_stripe_that_is_not_filled_cannot_be_published() {
        StripeMap::new(1, |_| State::Missing).set_published(0);
    }

    #[test]
    fn a_waiter_on_another_thread_is_woken() {
        let map = Arc::new(StripeMap::new(1, |_| State::Missing));
        assert!(map.claim(0));
        let waiter = {
            let map = Arc::clone(&map);
            std::thread::spawn(move || exec::block_on(async move { map.wait_while_filling(0).await }))
        };
        std::thread::yield_now();
        map.set_present(0);
        map.wake(0);
        waiter.join().expect("woken");
    }
}
