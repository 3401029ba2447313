//! Waiting for other tasks, on this thread or another: a value that arrives once, and a bounded number of permits.
//!
//! Locks here are held for a few instructions and never across an await.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Lock; a panic aborts the process, so that poisoning tells nothing.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remember `waker` unless it is known already.
pub fn add_waker(waiters: &mut Vec<Waker>, waker: &Waker) {
    if !waiters.iter().any(|known| known.will_wake(waker)) {
        waiters.push(waker.clone());
    }
}

/// A value that is set once and may be waited for by any number of tasks.
pub struct Promise<T> {
    state: Mutex<(Option<T>, Vec<Waker>)>,
}

impl<T> Default for Promise<T> {
    fn default() -> Self {
        Self { state: Mutex::new((None, Vec::new())) }
    }
}

impl<T: Clone> Promise<T> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Give the value to everybody who waits or will wait; only the first value counts.
    pub fn set(&self, value: T) {
        let waiters = {
            let mut state = lock(&self.state);
            if state.0.is_none() {
                state.0 = Some(value);
            }
            std::mem::take(&mut state.1)
        };
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// The value, if it is there.
    pub fn get(&self) -> Option<T> {
        lock(&self.state).0.clone()
    }

    /// Wait for the value.
    pub async fn wait(&self) -> T {
        poll_fn(|context| {
            let mut state = lock(&self.state);
            if let Some(value) = &state.0 {
                return Poll::Ready(value.clone());
            }
            add_waker(&mut state.1, context.waker());
            Poll::Pending
        })
        .await
    }
}

struct PermitState {
    free: usize,
    queue: VecDeque<Arc<Promise<()>>>,
}

/// At most a fixed number of holders at a time, in order of arrival.
pub struct Permits {
    state: Mutex<PermitState>,
}

impl Permits {
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(PermitState { free: count, queue: VecDeque::new() }) })
    }

    /// Wait for a permit. The waiting task must not be dropped: the permit that is handed to it would be lost.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        let turn = {
            let mut state = lock(&self.state);
            if state.free > 0 {
                state.free -= 1;
                None
            } else {
                let turn = Promise::new();
                state.queue.push_back(Arc::clone(&turn));
                Some(turn)
            }
        };
        if let Some(turn) = turn {
            turn.wait().await;
        }
        Permit(Arc::clone(self))
    }
}

/// Given back when dropped.
pub struct Permit(Arc<Permits>);

impl Drop for Permit {
    fn drop(&mut self) {
        let next = {
            let mut state = lock(&self.0.state);
            let next = state.queue.pop_front();
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        if let Some(next) = next {
            next.set(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::reactor::exec;

    #[test]
    fn a_promise_set_on_another_thread_wakes_its_waiter() {
        let value = exec::block_on(async {
            let promise = Promise::new();
            let remote = Arc::clone(&promise);
            let thread = std::thread::spawn(move || remote.set(7));
            let value = promise.wait().await;
            thread.join().expect("the thread ends");
            value
        });
        assert_eq!(value, 7);
    }

    #[test]
    fn permits_bound_the_holders_and_serve_in_order() {
        let (most, order) = exec::block_on(async {
            let permits = Permits::new(2);
            let (running, most, order) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(Vec::new())));
            let tasks = (0..6).map(|number| {
                let (permits, running, most, order) =
                    (Arc::clone(&permits), Rc::clone(&running), Rc::clone(&most), Rc::clone(&order));
                let task = async move {
                    let _permit = permits.acquire().await;
                    running.set(running.get() + 1);
                    most.set(most.get().max(running.get()));
                    exec::yield_now().await;
                    running.set(running.get() - 1);
                    let mut numbers = order.take();
                    numbers.push(number);
                    order.set(numbers);
                };
                Box::pin(task) as crate::bdev::LocalFuture<'_, ()>
            });
            exec::join_all(tasks.collect()).await;
            (most.get(), order.take())
        });
        assert_eq!(most, 2);
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    }
}
