//! A word to the task that receives: the client has just got replies.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Told any number of times, waited for by one task.
#[derive(Default)]
pub(super) struct Nudge {
    told: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Nudge {
    /// Wake the task that waits.
    pub(super) fn tell(&self) {
        self.told.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// What was told before is of no interest any more.
    pub(super) fn forget(&self) {
        self.told.set(false);
    }

    /// Wait until something is told, or was since the last `wait` or `forget`.
    pub(super) async fn wait(&self) {
        poll_fn(|context| {
            if self.told.take() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::reactor::exec::{self, Either};

    async fn is_told(nudge: &Nudge) -> bool {
        matches!(exec::race(nudge.wait(), exec::sleep(Duration::from_millis(1))).await, Either::Left(()))
    }

    #[test]
    fn who_waits_is_woken_and_what_was_told_counts_once_until_it_is_forgotten() {
        exec::block_on(async {
            let nudge = Rc::new(Nudge::default());
            nudge.tell();
            nudge.tell();
            assert!(is_told(&nudge).await);
            assert!(!is_told(&nudge).await, "both were one");
            nudge.tell();
            nudge.forget();
            assert!(!is_told(&nudge).await);
            let teller = Rc::clone(&nudge);
            exec::spawn(async move {
                exec::yield_now().await;
                teller.tell();
            });
            nudge.wait().await;
        });
    }
}
