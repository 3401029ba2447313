//! Waiting for sockets: in the kernel, or for a bounded time in place.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::backend::{Backend, PollKey, ReadySlot};
use super::exec;
use crate::sys::cpu;

/// How long a task may look for its next request in place after the last one.
const SPIN: Duration = Duration::from_micros(50);
/// Batches in a row from one source before spinning for it: with several sources it would delay the others.
const SPIN_STREAK: u32 = 4;
/// Failures in a row after which spinning rests, and for how long at most.
const SPIN_FAILURES: u32 = 8;
const SPIN_REST_MAX: Duration = Duration::from_millis(250);
/// How often the number of usable CPUs is asked for again.
const AFFINITY_AGE: Duration = Duration::from_secs(1);

struct Context {
    backend: Rc<dyn Backend>,
    /// Reactors of the engine that are not asleep.
    awake: Arc<AtomicUsize>,
    spin: SpinState,
}

struct SpinState {
    source: Cell<u64>,
    streak: Cell<u32>,
    failures: Cell<u32>,
    rest: Cell<Duration>,
    rest_until: Cell<Instant>,
    preempted: Cell<i64>,
    cpus: Cell<usize>,
    cpus_asked: Cell<Instant>,
}

thread_local! {
    static CONTEXT: RefCell<Option<Rc<Context>>> = const { RefCell::new(None) };
}

/// Removes the thread's context when dropped.
pub struct Installed(());

impl Drop for Installed {
    fn drop(&mut self) {
        CONTEXT.with_borrow_mut(|context| *context = None);
    }
}

/// Make `backend` serve this thread's `readable` and `writable`.
pub fn install(backend: Rc<dyn Backend>, awake: Arc<AtomicUsize>) -> Installed {
    let now = Instant::now();
    let spin = SpinState {
        source: Cell::new(0),
        streak: Cell::new(0),
        failures: Cell::new(0),
        rest: Cell::new(Duration::from_millis(1)),
        rest_until: Cell::new(now),
        preempted: Cell::new(cpu::involuntary_switches()),
        cpus: Cell::new(cpu::affinity_count()),
        cpus_asked: Cell::new(now),
    };
    CONTEXT.with_borrow_mut(|context| *context = Some(Rc::new(Context { backend, awake, spin })));
    Installed(())
}

fn context() -> Rc<Context> {
    CONTEXT.with_borrow(|context| context.clone()).expect("called on a reactor's thread")
}

struct Watch {
    backend: Rc<dyn Backend>,
    key: PollKey,
    slot: Rc<ReadySlot>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.slot.is_ready() {
            self.backend.unwatch(self.key);
        }
    }
}

async fn ready(fd: RawFd, writable: bool) {
    let backend = Rc::clone(&context().backend);
    let slot = Rc::new(ReadySlot::default());
    let key = backend.watch(fd, writable, Rc::clone(&slot));
    let watch = Watch { backend, key, slot };
    poll_fn(|context| {
        if watch.slot.is_ready() {
            return Poll::Ready(());
        }
        watch.slot.wait_with(context.waker());
        Poll::Pending
    })
    .await;
}

/// Wait until `fd` can be read, has ended or is broken. Dropping the future takes the watch back.
pub async fn readable(fd: RawFd) {
    ready(fd, false).await;
}

/// Wait until `fd` can be written or is broken.
pub async fn writable(fd: RawFd) {
    ready(fd, true).await;
}

/// Note that `source` (any number of its own) brought requests.
pub fn note_activity(source: u64) {
    let context = context();
    let spin = &context.spin;
    if spin.source.replace(source) == source {
        spin.streak.set(spin.streak.get().saturating_add(1));
    } else {
        spin.streak.set(0);
    }
}

/// Call `attempt` in place until it gives something, for at most 50 µs.
///
/// Only while nothing else wants this thread: one reactor awake, one source active, no storage in flight, a
/// spare CPU. It rests after useless rounds and after being preempted, so that an idle daemon costs nothing
/// and a busy machine loses nothing.
pub fn spin<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let context = context();
    let started = Instant::now();
    if !may_spin(&context, started) {
        return None;
    }
    loop {
        if let Some(value) = attempt() {
            context.spin.failures.set(0);
            context.spin.rest.set(Duration::from_millis(1));
            return Some(value);
        }
        if exec::has_ready() || started.elapsed() >= SPIN {
            break;
        }
        std::hint::spin_loop();
    }
    note_failure(&context.spin);
    None
}

fn may_spin(context: &Context, now: Instant) -> bool {
    let spin = &context.spin;
    if now.duration_since(spin.cpus_asked.get()) > AFFINITY_AGE {
        spin.cpus_asked.set(now);
        spin.cpus.set(cpu::affinity_count());
    }
    spin.streak.get() >= SPIN_STREAK
        && spin.cpus.get() > 1
        && now >= spin.rest_until.get()
        && context.awake.load(Ordering::Relaxed) <= 1
        && context.backend.ops_in_flight() == 0
        && !exec::has_ready()
}

fn note_failure(spin: &SpinState) {
    let failures = spin.failures.get() + 1;
    spin.failures.set(failures);
    let preempted = cpu::involuntary_switches();
    let was_preempted = spin.preempted.replace(preempted) != preempted;
    if was_preempted || failures >= SPIN_FAILURES {
        let rest = spin.rest.get();
        spin.rest_until.set(Instant::now() + rest);
        spin.rest.set((rest * 2).min(SPIN_REST_MAX));
        spin.failures.set(0);
    }
}
