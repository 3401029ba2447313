//! A controller: a listening socket, the bdev behind it, and the sessions of its frontends.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::device::{Coalescing, Device};
use super::session;
use crate::bdev::Bdev;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::frontend::budget::Budget;
use crate::frontend::socket_node::{SocketAccess, SocketNode};
use crate::reactor::{Place, Reactors, exec, io as socket_io};
use crate::sys::socket::Socket;

const BACKLOG: i32 = 16;
/// Frontends of one controller; more wait in the backlog, unless one is there that has never said anything.
const MAX_SESSIONS: usize = 64;
/// How long a frontend may be silent before it is parted with for another one.
const SILENCE: Duration = Duration::from_secs(1);
/// Pause when no descriptor is to be had for a frontend.
const ACCEPT_REST: Duration = Duration::from_millis(100);

static NEXT_VID: AtomicU64 = AtomicU64::new(0);

/// What is to be offered, and how.
#[derive(Clone)]
pub struct ControllerOptions {
    pub name: String,
    pub socket: PathBuf,
    pub bdev: Arc<dyn Bdev>,
    pub readonly: bool,
    /// Queues run on the reactors of these CPUs; empty: on any.
    pub cpus: Vec<usize>,
    /// Who may connect.
    pub access: SocketAccess,
}

/// A session as the control plane sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    pub vid: u64,
    pub id: u64,
    /// A ring runs.
    pub started: bool,
    pub max_queues: usize,
    pub in_flight: usize,
}

/// A controller as the control plane holds it. Every method may block; none is called on a reactor.
///
/// It is made closed to frontends; see `open`.
pub struct VhostController {
    shared: Arc<Shared>,
    node: SocketNode,
}

/// What a controller's sessions share.
pub struct Shared {
    name: String,
    /// None when the controller is closed: sessions that are left have their own.
    bdev: Mutex<Option<Arc<dyn Bdev>>>,
    readonly: bool,
    cpus: Vec<usize>,
    coalescing: Arc<Coalescing>,
    budget: Arc<Budget>,
    events: Option<Arc<Events>>,
    reactors: Arc<Reactors>,
    socket: Socket,
    closing: AtomicBool,
    accepting: AtomicBool,
    sessions: Mutex<BTreeMap<u64, SessionEntry>>,
    next_id: AtomicU64,
    /// Sessions and the accepting task itself have ended.
    ended: Condvar,
}

struct SessionEntry {
    id: u64,
    since: Instant,
    device: Arc<Device>,
}

impl VhostController {
    /// Prepare the socket; a dead one in its place will be replaced, a live one is refused.
    ///
    /// # Errors
    /// `Busy` when somebody listens there, `AlreadyExists` when something else has the name, `InvalidParams` when the
    /// path is too long or no reactor runs on the CPUs, `Permission` when the socket may not be given to its group,
    /// `Unsupported` for blocks that virtio cannot carry.
    pub fn new(
        reactors: &Arc<Reactors>,
        budget: &Arc<Budget>,
        events: Option<&Arc<Events>>,
        options: ControllerOptions,
    ) -> Result<Self> {
        let info = options.bdev.info();
        if !info.block_size.is_power_of_two() || !(512..=65536).contains(&info.block_size) {
            let message = format!("{} has blocks of {} bytes; virtio carries 512 to 65536", info.name, info.block_size);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if reactors.place_among(&options.cpus).is_none() {
            let message = format!("no reactor runs on CPU {:?}; -m says where they run", options.cpus);
            return Err(Error::new(ErrorKind::InvalidParams, message));
        }
        let (node, socket) = SocketNode::listen(&options.socket, BACKLOG, options.access)?;
        let shared = Shared {
            name: options.name,
            bdev: Mutex::new(Some(options.bdev)),
            readonly: options.readonly,
            cpus: options.cpus,
            coalescing: Arc::new(Coalescing::default()),
            budget: Arc::clone(budget),
            events: events.map(Arc::clone),
            reactors: Arc::clone(reactors),
            socket,
            closing: AtomicBool::new(false),
            accepting: AtomicBool::new(false),
            sessions: Mutex::new(BTreeMap::new()),
            next_id: AtomicU64::new(0),
            ended: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared), node })
    }

    /// Let frontends in. Until then there is nothing at the path, or a dead daemon's socket. Idempotent.
    ///
    /// # Errors
    /// As `new`; the controller stays as it was.
    pub fn open(&self) -> Result<()> {
        if self.shared.closing.load(Ordering::Acquire) || self.shared.accepting.load(Ordering::Acquire) {
            return Ok(());
        }
        self.node.publish()?;
        self.shared.accepting.store(true, Ordering::Release);
        let accepting = Arc::clone(&self.shared);
        self.shared.reactors.next().spawn(move || Box::pin(accept_loop(accepting)));
        Ok(())
    }

    pub fn path(&self) -> &Path {
        self.node.path()
    }

    /// When notifications are held back: µs for twice the rate, and the rate in requests a second.
    pub fn set_coalescing(&self, delay_base_us: u32, iops_threshold: u32) {
        self.shared.coalescing.set(delay_base_us, iops_threshold);
    }

    pub fn sessions(&self) -> Vec<SessionInfo> {
        let describe = |(&vid, entry): (&u64, &SessionEntry)| SessionInfo {
            vid,
            id: entry.id,
            started: entry.device.running.load(Ordering::Relaxed) > 0,
            max_queues: entry.device.rings.load(Ordering::Relaxed),
            in_flight: entry.device.in_flight.load(Ordering::Relaxed),
        };
        self.shared.sessions().iter().map(describe).collect()
    }

    /// Tell every guest that the bdev has another size now.
    pub fn notify_config_change(&self) {
        for entry in self.shared.sessions().values() {
            entry.device.notify_config_change();
        }
    }

    /// Stop listening, finish what is in flight, part with every frontend, remove the socket's file. Idempotent.
    pub fn close(&self) {
        if self.shared.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.node.remove();
        self.shared.socket.shutdown();
        let mut sessions = self.shared.sessions();
        while !sessions.is_empty() || self.shared.accepting.load(Ordering::Acquire) {
            for entry in sessions.values() {
                entry.device.leave.set(());
            }
            self.shared.socket.shutdown();
            // Requests in flight always end (INV-4), so this waits for them and for nothing else.
            let pause = Duration::from_millis(200);
            sessions = self.shared.ended.wait_timeout(sessions, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(sessions);
        self.shared.bdev.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for VhostController {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<u64, SessionEntry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reactor for one more queue.
    pub fn place(&self) -> Place {
        self.reactors.place_among(&self.cpus).unwrap_or_else(|| self.reactors.place())
    }

    /// Whether there is room for one more; if not, part with the frontend that has been silent for longest.
    fn has_room(&self) -> bool {
        let sessions = self.sessions();
        if sessions.len() < MAX_SESSIONS {
            return true;
        }
        let is_silent = |entry: &&SessionEntry| !entry.device.spoken.load(Ordering::Relaxed);
        let oldest = sessions.values().filter(is_silent).min_by_key(|entry| entry.since);
        if let Some(entry) = oldest.filter(|entry| entry.since.elapsed() >= SILENCE) {
            entry.device.fail("it has said nothing, and others wait");
        }
        false
    }

    fn device(&self) -> Option<Device> {
        let bdev = self.bdev.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (coalescing, budget) = (&self.coalescing, &self.budget);
        Some(Device::new(&self.name, &bdev, self.readonly, coalescing, budget, self.events.as_ref()))
    }
}

async fn accept_loop(shared: Arc<Shared>) {
    while !shared.closing.load(Ordering::Acquire) {
        if !shared.has_room() {
            exec::sleep(ACCEPT_REST).await;
            continue;
        }
        match shared.socket.accept() {
            Ok(socket) => start_session(&shared, socket),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket_io::readable(shared.socket.raw_fd()).await;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            // No descriptors or no memory: it passes, or `close` ends it.
            Err(_) => exec::sleep(ACCEPT_REST).await,
        }
    }
    shared.accepting.store(false, Ordering::Release);
    shared.ended.notify_all();
}

fn start_session(shared: &Arc<Shared>, socket: Socket) {
    let Some(device) = shared.device() else { return };
    let (socket, device) = (Arc::new(socket), Arc::new(device));
    let vid = NEXT_VID.fetch_add(1, Ordering::Relaxed);
    let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
    shared.sessions().insert(vid, SessionEntry { id, since: Instant::now(), device: Arc::clone(&device) });
    let listed = Listed { shared: Arc::clone(shared), vid };
    let place = shared.place();
    let handle = place.handle().clone();
    handle.spawn(move || {
        Box::pin(async move {
            session::serve(socket, device, Arc::clone(&listed.shared)).await;
            drop((listed, place));
        })
    });
}

/// Takes a session off the list when it has ended, however it ended.
struct Listed {
    shared: Arc<Shared>,
    vid: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.shared.sessions().remove(&self.vid);
        self.shared.ended.notify_all();
    }
}
