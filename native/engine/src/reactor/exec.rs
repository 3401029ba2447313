//! A single-threaded executor: tasks, wakers that work from any thread, timers.
//!
//! It knows no I/O and no real clock: a reactor drives it with both, and a simulator can drive it with neither.
//! Tasks are never cancelled from outside; each runs to its end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

type LocalTask = Pin<Box<dyn Future<Output = ()>>>;

/// What other threads may touch of an executor.
pub struct Inbox {
    woken: Mutex<Vec<TaskId>>,
    jobs: Mutex<Vec<Job>>,
    pending: AtomicBool,
    notify: Box<dyn Fn() + Send + Sync>,
}

/// Work handed to an executor's thread.
pub type Job = Box<dyn FnOnce() + Send>;

impl Inbox {
    /// Run `job` on the executor's thread, soon.
    pub fn post(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        self.signal();
    }

    /// Whether something waits to be taken; cheap, for loops that poll.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    fn wake(&self, id: TaskId) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.signal();
    }

    fn signal(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            (self.notify)();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TaskId {
    index: usize,
    generation: u64,
}

struct TaskSlot {
    generation: u64,
    /// None while the task is being polled.
    task: Option<LocalTask>,
    waker: Waker,
}

struct TaskWaker {
    id: TaskId,
    inbox: Arc<Inbox>,
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let here = CURRENT.with_borrow(|current| match current {
            Some(exec) if Arc::ptr_eq(&exec.inbox, &self.inbox) => Some(Rc::clone(exec)),
            _ => None,
        });
        match here {
            Some(exec) => {
                if !self.queued.swap(true, Ordering::AcqRel) {
                    exec.ready.borrow_mut().push_back((self.id, Arc::clone(self)));
                }
            }
            None => self.inbox.wake(self.id),
        }
    }
}

/// A timer: when it is due, and a number that tells timers of one time apart.
type TimerKey = (Instant, u64);

/// The tasks of one thread.
pub struct Executor {
    tasks: RefCell<Slab<TaskSlot>>,
    ready: RefCell<VecDeque<(TaskId, Arc<TaskWaker>)>>,
    /// Tasks that let others go first: ready from the next call of `run_ready` on.
    yielded: RefCell<Vec<Waker>>,
    timers: RefCell<BTreeMap<TimerKey, Waker>>,
    next_sequence: Cell<u64>,
    now: Cell<Instant>,
    inbox: Arc<Inbox>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// Makes an executor the current one of its thread, until dropped.
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| *current = None);
    }
}

impl Executor {
    /// An executor whose `notify` is called, from any thread, when its inbox turns non-empty.
    pub fn new(notify: impl Fn() + Send + Sync + 'static) -> Rc<Self> {
        let inbox = Inbox {
            woken: Mutex::new(Vec::new()),
            jobs: Mutex::new(Vec::new()),
            pending: AtomicBool::new(false),
            notify: Box::new(notify),
        };
        Rc::new(Self {
            tasks: RefCell::new(Slab::new()),
            ready: RefCell::new(VecDeque::new()),
            yielded: RefCell::new(Vec::new()),
            timers: RefCell::new(BTreeMap::new()),
            next_sequence: Cell::new(0),
            now: Cell::new(Instant::now()),
            inbox: Arc::new(inbox),
        })
    }

    /// Make this the executor that `spawn`, `sleep` and `now` of this thread use.
    ///
    /// # Panics
    /// When the thread has entered one already.
    pub fn enter(self: &Rc<Self>) -> Entered {
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "a thread runs one executor");
            *current = Some(Rc::clone(self));
        });
        Entered(())
    }

    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Tell the executor what time it is; time never goes backwards.
    pub fn set_now(&self, now: Instant) {
        self.now.set(self.now.get().max(now));
    }

    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Number of tasks that have not ended.
    pub fn task_count(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Whether `run_ready` would do something now.
    pub fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty() || !self.yielded.borrow().is_empty() || self.inbox.is_pending()
    }

    /// When the earliest timer is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.borrow().first_key_value().map(|((deadline, _), _)| *deadline)
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let (id, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let entry = tasks.vacant_entry();
            let id = TaskId { index: entry.key(), generation: self.sequence() };
            let task_waker = Arc::new(TaskWaker { id, inbox: Arc::clone(&self.inbox), queued: AtomicBool::new(true) });
            let waker = Waker::from(Arc::clone(&task_waker));
            entry.insert(TaskSlot { generation: id.generation, task: Some(Box::pin(future)), waker });
            (id, task_waker)
        };
        self.ready.borrow_mut().push_back((id, waker));
    }

    /// Run everything that is ready, and what that makes ready, up to a bound per call.
    pub fn run_ready(&self) {
        self.take_inbox();
        self.fire_timers();
        for waker in self.yielded.take() {
            waker.wake();
        }
        for _ in 0..1024 {
            let Some((id, waker)) = self.ready.borrow_mut().pop_front() else { break };
            waker.queued.store(false, Ordering::Release);
            self.poll_task(id);
        }
    }

    /// Drop every task that has not ended, with the executor still entered.
    pub fn drop_tasks(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        self.ready.borrow_mut().clear();
        self.yielded.borrow_mut().clear();
        self.timers.borrow_mut().clear();
    }

    fn poll_task(&self, id: TaskId) {
        let (mut task, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(slot) = tasks.get_mut(id.index) else { return };
            if slot.generation != id.generation {
                return; // a waker that outlived its task
            }
            let Some(task) = slot.task.take() else { return };
            (task, slot.waker.clone())
        };
        let ended = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if ended {
            drop(task);
            self.tasks.borrow_mut().remove(id.index);
        } else if let Some(slot) = self.tasks.borrow_mut().get_mut(id.index) {
            slot.task = Some(task);
        }
    }

    fn take_inbox(&self) {
        if !self.inbox.pending.swap(false, Ordering::AcqRel) {
            return;
        }
        let woken = std::mem::take(&mut *self.inbox.woken.lock().unwrap_or_else(PoisonError::into_inner));
        for id in woken {
            let waker = match self.tasks.borrow().get(id.index) {
                Some(slot) if slot.generation == id.generation => slot.waker.clone(),
                _ => continue,
            };
            waker.wake();
        }
        let jobs = std::mem::take(&mut *self.inbox.jobs.lock().unwrap_or_else(PoisonError::into_inner));
        for job in jobs {
            job();
        }
    }

    fn fire_timers(&self) {
        loop {
            let due = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_entry() {
                    Some(timer) if timer.key().0 <= self.now.get() => timer.remove(),
                    _ => return,
                }
            };
            due.wake();
        }
    }

    fn add_timer(&self, deadline: Instant, waker: Waker) -> TimerKey {
        let key = (deadline, self.sequence());
        self.timers.borrow_mut().insert(key, waker);
        key
    }

    fn remove_timer(&self, key: TimerKey) {
        self.timers.borrow_mut().remove(&key);
    }

    fn sequence(&self) -> u64 {
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        sequence
    }
}

fn current() -> Rc<Executor> {
    CURRENT.with_borrow(|current| current.clone()).expect("called on a reactor's thread")
}

/// The inbox of the current thread's executor.
///
/// # Panics
/// When the thread has entered no executor; so do the others here.
pub fn inbox() -> Arc<Inbox> {
    Arc::clone(&current().inbox)
}

/// Whether this thread's executor has something to do right now; for tasks that poll in place.
pub fn has_ready() -> bool {
    current().has_ready()
}

/// Start a task on this thread.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    current().spawn(future);
}

/// The executor's idea of now.
pub fn now() -> Instant {
    current().now()
}

/// Let every other ready task run once, and whoever drives the executor look at its I/O.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        current().yielded.borrow_mut().push(context.waker().clone());
        Poll::Pending
    })
    .await;
}

/// Wait until `duration` has passed on the executor's clock.
pub async fn sleep(duration: Duration) {
    sleep_until(now() + duration).await;
}

/// A timer of the current executor, taken back when dropped: one that nobody waits for would shorten a sleep.
#[derive(Default)]
struct Registered(Option<TimerKey>);

impl Drop for Registered {
    fn drop(&mut self) {
        let exec = CURRENT.with_borrow(|current| current.clone());
        if let (Some(key), Some(exec)) = (self.0, exec) {
            exec.remove_timer(key);
        }
    }
}

/// Wait until the executor's clock reaches `deadline`.
pub async fn sleep_until(deadline: Instant) {
    let mut registered = Registered::default();
    std::future::poll_fn(|context| {
        let exec = current();
        if exec.now() >= deadline {
            return Poll::Ready(());
        }
        if registered.0.is_none() {
            registered.0 = Some(exec.add_timer(deadline, context.waker().clone()));
        }
        Poll::Pending
    })
    .await;
}

/// What ended first.
pub enum Either<A, B> {
    Left(A),
    Right(B),
}

/// Run both until one ends; the other is dropped.
pub async fn race<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> Either<A, B> {
    let mut left = std::pin::pin!(left);
    let mut right = std::pin::pin!(right);
    std::future::poll_fn(move |context| {
        if let Poll::Ready(value) = left.as_mut().poll(context) {
            return Poll::Ready(Either::Left(value));
        }
        right.as_mut().poll(context).map(Either::Right)
    })
    .await
}

/// Run every future to its end, at once, and return their results in order.
pub async fn join_all<T>(futures: Vec<crate::bdev::LocalFuture<'_, T>>) -> Vec<T> {
    let mut slots: Vec<(Option<crate::bdev::LocalFuture<'_, T>>, Option<T>)> =
        futures.into_iter().map(|future| (Some(future), None)).collect();
    std::future::poll_fn(move |context| {
        let mut pending = false;
        for (future, result) in &mut slots {
            let Some(running) = future else { continue };
            match running.as_mut().poll(context) {
                Poll::Ready(value) => {
                    *result = Some(value);
                    *future = None;
                }
                Poll::Pending => pending = true,
            }
        }
        if pending {
            return Poll::Pending;
        }
        Poll::Ready(slots.iter_mut().filter_map(|(_, result)| result.take()).collect())
    })
    .await
}

/// Run `future` on a fresh executor of this thread with the blocking driver, in real time; for tests and tools.
pub fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    let thread = std::thread::current();
    let exec = Executor::new(move || thread.unpark());
    let _entered = exec.enter();
    let _driver = super::ops::install(Rc::new(super::ops::BlockingDriver));
    let result = Rc::new(RefCell::new(None));
    let sink = Rc::clone(&result);
    exec.spawn(async move {
        let value = future.await;
        *sink.borrow_mut() = Some(value);
    });
    loop {
        exec.set_now(Instant::now());
        exec.run_ready();
        if let Some(value) = result.borrow_mut().take() {
            return value;
        }
        if !exec.has_ready() {
            match exec.next_deadline() {
                Some(deadline) => std::thread::park_timeout(deadline.saturating_duration_since(Instant::now())),
                None => std::thread::park(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_nobody_waits_for_is_gone() {
        block_on(async {
            assert!(matches!(race(async {}, sleep(Duration::from_secs(60))).await, Either::Left(())));
            let lost = race(yield_now(), sleep(Duration::from_secs(60))).await;
            assert!(matches!(lost, Either::Left(())));
            assert_eq!(current().next_deadline(), None);
        });
    }

    #[test]
    fn a_task_that_yields_for_ever_lets_the_driver_of_the_executor_go_on() {
        let exec = Executor::new(|| {});
        let _entered = exec.enter();
        let turns = Rc::new(Cell::new(0));
        for _ in 0..2 {
            let turns = Rc::clone(&turns);
            exec.spawn(async move {
                loop {
                    turns.set(turns.get() + 1);
                    yield_now().await;
                }
            });
        }
        for round in 1..4 {
            assert!(exec.has_ready());
            exec.run_ready();
            assert_eq!(turns.get(), 2 * round, "each once");
        }
        exec.drop_tasks();
        assert!(!exec.has_ready());
    }

    #[test]
    fn a_sleeping_task_wakes_in_order_of_deadlines() {
        let order = block_on(async {
            let order = Rc::new(RefCell::new(Vec::new()));
            for (name, ms) in [("late", 20), ("early", 1)] {
                let order = Rc::clone(&order);
                spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    order.borrow_mut().push(name);
                });
            }
            sleep(Duration::from_millis(40)).await;
            order.take()
        });
        assert_eq!(order, ["early", "late"]);
    }

    #[test]
    fn a_waker_works_from_another_thread() {
        let value = block_on(async {
            let shared = Arc::new(Mutex::new((None::<u32>, None::<Waker>)));
            let remote = Arc::clone(&shared);
            std::thread::spawn(move || {
                let waker = {
                    let mut guard = remote.lock().expect("not poisoned");
                    guard.0 = Some(7);
                    guard.1.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            });
            std::future::poll_fn(move |context| {
                let mut guard = shared.lock().expect("not poisoned");
                guard.1 = Some(context.waker().clone());
                guard.0.map_or(Poll::Pending, Poll::Ready)
            })
            .await
        });
        assert_eq!(value, 7);
    }

    #[test]
    fn join_all_keeps_the_order_of_its_futures() {
        let results = block_on(async {
            let futures: Vec<crate::bdev::LocalFuture<'_, u64>> = vec![
                Box::pin(async {
                    sleep(Duration::from_millis(5)).await;
                    1
                }),
                Box::pin(async { 2 }),
            ];
            join_all(futures).await
        });
        assert_eq!(results, [1, 2]);
    }
}
