//! One queue under load: always as many requests in flight as were asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ubi_bench::histogram::Histogram;
use ubi_bench::random::Random;

use crate::args::{Access, Args};
use crate::pattern::Versions;
use crate::ring::{Completion, DriverRing, Kind, Layout};
use crate::session::Shared;
use crate::sys;
use crate::wire::PATIENCE;

/// Times without a completion that are told one by one.
const GAP: Duration = Duration::from_millis(5);
/// How often who waits looks whether all is lost.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const SPINS: u32 = 1000;

/// What workers and the main thread tell each other.
#[derive(Default)]
pub struct Signals {
    /// Nothing new is to be started.
    pub stop: AtomicBool,
    /// The backend is gone for good.
    pub lost: AtomicBool,
}

/// The time that is measured; without an end it is `Signals::stop` that ends it.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub begin: Instant,
    pub end: Option<Instant>,
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that were finished in the window.
    pub requests: u64,
    /// All requests of the load: what the backend's CPU time was spent on.
    pub total: u64,
    /// Requests that failed, whenever.
    pub errors: u64,
    /// Reads that were compared with what was written, and those that were not that.
    pub checked: u64,
    pub wrong: u64,
    pub kicks: u64,
    pub latency: Histogram,
    /// Times without a completion, by the clock that every process has, in nanoseconds.
    pub gaps: Vec<(u64, u64)>,
}

impl Outcome {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.total += other.total;
        self.errors += other.errors;
        self.checked += other.checked;
        self.wrong += other.wrong;
        self.kicks += other.kicks;
        self.latency.add(&other.latency);
        self.gaps.extend(&other.gaps);
    }
}

#[derive(Clone, Copy)]
struct Slot {
    kind: Kind,
    block: u64,
    version: u32,
    started: Instant,
}

/// What comes next.
enum Plan {
    Load,
    /// Read what was written once more.
    Check(std::vec::IntoIter<u64>),
}

pub struct Worker {
    args: Arc<Args>,
    shared: Arc<Shared>,
    signals: Arc<Signals>,
    index: usize,
    layout: Layout,
    ring: DriverRing,
    window: Window,
    plan: Plan,
    random: Random,
    /// Blocks of this queue: its own when they are checked or in sequence, all of them otherwise.
    first: u64,
    count: u64,
    next: u64,
    versions: Option<Versions>,
    slots: Vec<Option<Slot>>,
    in_flight: usize,
    last_done: Instant,
    content: Vec<u8>,
    outcome: Outcome,
}

impl Worker {
    /// A worker of queue `index` on a disk of `size_bytes`.
    ///
    /// # Errors
    /// When there are fewer blocks than requests in flight.
    pub fn new(
        args: &Arc<Args>,
        shared: &Arc<Shared>,
        signals: &Arc<Signals>,
        index: usize,
        (size_bytes, event_idx): (u64, bool),
        window: Window,
    ) -> Result<Self, String> {
        let size_bytes = args.size.map_or(size_bytes, |size| size.min(size_bytes));
        let blocks = size_bytes / u64::from(args.block_size);
        let share = blocks / u64::from(args.queues);
        if share < 2 * u64::from(args.queue_depth) {
            return Err(format!("{size_bytes} bytes are too few for this load"));
        }
        let own = args.verify || !args.random;
        let (first, count) = if own { (share * index as u64, share) } else { (0, blocks) };
        let layout = shared.layouts[index].clone();
        Ok(Self {
            ring: DriverRing::new(&shared.memory, &layout, &shared.kicks[index], event_idx),
            layout,
            index,
            window,
            plan: Plan::Load,
            random: Random::new((args.seed << 16) + index as u64),
            first,
            count,
            next: 0,
            versions: args.verify.then(|| Versions::new(first, count, args.block_size as usize)),
            slots: vec![None; usize::from(args.queue_depth)],
            in_flight: 0,
            last_done: window.begin,
            content: Vec::new(),
            outcome: Outcome::default(),
            args: Arc::clone(args),
            shared: Arc::clone(shared),
            signals: Arc::clone(signals),
        })
    }

    /// Keep the queue full until the window ends, let it drain, check what was written; where the ring has come to.
    ///
    /// # Errors
    /// A backend that is gone, answers nothing, or answers what it was not asked.
    pub fn run(mut self) -> Result<(Outcome, u16), String> {
        if let Some(cpu) = self.args.cpus.get(self.index % self.args.cpus.len().max(1)) {
            ubi_bench::sys::pin_to(*cpu).map_err(|error| format!("cpu {cpu}: {error}"))?;
        }
        self.ring.want_no_notification();
        self.drive()?;
        if let Some(versions) = &self.versions {
            self.plan = Plan::Check(versions.blocks().collect::<Vec<_>>().into_iter());
            self.drive()?;
        }
        Ok((self.outcome, self.ring.available_index()))
    }

    fn drive(&mut self) -> Result<(), String> {
        self.last_done = Instant::now();
        (0..self.args.queue_depth).for_each(|slot| self.issue(slot, Instant::now()));
        self.outcome.kicks += u64::from(self.ring.publish());
        while self.in_flight > 0 {
            self.wait()?;
            self.collect()?;
            self.outcome.kicks += u64::from(self.ring.publish());
        }
        Ok(())
    }

    fn issue(&mut self, slot: u16, now: Instant) {
        let Some((kind, block)) = self.plan_next(now) else { return };
        let mut version = 0;
        if let (Kind::Write, Some(versions)) = (kind, &self.versions) {
            version = versions.next(block, &mut self.content);
            self.shared.memory.write(self.layout.data(slot), &self.content);
        }
        self.slots[usize::from(slot)] = Some(Slot { kind, block, version, started: now });
        self.in_flight += 1;
        self.ring.add(slot, kind, block * u64::from(self.args.block_size / 512));
    }

    fn plan_next(&mut self, now: Instant) -> Option<(Kind, u64)> {
        if let Plan::Check(blocks) = &mut self.plan {
            return blocks.next().map(|block| (Kind::Read, block));
        }
        if self.signals.stop.load(Ordering::Relaxed) || self.window.end.is_some_and(|end| now >= end) {
            return None;
        }
        let kind = match self.args.access {
            Access::Read => Kind::Read,
            Access::Write => Kind::Write,
            Access::Both if self.random.below(2) == 0 => Kind::Read,
            Access::Both => Kind::Write,
        };
        if !self.args.random {
            self.next += 1;
            return Some((kind, self.first + (self.next - 1) % self.count));
        }
        loop {
            let block = self.first + self.random.below(self.count);
            // Requests to one block at a time have no order, so that nobody could say what is right.
            let busy = self.args.verify && self.slots.iter().flatten().any(|slot| slot.block == block);
            if !busy {
                return Some((kind, block));
            }
        }
    }

    /// Take everything that is done and put as much in its place.
    fn collect(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let since = now.duration_since(self.last_done);
        if since >= GAP {
            let end = sys::monotonic_ns();
            self.outcome.gaps.push((end - since.as_nanos() as u64, end));
        }
        self.last_done = now;
        while let Some(completion) = self.ring.take()? {
            let slot = self.slots.get_mut(usize::from(completion.slot)).and_then(Option::take);
            let slot = slot.ok_or("the backend has answered a request twice")?;
            self.in_flight -= 1;
            self.count(completion, slot, now);
            self.issue(completion.slot, now);
        }
        Ok(())
    }

    fn count(&mut self, completion: Completion, slot: Slot, now: Instant) {
        self.outcome.errors += u64::from(!completion.ok);
        if matches!(self.plan, Plan::Load) {
            self.outcome.total += 1;
            if now >= self.window.begin && self.window.end.is_none_or(|end| now < end) {
                self.outcome.requests += 1;
                self.outcome.latency.record(now.duration_since(slot.started));
            }
        }
        let Some(versions) = &mut self.versions else { return };
        match slot.kind {
            Kind::Write if completion.ok => versions.written(slot.block, slot.version),
            Kind::Read if completion.ok && versions.of(slot.block) > 0 => {
                self.content.resize(self.args.block_size as usize, 0);
                self.shared.memory.read(self.layout.data(completion.slot), &mut self.content);
                self.outcome.checked += 1;
                self.outcome.wrong += u64::from(!versions.is_right(slot.block, &self.content));
            }
            Kind::Write | Kind::Read => {}
        }
    }

    /// Wait until something is done.
    fn wait(&self) -> Result<(), String> {
        let began = Instant::now();
        let patience = if self.args.reconnect { 3 * PATIENCE } else { PATIENCE };
        loop {
            if self.args.busy_poll {
                for _ in 0..SPINS {
                    if self.ring.has_used() {
                        return Ok(());
                    }
                    std::hint::spin_loop();
                }
            } else {
                self.ring.want_notification();
                if self.ring.has_used() || self.shared.calls[self.index].wait(LOOK_AGAIN) && self.ring.has_used() {
                    self.ring.want_no_notification();
                    return Ok(());
                }
            }
            if self.signals.lost.load(Ordering::Relaxed) || began.elapsed() > patience {
                return Err(format!("queue {}: {} requests are not answered", self.index, self.in_flight));
            }
        }
    }
}
