//! Waiting for sockets and rings: in the kernel, or for a bounded time in place.
//!
//! A task that serves a socket looks for its next request itself ([`spin`]). Tasks that serve memory shared with others
//! leave the looking to their reactor ([`idle`]), which looks at all of them, and at what storage has finished, before it
//! sleeps.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::backend::{Backend, PollKey, ReadySlot};
use super::exec;
use super::rest::Rest;
use crate::sys::cpu;

/// How long a task may look for its next request in place after the last one.
const SPIN: Duration = Duration::from_micros(50);
/// The same while storage is at work: its answer is near as a rule, and waking up takes long beside that.
const SPIN_FOR_STORAGE: Duration = Duration::from_micros(150);
/// The same for the next requests of a client that has just got replies, while storage is at work.
const SPIN_FOR_CLIENT: Duration = Duration::from_micros(100);
/// Time between two looks for more requests of a client that is busy.
const GATHER_PAUSE: Duration = Duration::from_micros(1);
/// Answers of storage in a row that took longer, after which it is waited for no longer than for anything else, but for
/// one look of so many.
const STORAGE_MISSES: u32 = 8;
const STORAGE_RETRY: u32 = 64;
/// Who looks and sees the clock jump by so much was off its CPU: others have use for it. Interrupts take less.
const OFF_CPU: Duration = Duration::from_micros(200);
/// Batches in a row from one source before spinning for it: with several sources it would delay the others.
const SPIN_STREAK: u32 = 4;
/// Failures in a row after which spinning rests.
const SPIN_FAILURES: u32 = 8;
/// How often the number of usable CPUs is asked for again.
const AFFINITY_AGE: Duration = Duration::from_secs(1);

struct Context {
    backend: Rc<dyn Backend>,
    /// Reactors of the engine that are not asleep.
    awake: Arc<AtomicUsize>,
    /// CPUs that the engine may use, of a thread that is pinned to one of them.
    cpus_of_engine: Option<usize>,
    spin: SpinState,
    /// Tasks that leave it to the reactor to look for their work.
    idle: RefCell<Vec<Idle>>,
    /// When one of them last had work.
    worked: Cell<Instant>,
    patience: Patience,
}

/// How long to look for what storage has finished: longer while it tends to be worth it.
#[derive(Default)]
struct Patience {
    misses: Cell<u32>,
}

impl Patience {
    fn limit(&self, storage_works: bool) -> Duration {
        let misses = self.misses.get();
        let is_patient = misses < STORAGE_MISSES || misses.is_multiple_of(STORAGE_RETRY);
        if storage_works && is_patient { SPIN_FOR_STORAGE } else { SPIN }
    }

    fn met(&self) {
        self.misses.set(0);
    }

    fn missed(&self) {
        self.misses.set(self.misses.get().wrapping_add(1));
    }
}

/// Something that a reactor can look at in place.
pub trait Polled {
    /// Whether there is work, as far as can be seen without waiting. Cheap.
    fn has_work(&self) -> bool;
}

struct Idle {
    polled: Rc<dyn Polled>,
    slot: Rc<IdleSlot>,
}

/// How looking for a task's work came out.
#[derive(Default)]
struct IdleSlot {
    result: Cell<Option<Found>>,
    waker: RefCell<Option<Waker>>,
}

impl IdleSlot {
    fn tell(&self, found: Found) {
        self.result.set(Some(found));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// What `idle` was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Work,
    /// Nobody looks any longer: ask to be woken, look once more, and wait.
    Nothing,
}

struct SpinState {
    source: Cell<u64>,
    streak: Cell<u32>,
    failures: Cell<u32>,
    rest: RefCell<Rest>,
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

/// Make `backend` serve this thread's `readable` and `writable`. A thread that is pinned says how many CPUs its engine has.
pub fn install(backend: Rc<dyn Backend>, awake: Arc<AtomicUsize>, cpus_of_engine: Option<usize>) -> Installed {
    let now = Instant::now();
    let spin = SpinState {
        source: Cell::new(0),
        streak: Cell::new(0),
        failures: Cell::new(0),
        rest: RefCell::default(),
        preempted: Cell::new(cpu::involuntary_switches()),
        cpus: Cell::new(cpu::affinity_count()),
        cpus_asked: Cell::new(now),
    };
    let (idle, worked) = (RefCell::default(), Cell::new(now));
    let context = Context { backend, awake, cpus_of_engine, spin, idle, worked, patience: Patience::default() };
    CONTEXT.with_borrow_mut(|current| *current = Some(Rc::new(context)));
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

/// Whether who is sent something may have a CPU to use it at once: not every CPU has a reactor that works.
pub fn leaves_a_cpu() -> bool {
    let context = context();
    let cpus = context.cpus_of_engine.unwrap_or_else(|| context.spin.cpus.get());
    are_fewer(context.awake.load(Ordering::Relaxed), cpus)
}

/// Whether `awake` reactors, one at least, leave one of `cpus` to others. Of a single CPU nobody can.
fn are_fewer(awake: usize, cpus: usize) -> bool {
    awake < cpus.max(2)
}

/// Call `attempt` in place until it gives something, for at most 50 µs.
///
/// Only while nothing else wants this thread: one reactor awake, one source active, no storage in flight, a
/// spare CPU. It rests after useless rounds and after being preempted, so that an idle daemon costs nothing
/// and a busy machine loses nothing.
pub fn spin<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let context = context();
    let started = may_spin(&context)?.now;
    loop {
        if let Some(value) = attempt() {
            note_success(&context.spin);
            return Some(value);
        }
        if exec::has_ready() || context.has_idle_work() || started.elapsed() >= SPIN {
            break;
        }
        std::hint::spin_loop();
    }
    note_failure(&context.spin, context.spin.was_preempted());
    None
}

/// Try for as long as `wanted` says that there is time, once in a while: who sends is kept from it by who looks.
///
/// None: there is no time left, something else is to be done, or this has gone on for too long.
pub fn spin_while<T>(wanted: impl Fn() -> bool, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let context = context();
    if context.spin.cpus.get() < 2 {
        return None; // asked for anew by `spin`, where a look at the clock counts for less
    }
    let mut look = may_spin(&context)?;
    let began = look.now;
    while wanted() && !exec::has_ready() && !context.has_idle_work() {
        let last = look.now;
        while look.now.duration_since(last) < GATHER_PAUSE {
            look.again();
        }
        let value = attempt();
        if value.is_some() {
            return value;
        }
        if look.now.duration_since(began) >= SPIN {
            break;
        }
    }
    if look.was_off {
        note_failure(&context.spin, true);
    }
    None
}

/// The first look at the clock of who may look for requests in place.
fn may_spin(context: &Context) -> Option<Look> {
    if context.spin.streak.get() < SPIN_STREAK || context.backend.ops_in_flight() > 0 {
        return None;
    }
    let look = Look::begin();
    (is_spare(context, look.now) && !exec::has_ready()).then_some(look)
}

/// Whether this thread may keep a CPU busy: nobody else of ours works, and the last looks were worth it.
fn is_spare(context: &Context, now: Instant) -> bool {
    let spin = &context.spin;
    if now.duration_since(spin.cpus_asked.get()) > AFFINITY_AGE {
        spin.cpus_asked.set(now);
        spin.cpus.set(cpu::affinity_count());
    }
    spin.cpus.get() > 1 && !spin.rest.borrow().lasts(now) && context.awake.load(Ordering::Relaxed) <= 1
}

impl Context {
    fn has_idle_work(&self) -> bool {
        self.idle.borrow().iter().any(|one| one.polled.has_work())
    }

    /// Wake the tasks that have work, or all of them.
    fn wake_idle(&self, all: bool) {
        self.idle.borrow_mut().retain(|one| {
            let found = if one.polled.has_work() { Found::Work } else { Found::Nothing };
            let told = all || found == Found::Work;
            if told {
                one.slot.tell(found);
            }
            !told
        });
    }
}

/// Takes a task off the reactor's list when it is dropped.
struct Listed {
    context: Rc<Context>,
    slot: Rc<IdleSlot>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        if self.slot.result.get().is_none() {
            self.context.idle.borrow_mut().retain(|one| !Rc::ptr_eq(&one.slot, &self.slot));
        }
    }
}

/// Leave it to the reactor to look for work, for as long as it stays awake. Dropping the future takes that back.
pub async fn idle(polled: Rc<dyn Polled>) -> Found {
    let (context, slot) = (context(), Rc::new(IdleSlot::default()));
    context.idle.borrow_mut().push(Idle { polled, slot: Rc::clone(&slot) });
    let listed = Listed { context, slot };
    poll_fn(|task| {
        if let Some(found) = listed.slot.result.get() {
            return Poll::Ready(found);
        }
        *listed.slot.waker.borrow_mut() = Some(task.waker().clone());
        Poll::Pending
    })
    .await
}

/// Note that a task which leaves the looking to its reactor has had work.
pub fn note_work() {
    context().worked.set(Instant::now());
}

/// What a reactor does before it sleeps: look for work of idle tasks, and for what storage has finished, for a bounded
/// time after the last work; then tell the tasks that nobody looks any longer. Whether there is something to do now.
pub fn look_for_work() -> bool {
    let context = context();
    if context.idle.borrow().is_empty() {
        return context.backend.ops_in_flight() > 0 && look_for_completions(&context);
    }
    let mut look = Look::begin();
    let allowed = is_spare(&context, look.now);
    let storage_works = context.backend.ops_in_flight() > 0;
    let limit = context.patience.limit(storage_works);
    loop {
        if context.has_idle_work() {
            context.worked.set(look.now);
            note_success(&context.spin);
            context.wake_idle(false);
            return true;
        }
        if context.backend.has_completions() {
            context.worked.set(look.now);
            context.patience.met();
            return true;
        }
        if exec::has_ready() {
            return true;
        }
        look.again();
        if !allowed || look.now.saturating_duration_since(context.worked.get()) >= limit {
            break;
        }
    }
    if allowed {
        note_failure(&context.spin, look.was_off);
        if storage_works {
            context.patience.missed();
        }
    }
    context.wake_idle(true);
    true
}

/// Look for a while for what storage has finished or a socket has brought: a client that has just got replies is about to
/// send its next requests, and storage may have nothing to do until they are here.
fn look_for_completions(context: &Context) -> bool {
    let mut look = Look::begin();
    let began = look.now;
    if !is_spare(context, began) {
        return false;
    }
    while look.now.duration_since(began) < SPIN_FOR_CLIENT {
        if context.backend.has_completions() || exec::has_ready() {
            note_success(&context.spin);
            return true;
        }
        look.again();
    }
    note_failure(&context.spin, look.was_off);
    false
}

/// Looking again and again, with an eye on the clock.
struct Look {
    now: Instant,
    /// Somebody else had the CPU meanwhile.
    was_off: bool,
}

impl Look {
    fn begin() -> Self {
        Self { now: Instant::now(), was_off: false }
    }

    fn again(&mut self) {
        std::hint::spin_loop();
        let looked = std::mem::replace(&mut self.now, Instant::now());
        self.was_off |= self.now.saturating_duration_since(looked) >= OFF_CPU;
    }
}

impl SpinState {
    /// Whether somebody else had this thread's CPU since this was last asked.
    fn was_preempted(&self) -> bool {
        let preempted = cpu::involuntary_switches();
        self.preempted.replace(preempted) != preempted
    }
}

fn note_success(spin: &SpinState) {
    spin.failures.set(0);
    spin.rest.borrow_mut().forget();
}

fn note_failure(spin: &SpinState, was_preempted: bool) {
    let failures = spin.failures.get() + 1;
    spin.failures.set(failures);
    if was_preempted || failures >= SPIN_FAILURES {
        spin.rest.borrow_mut().begin(Instant::now());
        spin.failures.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::reactor::{IoEngine, Reactors};

    struct Flag(Arc<AtomicBool>);

    impl Polled for Flag {
        fn has_work(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }
    }

    /// What a task of a reactor is told that leaves it the looking `times` times.
    fn found(work: bool, times: usize) -> Vec<Found> {
        let reactors = Reactors::start(&[], 1, IoEngine::detect()).expect("a reactor");
        let flag = Arc::new(AtomicBool::new(work));
        let run = reactors.next().run(move || {
            Box::pin(async move {
                let mut told = Vec::new();
                for _ in 0..times {
                    note_work();
                    told.push(idle(Rc::new(Flag(Arc::clone(&flag)))).await);
                }
                assert!(context().idle.borrow().is_empty(), "nobody is looked at any longer");
                Ok(told)
            })
        });
        run.expect("a result")
    }

    #[test]
    fn who_has_work_is_told_so_and_who_has_none_is_not_kept_waiting() {
        assert_eq!(found(true, 3), [Found::Work; 3]);
        assert_eq!(found(false, 20), [Found::Nothing; 20]);
    }

    #[test]
    fn looking_now_and_then_ends_with_what_comes_or_when_there_is_no_time() {
        let reactors = Reactors::start(&[], 1, IoEngine::detect()).expect("a reactor");
        let run = reactors.next().run(|| {
            Box::pin(async {
                (0..=SPIN_STREAK).for_each(|_| note_activity(7));
                let tries = Cell::new(0);
                let attempt = |found| {
                    tries.set(tries.get() + 1);
                    (tries.get() == found).then_some(())
                };
                assert_eq!((spin_while(|| false, || attempt(1)), tries.take()), (None, 0), "not even once");
                if cpu::affinity_count() == 1 {
                    assert_eq!((spin_while(|| true, || attempt(1)), tries.take()), (None, 0), "no CPU to spare");
                    return Ok(());
                }
                let found = (0..1000).any(|_| {
                    tries.set(0); // who loses its CPU has no time for three
                    note_success(&context().spin);
                    spin_while(|| true, || attempt(3)).is_some()
                });
                assert!(found && tries.take() == 3);
                let began = Instant::now();
                assert_eq!(spin_while(|| true, || attempt(0)), None, "not for ever");
                assert!(tries.get() == 0 || began.elapsed() >= SPIN);
                Ok(())
            })
        });
        run.expect("a result");
    }

    #[test]
    fn a_cpu_is_left_while_fewer_reactors_work_than_there_are() {
        assert!(are_fewer(1, 1) && are_fewer(1, 2) && are_fewer(3, 4));
        assert!(!are_fewer(2, 1) && !are_fewer(2, 2) && !are_fewer(4, 4));
    }

    #[test]
    fn storage_that_is_slow_is_looked_for_no_longer_than_anything_else() {
        let patience = Patience::default();
        assert_eq!((patience.limit(false), patience.limit(true)), (SPIN, SPIN_FOR_STORAGE));
        (0..STORAGE_MISSES).for_each(|_| patience.missed());
        assert_eq!(patience.limit(true), SPIN);
        (STORAGE_MISSES..STORAGE_RETRY).for_each(|_| patience.missed());
        assert_eq!(patience.limit(true), SPIN_FOR_STORAGE, "it may have become faster");
        patience.missed();
        assert_eq!(patience.limit(true), SPIN);
        patience.met();
        assert_eq!(patience.limit(true), SPIN_FOR_STORAGE);
    }

    #[test]
    fn who_does_not_wait_any_longer_is_not_looked_at() {
        let reactors = Reactors::start(&[], 1, IoEngine::detect()).expect("a reactor");
        let run = reactors.next().run(|| {
            Box::pin(async {
                let polled = Rc::new(Flag(Arc::default()));
                let weak = Rc::downgrade(&polled);
                let ready = std::future::ready(());
                assert!(matches!(exec::race(idle(polled), ready).await, exec::Either::Right(())));
                assert!(weak.upgrade().is_none());
                Ok(())
            })
        });
        run.expect("a result");
    }
}
