//! One ring at work on a reactor: takes requests, carries them out, publishes them in batches.
//!
//! What the bdev can do at once is done in place, everything else runs as a task, so a request that waits for a stripe
//! holds up nobody (INV-4). A queue ends when it is told to, after everything that it has taken is answered; until then
//! it holds the memory that it works in.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::device::{Bells, Device, RATE_WINDOW};
use super::inflight::InflightQueue;
use super::memory::GuestMemory;
use super::request::{Outcome, Request, Target, Tried};
use super::ring::{Ring, Violation};
use crate::events::Level;
use crate::frontend::budget::{Account, Permit};
use crate::reactor::sync::Promise;
use crate::reactor::{Place, exec, io};
use crate::sys::eventfd::EventFd;
use crate::sys::sg_list::SgList;

/// Requests that are taken in a row.
const BATCH: usize = 32;
/// Requests that are done before they are published: the driver goes on with them while the rest is worked on.
const PUBLISH: usize = 8;
/// The same while the driver sleeps: to wake it takes as long as several requests that are done in place.
const PUBLISH_ASLEEP: usize = 16;
/// Batches in a row after which other tasks of the reactor get a turn.
const TURN: u32 = 4;

/// All that a queue needs.
pub struct QueueSetup {
    pub index: usize,
    pub ring: Ring,
    pub memory: Arc<GuestMemory>,
    pub kick: Arc<EventFd>,
    pub bells: Arc<Bells>,
    pub inflight: Option<InflightQueue>,
    /// Indirect descriptors were negotiated.
    pub indirect: bool,
    /// Where the guest's log has the used ring, when that is logged.
    pub used_log: Option<u64>,
    pub device: Arc<Device>,
}

/// A queue on its reactor.
pub struct RunningQueue {
    stop: Arc<Promise<()>>,
    ended: Arc<Promise<u16>>,
    device: Arc<Device>,
}

impl RunningQueue {
    /// Serve a ring on the reactor of `place` until `stop`.
    pub fn start(setup: QueueSetup, place: Place) -> Self {
        let (stop, ended) = (Promise::new(), Promise::new());
        let running = Self { stop: Arc::clone(&stop), ended: Arc::clone(&ended), device: Arc::clone(&setup.device) };
        running.device.running.fetch_add(1, Ordering::Relaxed);
        let handle = place.handle().clone();
        handle.spawn(move || {
            Box::pin(async move {
                let next_available = serve(setup, stop).await;
                drop(place);
                ended.set(next_available);
            })
        });
        running
    }

    /// Take no more, finish what was taken; the next available entry. Nothing holds the ring's memory afterwards.
    pub async fn stop(self) -> u16 {
        self.stop.set(());
        let next_available = self.ended.wait().await;
        self.device.running.fetch_sub(1, Ordering::Relaxed);
        next_available
    }
}

async fn serve(setup: QueueSetup, stop: Arc<Promise<()>>) -> u16 {
    let queue = Rc::new(Queue::new(setup));
    exec::spawn(Rc::clone(&queue).publish_loop());
    if let Err(Violation(why)) = queue.run(&stop).await {
        queue.fail(&why);
        stop.wait().await;
    }
    queue.account.idle().await;
    queue.publish();
    queue.finished.set(true);
    queue.wake_publisher();
    while Rc::strong_count(&queue) > 1 {
        exec::yield_now().await; // a request's task has still to be dropped
    }
    queue.ring.borrow().next_available()
}

struct Queue {
    index: usize,
    ring: RefCell<Ring>,
    memory: Arc<GuestMemory>,
    kick: Arc<EventFd>,
    bells: Arc<Bells>,
    inflight: RefCell<Option<InflightQueue>>,
    indirect: bool,
    used_log: Option<u64>,
    device: Arc<Device>,
    account: Rc<Account>,
    /// Heads that are in flight: none can be made available again before it is answered.
    taken: RefCell<Vec<bool>>,
    done: RefCell<Vec<(u16, u32)>>,
    /// The driver wanted to be notified of what was published last.
    driver_sleeps: Cell<bool>,
    /// Where a request that is done in place has its pieces of memory.
    pieces: RefCell<SgList>,
    publisher: RefCell<Option<Waker>>,
    finished: Cell<bool>,
    held: Held,
}

/// Notifications that are held back.
struct Held {
    window_from: Cell<Instant>,
    requests: Cell<u32>,
    delay: Cell<Duration>,
    next_at: Cell<Instant>,
    waiting: Rc<Cell<bool>>,
}

enum Taken {
    /// So many requests; more may wait.
    Some,
    Nothing,
    /// No room for this one's memory yet.
    OverBudget(Request),
}

impl Queue {
    fn new(setup: QueueSetup) -> Self {
        let QueueSetup { index, ring, memory, kick, bells, inflight, indirect, used_log, device } = setup;
        let now = exec::now();
        Self {
            index,
            taken: RefCell::new(vec![false; usize::from(ring.num())]),
            ring: RefCell::new(ring),
            memory,
            kick,
            bells,
            inflight: RefCell::new(inflight),
            indirect,
            used_log,
            account: Account::new(Arc::clone(&device.budget)),
            device,
            done: RefCell::new(Vec::new()),
            driver_sleeps: Cell::new(false),
            pieces: RefCell::default(),
            publisher: RefCell::new(None),
            finished: Cell::new(false),
            held: Held {
                window_from: Cell::new(now),
                requests: Cell::new(0),
                delay: Cell::new(Duration::ZERO),
                next_at: Cell::new(now),
                waiting: Rc::new(Cell::new(false)),
            },
        }
    }

    async fn run(self: &Rc<Self>, stop: &Promise<()>) -> Result<(), Violation> {
        self.recover().await?;
        let mut turn = 0;
        while stop.get().is_none() {
            let taken = self.take_batch();
            self.publish();
            self.check_memory()?;
            match taken? {
                Taken::Some => {
                    io::note_work();
                    turn += 1;
                    if turn >= TURN || exec::has_ready() {
                        turn = 0;
                        exec::yield_now().await;
                    }
                }
                Taken::OverBudget(request) => {
                    let permit = self.account.take(request.memory_bytes()).await;
                    self.start(request, permit);
                }
                Taken::Nothing => self.wait(stop).await?,
            }
        }
        Ok(())
    }

    /// Go on with what the last owner of the ring had taken and not answered.
    async fn recover(self: &Rc<Self>) -> Result<(), Violation> {
        let heads = {
            let mut inflight = self.inflight.borrow_mut();
            let Some(inflight) = &mut *inflight else { return Ok(()) };
            let used_idx = self.ring.borrow().used_idx();
            inflight.recover(used_idx).map_err(|error| Violation(error.to_string()))?.heads
        };
        if !heads.is_empty() {
            let mut ring = self.ring.borrow_mut();
            let base = ring.used_idx().wrapping_add(heads.len() as u16);
            ring.set_next_available(base);
            self.device.tell(Level::Info, format!("queue {} goes on with {} requests", self.index, heads.len()));
        }
        for head in heads {
            let request = self.request(head)?;
            let permit = self.account.take(request.memory_bytes()).await;
            self.start(request, permit);
        }
        // A notification may have been lost with the last owner.
        self.bells.call();
        Ok(())
    }

    /// Read and check the request of a head.
    fn request(&self, head: u16) -> Result<Request, Violation> {
        let chain = self.ring.borrow().chain(&self.memory, head, self.indirect)?;
        let request = Request::parse(&self.memory, chain)?;
        if std::mem::replace(&mut self.taken.borrow_mut()[usize::from(head)], true) {
            return Err(Violation(format!("head {head} is made available while it is in flight")));
        }
        Ok(request)
    }

    /// Answer or start a batch of requests. Each is taken before the one ahead of it is started, so that what it reads
    /// can come nearer meanwhile.
    fn take_batch(self: &Rc<Self>) -> Result<Taken, Violation> {
        let mut waiting = 0;
        let mut coming = None;
        for count in 0..BATCH {
            let Some(request) = coming.take().map_or_else(|| self.take(&mut waiting), |request| Ok(Some(request)))?
            else {
                return Ok(if count == 0 { Taken::Nothing } else { Taken::Some });
            };
            let Some(permit) = self.account.try_take(request.memory_bytes()) else {
                return Ok(Taken::OverBudget(request));
            };
            let next = if count + 1 < BATCH { self.take(&mut waiting) } else { Ok(None) };
            if let Ok(Some(next)) = &next {
                self.target().expect(next);
            }
            self.start(request, permit);
            coming = next?;
            let enough = if self.driver_sleeps.get() { PUBLISH_ASLEEP } else { PUBLISH };
            if self.done.borrow().len() >= enough {
                self.publish();
            }
        }
        Ok(Taken::Some)
    }

    /// Take the next request, if there is one; `waiting` says how many are known to be there.
    fn take(&self, waiting: &mut u16) -> Result<Option<Request>, Violation> {
        if *waiting == 0 {
            *waiting = self.ring.borrow().waiting()?;
        }
        if *waiting == 0 {
            return Ok(None);
        }
        *waiting -= 1;
        let head = self.ring.borrow_mut().take_head()?;
        let request = self.request(head)?;
        if let Some(inflight) = &mut *self.inflight.borrow_mut() {
            inflight.take(head);
        }
        Ok(Some(request))
    }

    fn target(&self) -> Target<'_> {
        Target {
            bdev: &*self.device.bdev,
            memory: &self.memory,
            readonly: self.device.readonly,
            write_through: self.device.write_through(),
        }
    }

    fn start(self: &Rc<Self>, request: Request, permit: Permit) {
        let tried = self.target().try_execute(&request, &mut self.pieces.borrow_mut());
        match tried {
            Tried::Done(outcome) => self.finish(&request, outcome, permit),
            Tried::Later => {
                self.device.in_flight.fetch_add(1, Ordering::Relaxed);
                exec::spawn(Rc::clone(self).execute(request, permit));
            }
        }
    }

    async fn execute(self: Rc<Self>, request: Request, permit: Permit) {
        let outcome = self.target().execute(&request).await;
        self.device.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.finish(&request, outcome, permit);
        self.wake_publisher();
    }

    /// The request is answered; the guest sees it with the next batch.
    fn finish(&self, request: &Request, outcome: Outcome, permit: Permit) {
        let written = request.finish(&self.memory, &outcome);
        if self.device.log.is_on() {
            self.device.log.mark(request.written_ranges());
        }
        self.done.borrow_mut().push((request.head, written));
        drop(permit);
    }

    /// Show the guest everything that is done, and notify it once.
    fn publish(&self) {
        let mut done = self.done.borrow_mut();
        if done.is_empty() {
            return;
        }
        let wanted = {
            let (mut ring, mut taken) = (self.ring.borrow_mut(), self.taken.borrow_mut());
            let inflight = self.inflight.borrow();
            for &(head, written) in &*done {
                taken[usize::from(head)] = false;
                if let Some(inflight) = &*inflight {
                    inflight.prepare(head);
                }
                ring.push_used(head, written);
            }
            ring.publish();
            if let Some(inflight) = &*inflight {
                inflight.published(done.iter().map(|&(head, _)| head), ring.used_idx());
            }
            if let Some(address) = self.used_log {
                self.device.log.mark([(address, ring.used_len() as u64)].into_iter());
            }
            ring.wants_notification()
        };
        self.driver_sleeps.set(wanted);
        if wanted {
            self.notify();
        }
        self.count(done.len());
        done.clear();
    }

    /// Notify the guest, now or when its rate of requests says so.
    fn notify(&self) {
        let delay = self.held.delay.get();
        if !self.device.coalescing.is_on() || delay.is_zero() {
            return self.bells.call();
        }
        let now = exec::now();
        let next_at = self.held.next_at.get();
        if now >= next_at {
            self.held.next_at.set(now + delay);
            return self.bells.call();
        }
        if self.held.waiting.replace(true) {
            return;
        }
        self.held.next_at.set(next_at + delay);
        let (bells, waiting) = (Arc::clone(&self.bells), Rc::clone(&self.held.waiting));
        exec::spawn(async move {
            exec::sleep_until(next_at).await;
            waiting.set(false);
            bells.call();
        });
    }

    /// Count requests for the delay of notifications.
    fn count(&self, requests: usize) {
        if !self.device.coalescing.is_on() {
            return;
        }
        self.held.requests.set(self.held.requests.get().saturating_add(requests as u32));
        let now = exec::now();
        if now.saturating_duration_since(self.held.window_from.get()) >= RATE_WINDOW {
            self.held.delay.set(self.device.coalescing.delay(self.held.requests.replace(0)));
            self.held.window_from.set(now);
        }
    }

    /// Publishes what tasks have finished.
    async fn publish_loop(self: Rc<Self>) {
        loop {
            poll_fn(|context| {
                if self.finished.get() || !self.done.borrow().is_empty() {
                    return Poll::Ready(());
                }
                *self.publisher.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            self.publish();
            let _ = self.check_memory(); // what is wrong ends the session, and that this queue
            if self.finished.get() {
                return;
            }
        }
    }

    fn wake_publisher(&self) {
        if let Some(waker) = self.publisher.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Wait for requests: while the reactor looks for them, then for a kick.
    async fn wait(self: &Rc<Self>, stop: &Promise<()>) -> Result<(), Violation> {
        let polled = Rc::clone(self) as Rc<dyn io::Polled>;
        match exec::race(io::idle(polled), stop.wait()).await {
            exec::Either::Left(io::Found::Work) | exec::Either::Right(()) => return Ok(()),
            exec::Either::Left(io::Found::Nothing) => {}
        }
        self.ring.borrow().enable_kicks();
        if self.ring.borrow().waiting()? == 0 && stop.get().is_none() {
            exec::race(io::readable(self.kick.raw_fd()), stop.wait()).await;
        }
        self.kick.clear();
        self.ring.borrow().disable_kicks();
        Ok(())
    }

    /// The frontend must not take its memory away; whoever does loses the session.
    fn check_memory(&self) -> Result<(), Violation> {
        let inflight = self.inflight.borrow().as_ref().is_some_and(InflightQueue::is_broken);
        if self.ring.borrow().is_broken() || inflight || self.memory.is_broken() {
            self.device.fail("the frontend has shrunk its memory");
            return Err(Violation("its memory is gone".into()));
        }
        Ok(())
    }

    fn fail(&self, why: &str) {
        self.device.tell(Level::Error, format!("queue {} stops: {why}", self.index));
        self.bells.error();
    }
}

impl io::Polled for Queue {
    /// A ring that breaks the rules is work too: it has to be told.
    fn has_work(&self) -> bool {
        self.ring.borrow().waiting() != Ok(0)
    }
}
