//! Event loops: a few threads, each with an executor and a backend that carries out its I/O.
//!
//! A reactor sleeps in the kernel when it has nothing to do. Other threads reach it through its [`Handle`].

pub mod backend;
pub mod blocking;
pub mod exec;
pub mod give_way;
pub mod io;
pub mod lane;
pub mod offload;
pub mod ops;
mod pool;
mod rest;
pub mod sync;
mod uring;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bdev::LocalFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::cpu;
use crate::sys::eventfd::EventFd;
use backend::Backend;
use exec::{Executor, Inbox};

pub use pool::WorkerPool;

/// What carries out a reactor's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoEngine {
    IoUring,
    /// epoll and a pool of threads with plain system calls, where io_uring is not allowed.
    Threads,
}

impl IoEngine {
    pub fn as_str(self) -> &'static str {
        match self {
            IoEngine::IoUring => "io_uring",
            IoEngine::Threads => "threads",
        }
    }

    /// io_uring where the kernel allows it.
    pub fn detect() -> Self {
        match crate::sys::uring::Ring::<()>::new() {
            Ok(_) => IoEngine::IoUring,
            Err(_) => IoEngine::Threads,
        }
    }
}

/// Wakes a sleeping reactor; costs a system call only when it does sleep.
#[derive(Debug)]
pub struct Doorbell {
    fd: EventFd,
    sleeping: AtomicBool,
}

impl Doorbell {
    fn new() -> std::io::Result<Self> {
        Ok(Self { fd: EventFd::new()?, sleeping: AtomicBool::new(false) })
    }

    /// Make the reactor look at its inbox. The caller has put something there before.
    pub fn ring(&self) {
        fence(Ordering::SeqCst); // pairs with `about_to_sleep`: one of the two sees the other
        if self.sleeping.swap(false, Ordering::SeqCst) {
            self.fd.signal();
        }
    }

    /// Announce a sleep; the reactor looks at its inbox once more afterwards.
    fn about_to_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// The descriptor that a backend watches.
    pub fn event(&self) -> &EventFd {
        &self.fd
    }
}

/// How other threads reach a reactor.
#[derive(Clone)]
pub struct Handle {
    inbox: Arc<Inbox>,
    stopping: Arc<AtomicBool>,
    /// Clients that were placed here and have not ended.
    clients: Arc<AtomicUsize>,
}

/// A client's place on a reactor, given up when dropped.
pub struct Place {
    handle: Handle,
}

impl Place {
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handle.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Handle {
    /// Start a task on the reactor.
    pub fn spawn(&self, make: impl FnOnce() -> LocalFuture<'static, ()> + Send + 'static) {
        self.inbox.post(Box::new(move || exec::spawn(make())));
    }

    /// Run a task on the reactor and wait for its value. Never called on a reactor's own thread.
    ///
    /// # Errors
    /// `Cancelled` when the reactor stops before the task has ended.
    pub fn run<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> LocalFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = mpsc::channel();
        self.spawn(move || {
            Box::pin(async move {
                let _ = sender.send(make().await);
            })
        });
        match receiver.recv() {
            Ok(value) => value,
            Err(_) => Err(Error::new(ErrorKind::Cancelled, "the engine stopped")),
        }
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.inbox.post(Box::new(|| {}));
    }
}

/// The reactors of an engine.
pub struct Reactors {
    handles: Vec<Handle>,
    /// The CPU that each is pinned to.
    places: Vec<Option<usize>>,
    threads: Vec<JoinHandle<()>>,
    io_engine: IoEngine,
    next: AtomicUsize,
}

impl Reactors {
    /// Start one reactor pinned to each of `cpus`, or `count` unpinned ones when there are none.
    ///
    /// # Errors
    /// `Io` or `InvalidParams` when a thread cannot be started, pinned, or get its backend; none is left running then.
    pub fn start(cpus: &[usize], count: usize, io_engine: IoEngine) -> Result<Self> {
        let awake = Arc::new(AtomicUsize::new(0));
        let pool = WorkerPool::new();
        let all_cpus = cpu::affinity_count();
        let places: Vec<Option<usize>> =
            if cpus.is_empty() { vec![None; count.max(1)] } else { cpus.iter().copied().map(Some).collect() };
        let next = AtomicUsize::new(0);
        let mut reactors = Self { handles: Vec::new(), places: places.clone(), threads: Vec::new(), io_engine, next };
        for (index, cpu) in places.into_iter().enumerate() {
            let (sender, receiver) = mpsc::channel();
            let (awake, pool) = (Arc::clone(&awake), Arc::clone(&pool));
            let all_cpus = cpu.map(|_| all_cpus);
            let body = move || match Reactor::new(cpu, io_engine, awake, &pool) {
                Ok(reactor) => {
                    lane::install(index);
                    let _ = sender.send(Ok(reactor.handle()));
                    reactor.run(all_cpus);
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("reactor_{index}"))
                .spawn(body)
                .map_err(|error| Error::from_io("start a reactor thread", &error))?;
            reactors.threads.push(thread);
            let handle = receiver.recv().map_err(|_| Error::new(ErrorKind::Internal, "a reactor died at start"))??;
            reactors.handles.push(handle);
        }
        Ok(reactors)
    }

    pub fn io_engine(&self) -> IoEngine {
        self.io_engine
    }

    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// The reactor with the fewest clients, for one more.
    pub fn place(&self) -> Place {
        self.place_among(&[]).expect("an engine has a reactor")
    }

    /// The same of those that run on these CPUs, none of them meaning any; None when there is none. Reactors that are
    /// not pinned may run on every CPU.
    pub fn place_among(&self, cpus: &[usize]) -> Option<Place> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.handles.len();
        let is_allowed = |index: &usize| cpus.is_empty() || self.places[*index].is_none_or(|cpu| cpus.contains(&cpu));
        let in_turn = (0..count).map(|step| (first + step) % count).filter(is_allowed);
        let fewest = in_turn.map(|index| &self.handles[index]).min_by_key(|one| one.clients.load(Ordering::Relaxed));
        let handle = fewest?.clone();
        handle.clients.fetch_add(1, Ordering::Relaxed);
        Some(Place { handle })
    }

    /// Reactors in turn, for work of the control plane.
    pub fn next(&self) -> Handle {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len();
        self.handles[index].clone()
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.stop();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Reactor {
    exec: Rc<Executor>,
    backend: Rc<dyn Backend>,
    doorbell: Arc<Doorbell>,
    stopping: Arc<AtomicBool>,
    awake: Arc<AtomicUsize>,
}

impl Reactor {
    fn new(cpu: Option<usize>, io_engine: IoEngine, awake: Arc<AtomicUsize>, pool: &Arc<WorkerPool>) -> Result<Self> {
        if let Some(cpu) = cpu {
            cpu::pin_to(cpu).map_err(|error| {
                let message = format!("pin a reactor to CPU {cpu}: {error}; choose CPUs that this process may use");
                Error::new(ErrorKind::InvalidParams, message)
            })?;
        }
        let doorbell = Doorbell::new().map_err(|error| Error::from_io("make an eventfd", &error))?;
        let doorbell = Arc::new(doorbell);
        let bell = Arc::clone(&doorbell);
        let exec = Executor::new(move || bell.ring());
        let backend: Rc<dyn Backend> = match io_engine {
            IoEngine::IoUring => Rc::new(uring::UringBackend::new(Arc::clone(&doorbell))?),
            IoEngine::Threads => Rc::new(pool::PoolBackend::new(Arc::clone(&doorbell), Arc::clone(pool))?),
        };
        Ok(Self { exec, backend, doorbell, stopping: Arc::new(AtomicBool::new(false)), awake })
    }

    fn handle(&self) -> Handle {
        Handle {
            inbox: Arc::clone(self.exec.inbox()),
            stopping: Arc::clone(&self.stopping),
            clients: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// Run until it is told to stop; `all_cpus`: those of the engine, where this thread is pinned to one.
    fn run(self, all_cpus: Option<usize>) {
        let entered = self.exec.enter();
        let installed = ops::install(Rc::clone(&self.backend) as Rc<dyn ops::Driver>);
        let io = io::install(Rc::clone(&self.backend), Arc::clone(&self.awake), all_cpus);
        self.awake.fetch_add(1, Ordering::Relaxed);
        while !self.is_done() {
            self.turn();
        }
        self.awake.fetch_sub(1, Ordering::Relaxed);
        self.exec.drop_tasks();
        drop((io, installed, entered));
    }

    fn is_done(&self) -> bool {
        self.stopping.load(Ordering::Acquire) && !self.exec.has_ready() && self.backend.ops_in_flight() == 0
    }

    /// Run what is ready, take what has completed, sleep if that was nothing.
    fn turn(&self) {
        self.exec.set_now(Instant::now());
        self.exec.run_ready();
        self.backend.poll();
        if self.exec.has_ready() || io::look_for_work() {
            return;
        }
        let now = Instant::now();
        let timeout = self.exec.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
        if timeout == Some(Duration::ZERO) {
            return;
        }
        self.doorbell.about_to_sleep();
        let may_sleep = !self.exec.has_ready() && !self.backend.has_completions() && !self.is_done();
        if may_sleep {
            self.awake.fetch_sub(1, Ordering::Relaxed);
            blocking::note_sleep();
            self.backend.wait(timeout);
            self.awake.fetch_add(1, Ordering::Relaxed);
        }
        self.doorbell.awake();
    }
}
