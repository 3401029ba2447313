//! Memory for requests: bounded per connection and per daemon. Over budget a socket is not read.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Data of the largest request that a frontend takes, bytes; nbd-tester-client's traces need more than 47 MiB.
pub const MAX_REQUEST_BYTES: u32 = 64 << 20;
/// Bytes that a connection may hold beside its one largest request.
const CONNECTION_BYTES: usize = 64 << 20;
/// Bytes that every connection may hold whatever others hold, so that nobody can starve it.
const FREE_SHARE_BYTES: usize = 2 << 20;
/// Requests in flight a connection.
const CONNECTION_REQUESTS: usize = 1024;

/// The daemon's pool.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

impl Budget {
    /// A pool of `limit` bytes; at least the largest request fits.
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = limit.max(MAX_REQUEST_BYTES as usize);
        Arc::new(Self { limit, used: AtomicUsize::new(0), waiting: Mutex::new(Vec::new()) })
    }

    fn try_take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in waiting {
            waker.wake();
        }
    }

    fn wait_with(&self, waker: &Waker) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waker.clone());
    }
}

/// One connection's account.
pub struct Account {
    pool: Arc<Budget>,
    held: Cell<usize>,
    requests: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}

/// Bytes of one request, given back when dropped.
pub struct Permit {
    account: Rc<Account>,
    bytes: usize,
    from_pool: bool,
}

impl Account {
    pub fn new(pool: Arc<Budget>) -> Rc<Self> {
        Rc::new(Self { pool, held: Cell::new(0), requests: Cell::new(0), waiting: RefCell::new(None) })
    }

    /// Requests that hold a permit.
    pub fn requests(&self) -> usize {
        self.requests.get()
    }

    /// Room for a request of `bytes`, or None while there is none.
    pub fn try_take(self: &Rc<Self>, bytes: usize) -> Option<Permit> {
        let held = self.held.get();
        let over = held > 0 && held + bytes > CONNECTION_BYTES;
        if over || self.requests.get() >= CONNECTION_REQUESTS {
            return None;
        }
        let from_pool = held + bytes > FREE_SHARE_BYTES;
        if from_pool && !self.pool.try_take(bytes) {
            return None;
        }
        self.held.set(held + bytes);
        self.requests.set(self.requests.get() + 1);
        Some(Permit { account: Rc::clone(self), bytes, from_pool })
    }

    /// Wait for room.
    pub async fn take(self: &Rc<Self>, bytes: usize) -> Permit {
        std::future::poll_fn(|context| {
            *self.waiting.borrow_mut() = Some(context.waker().clone());
            self.pool.wait_with(context.waker()); // before the try, so that no return is missed
            self.try_take(bytes).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Wait until no request holds a permit.
    pub async fn idle(&self) {
        std::future::poll_fn(|context| {
            if self.requests.get() == 0 {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let account = &self.account;
        account.held.set(account.held.get() - self.bytes);
        account.requests.set(account.requests.get() - 1);
        if self.from_pool {
            account.pool.give_back(self.bytes);
        }
        if let Some(waker) = account.waiting.borrow_mut().take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_keeps_its_share_when_the_pool_is_empty() {
        let pool = Budget::new(0); // raised to the largest request
        let greedy = Account::new(Arc::clone(&pool));
        let _large = greedy.try_take(64 << 20).expect("the pool is empty yet");
        assert!(greedy.try_take(1 << 20).is_none(), "over the connection's own limit");
        let modest = Account::new(pool);
        let _small = modest.try_take(1 << 20).expect("within the free share");
        assert!(modest.try_take(4 << 20).is_none(), "the pool is taken");
        drop(_large);
        assert!(modest.try_take(4 << 20).is_some());
    }

    #[test]
    fn the_number_of_requests_is_bounded() {
        let account = Account::new(Budget::new(1 << 30));
        let permits: Vec<_> = (0..CONNECTION_REQUESTS).map(|_| account.try_take(0).expect("room")).collect();
        assert!(account.try_take(0).is_none());
        drop(permits);
        assert_eq!(account.requests(), 0);
    }
}
