//! The engine as the control plane holds it: reactors, the memory budget, and the objects made from them.
//!
//! Every call may block; none is made on a reactor's thread.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bdev::Bdev;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::frontend::budget::Budget;
use crate::frontend::nbd::listener::{ListenOptions, NbdListener};
use crate::frontend::vhost_user::controller::{ControllerOptions, VhostController};
use crate::reactor::{Handle, IoEngine, Reactors};
use crate::sys::{clock, cpu};

/// How long `close` waits for the last user of a bdev to let go after its frontends are gone.
const RELEASE_TIME: Duration = Duration::from_secs(30);

/// What an engine runs on.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// One pinned reactor each; empty: `reactors` unpinned ones.
    pub cpus: Vec<usize>,
    pub reactors: usize,
    /// None: io_uring where it is allowed.
    pub io_engine: Option<IoEngine>,
    /// Bytes of request memory that all connections share beyond their own small part.
    pub memory_budget_bytes: usize,
}

/// A running engine; stops when the last reference is dropped.
pub struct Engine {
    reactors: Arc<Reactors>,
    budget: Arc<Budget>,
}

impl Engine {
    /// Start the reactors.
    ///
    /// # Errors
    /// As [`Reactors::start`].
    pub fn start(options: &EngineOptions) -> Result<Self> {
        cpu::set_io_flusher();
        clock::ticks(); // its rate is known by the time that it is wanted
        let io_engine = options.io_engine.unwrap_or_else(IoEngine::detect);
        let reactors = Arc::new(Reactors::start(&options.cpus, options.reactors, io_engine)?);
        Ok(Self { reactors, budget: Budget::new(options.memory_budget_bytes) })
    }

    pub fn io_engine(&self) -> IoEngine {
        self.reactors.io_engine()
    }

    /// A reactor, in turn.
    pub fn handle(&self) -> Handle {
        self.reactors.next()
    }

    pub fn listen_nbd_unix(&self, path: &Path, options: ListenOptions) -> Result<NbdListener> {
        NbdListener::listen_unix(&self.reactors, &self.budget, path, options)
    }

    pub fn listen_nbd_tcp(&self, host: &str, port: u16, options: ListenOptions) -> Result<NbdListener> {
        NbdListener::listen_tcp(&self.reactors, &self.budget, host, port, options)
    }

    pub fn create_vhost_blk(&self, events: &Arc<Events>, options: ControllerOptions) -> Result<VhostController> {
        VhostController::new(&self.reactors, &self.budget, Some(events), options)
    }
}

/// A bdev as the control plane holds it: usable until closed, once.
pub struct BdevHandle {
    bdev: Mutex<Option<Arc<dyn Bdev>>>,
    name: String,
}

impl BdevHandle {
    pub fn new(bdev: Arc<dyn Bdev>) -> Self {
        let name = bdev.info().name.clone();
        Self { bdev: Mutex::new(Some(bdev)), name }
    }

    /// The bdev itself.
    ///
    /// # Errors
    /// `InvalidState` after `close`.
    pub fn get(&self) -> Result<Arc<dyn Bdev>> {
        let bdev = self.bdev.lock().unwrap_or_else(PoisonError::into_inner).clone();
        bdev.ok_or_else(|| Error::new(ErrorKind::InvalidState, format!("{} is closed", self.name)))
    }

    /// Finish, make durable, and let go: afterwards its descriptors and locks are free. Idempotent.
    ///
    /// # Errors
    /// What making it durable said; it is let go of all the same. `Busy` when somebody still uses it.
    pub fn close(&self, handle: &Handle) -> Result<()> {
        let Some(bdev) = self.bdev.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        let closing = Arc::clone(&bdev);
        let closed = handle.run(move || Box::pin(async move { closing.close().await }));
        let deadline = Instant::now() + RELEASE_TIME;
        while Arc::strong_count(&bdev) > 1 {
            if Instant::now() >= deadline {
                let message = format!("{} is still used by {} others", self.name, Arc::strong_count(&bdev) - 1);
                return closed.and(Err(Error::new(ErrorKind::Busy, message)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        closed
    }
}
