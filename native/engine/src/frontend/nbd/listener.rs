//! A listening socket and the exports that it offers.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::io;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection;
use super::export::{Export, ExportOptions, Seat, Session};
use super::handshake::{Agreed, ExportDescription, ExportDirectory, ExportListing, NoEntry};
use super::tls::{TlsOptions, TlsServer};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{Events, Level};
use crate::frontend::budget::Budget;
use crate::frontend::socket_node::{SocketAccess, SocketNode};
use crate::reactor::{Place, Reactors, exec, io as socket_io};
use crate::sys::socket::Socket;

const BACKLOG: i32 = 512;
/// Clients of one listener, handshakes included; more wait in the backlog.
const MAX_CLIENTS: usize = 4096;
/// Pause when no descriptor is to be had for a client.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// NBD proto.md, "Values": a string is at most 4096 bytes.
const MAX_NAME: usize = 4096;

/// How a listener is, beside where.
#[derive(Clone, Default)]
pub struct ListenOptions {
    /// None: clients cannot use TLS.
    pub tls: Option<TlsOptions>,
    /// Where operators are told of clients.
    pub events: Option<Arc<Events>>,
    /// Who may connect to a Unix socket.
    pub access: SocketAccess,
}

/// A listener as the control plane holds it. Every method may block; none is called on a reactor.
///
/// It is made closed to clients, so that its exports can be there before the first of them: see `open`.
pub struct NbdListener {
    shared: Arc<Shared>,
    address: String,
    node: Option<SocketNode>,
}

/// What a listener's connections share.
pub struct Shared {
    exports: Mutex<BTreeMap<String, Arc<Export>>>,
    budget: Arc<Budget>,
    reactors: Arc<Reactors>,
    socket: Socket,
    tls: Option<Arc<TlsServer>>,
    events: Option<Arc<Events>>,
    closing: AtomicBool,
    next_id: AtomicU64,
    clients: Mutex<HashMap<u64, Arc<Socket>>>,
    /// Clients and the accepting task itself have ended.
    ended: Condvar,
    accepting: AtomicBool,
}

impl NbdListener {
    /// Prepare a Unix socket; a dead one in its place will be replaced, a live one is refused.
    ///
    /// # Errors
    /// `Busy` when somebody listens there, `AlreadyExists` when something else has the name, `InvalidParams` when the
    /// path is too long, `Permission` when it may not be given to its group; what [`TlsServer::load`] says.
    pub fn listen_unix(
        reactors: &Arc<Reactors>,
        budget: &Arc<Budget>,
        path: &Path,
        options: ListenOptions,
    ) -> Result<Self> {
        let events = options.events.clone();
        let (node, socket) = SocketNode::listen(path, BACKLOG, options.access)?;
        let tls = load_tls(options, path.display()).inspect_err(|_| node.remove())?;
        Ok(Self::new(reactors, budget, socket, (tls, events), path.display().to_string(), Some(node)))
    }

    /// Prepare a TCP port; port 0 takes a free one.
    ///
    /// # Errors
    /// `InvalidParams` when the host cannot be resolved, `Busy` when the port is taken; what [`TlsServer::load`] says.
    pub fn listen_tcp(
        reactors: &Arc<Reactors>,
        budget: &Arc<Budget>,
        host: &str,
        port: u16,
        options: ListenOptions,
    ) -> Result<Self> {
        let events = options.events.clone();
        let tls = load_tls(options, format_args!("{host}:{port}"))?;
        let mut addresses = (host, port)
            .to_socket_addrs()
            .map_err(|error| Error::new(ErrorKind::InvalidParams, format!("{host}:{port}: {error}")))?;
        let address = addresses
            .next()
            .ok_or_else(|| Error::new(ErrorKind::InvalidParams, format!("{host}:{port}: the name has no address")))?;
        let (socket, bound) = Socket::listen_tcp(address).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                Error::new(ErrorKind::Busy, format!("{address}: another program listens there"))
            } else {
                Error::from_io(format_args!("listen on {address}"), &error)
            }
        })?;
        Ok(Self::new(reactors, budget, socket, (tls, events), bound.to_string(), None))
    }

    fn new(
        reactors: &Arc<Reactors>,
        budget: &Arc<Budget>,
        socket: Socket,
        (tls, events): (Option<Arc<TlsServer>>, Option<Arc<Events>>),
        address: String,
        node: Option<SocketNode>,
    ) -> Self {
        let shared = Arc::new(Shared {
            exports: Mutex::new(BTreeMap::new()),
            budget: Arc::clone(budget),
            reactors: Arc::clone(reactors),
            socket,
            tls,
            events,
            closing: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            clients: Mutex::new(HashMap::new()),
            ended: Condvar::new(),
            accepting: AtomicBool::new(false),
        });
        Self { shared, address, node }
    }

    /// Let clients in. Until then there is nothing at the path of a Unix socket, or a dead daemon's socket; clients of
    /// a TCP port wait. Idempotent.
    ///
    /// # Errors
    /// As `listen_unix`; the listener stays as it was.
    pub fn open(&self) -> Result<()> {
        if self.shared.closing.load(Ordering::Acquire) || self.shared.accepting.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(node) = &self.node {
            node.publish()?;
        }
        self.shared.accepting.store(true, Ordering::Release);
        let accepting = Arc::clone(&self.shared);
        self.shared.reactors.next().spawn(move || Box::pin(accept_loop(accepting)));
        Ok(())
    }

    /// The socket's path, or HOST:PORT as bound.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Offer an export at once.
    ///
    /// # Errors
    /// `AlreadyExists` for a taken name or a second default, `InvalidParams` for a name that NBD cannot carry,
    /// `Unsupported` for a bdev that NBD cannot carry.
    pub fn add_export(&self, options: ExportOptions) -> Result<()> {
        check_exportable(&options)?;
        let mut exports = self.shared.exports();
        if exports.contains_key(&options.name) {
            let message = format!("{} has an export {:?} already", self.address, options.name);
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        if options.default
            && let Some(other) = exports.values().find(|export| export.default)
        {
            let message = format!("{} has a default export already: {:?}", self.address, other.name);
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        exports.insert(options.name.clone(), Arc::new(Export::new(options)));
        Ok(())
    }

    /// Offer it no longer, finish what its clients have in flight, and part with them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove_export(&self, name: &str) -> Result<()> {
        let removed = self.shared.exports().remove(name);
        let Some(export) = removed else {
            let message = format!("{} has no export {name:?}", self.address);
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        export.drain();
        Ok(())
    }

    /// Names and numbers of clients.
    pub fn exports(&self) -> Vec<(String, usize)> {
        self.shared.exports().values().map(|export| (export.name.clone(), export.connections())).collect()
    }

    /// Stop listening, drain every export, end every handshake, remove the socket's file.
    pub fn close(&self) {
        if self.shared.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(node) = &self.node {
            node.remove();
        }
        self.shared.socket.shutdown();
        let exports = std::mem::take(&mut *self.shared.exports());
        for export in exports.values() {
            export.drain();
        }
        let mut clients = self.shared.clients();
        for socket in clients.values() {
            socket.shutdown();
        }
        while !clients.is_empty() || self.shared.accepting.load(Ordering::Acquire) {
            self.shared.socket.shutdown();
            let pause = Duration::from_millis(200);
            clients = self.shared.ended.wait_timeout(clients, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for NbdListener {
    fn drop(&mut self) {
        self.close();
    }
}

fn load_tls(options: ListenOptions, address: impl Display) -> Result<Option<Arc<TlsServer>>> {
    let load = |tls| TlsServer::load(tls, &address.to_string(), options.events).map(Arc::new);
    options.tls.map(load).transpose()
}

fn check_exportable(options: &ExportOptions) -> Result<()> {
    if options.name.len() > MAX_NAME || options.name.contains('\0') || options.description.len() > MAX_NAME {
        let message = format!("an export's name and description have at most {MAX_NAME} bytes and no NUL");
        return Err(Error::new(ErrorKind::InvalidParams, message));
    }
    let block_size = options.bdev.info().block_size;
    if !block_size.is_power_of_two() || block_size > 65536 {
        let name = &options.bdev.info().name;
        let message = format!("{name} has blocks of {block_size} bytes; NBD knows powers of two up to 65536");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(())
}

impl Shared {
    fn exports(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Export>>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Arc<Socket>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tls(&self) -> Option<&Arc<TlsServer>> {
        self.tls.as_ref()
    }

    /// Tell operators of a client of an export.
    pub fn warn(&self, export: &str, message: String) {
        if let Some(events) = &self.events {
            events.post(Level::Warning, export, message);
        }
    }

    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The export that answers to `name`; the empty name is the default one's, or the only one's.
    fn export(&self, name: &str) -> Option<Arc<Export>> {
        let exports = self.exports();
        if let Some(export) = exports.get(name) {
            return Some(Arc::clone(export));
        }
        if !name.is_empty() {
            return None;
        }
        let default = exports.values().find(|export| export.default);
        let only = (exports.len() == 1).then(|| exports.values().next()).flatten();
        default.or(only).map(Arc::clone)
    }
}

/// A client in its handshake, as the exports see it.
pub struct Visitor<'a> {
    shared: &'a Shared,
    id: u64,
    socket: &'a Arc<Socket>,
    seat: RefCell<Option<Seat>>,
}

impl<'a> Visitor<'a> {
    pub fn new(shared: &'a Shared, id: u64, socket: &'a Arc<Socket>) -> Self {
        Self { shared, id, socket, seat: RefCell::new(None) }
    }

    /// Start to use the export that was entered.
    pub fn into_session(self, agreed: Agreed) -> Option<Session> {
        self.seat.into_inner().map(|seat| Session::new(seat, agreed))
    }
}

impl ExportDirectory for Visitor<'_> {
    fn list(&self) -> Vec<ExportListing> {
        let listing = |export: &Arc<Export>| ExportListing {
            name: export.name.clone(),
            description: export.description().into(),
        };
        self.shared.exports().values().map(listing).collect()
    }

    fn find(&self, name: &str) -> Option<ExportDescription> {
        self.shared.export(name).map(|export| export.describe())
    }

    fn enter(&self, name: &str) -> std::result::Result<(), NoEntry> {
        let export = self.shared.export(name).ok_or(NoEntry::Closing)?;
        *self.seat.borrow_mut() = Some(export.enter(self.id, Arc::clone(self.socket))?);
        Ok(())
    }
}

async fn accept_loop(shared: Arc<Shared>) {
    while !shared.closing.load(Ordering::Acquire) {
        if shared.clients().len() >= MAX_CLIENTS {
            exec::sleep(ACCEPT_REST).await;
            continue;
        }
        match shared.socket.accept() {
            Ok(socket) => start_client(&shared, socket),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket_io::readable(shared.socket.raw_fd()).await;
            }
            Err(error) if is_passing(&error) => {}
            // No descriptors or no memory: it passes, or `close` ends it.
            Err(_) => exec::sleep(ACCEPT_REST).await,
        }
    }
    shared.accepting.store(false, Ordering::Release);
    shared.ended.notify_all();
}

/// The client gave up, or a signal came.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

fn start_client(shared: &Arc<Shared>, socket: Socket) {
    let socket = Arc::new(socket);
    let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
    shared.clients().insert(id, Arc::clone(&socket));
    let place = shared.reactors.place();
    let handle = place.handle().clone();
    let client = Client { shared: Arc::clone(shared), id, _place: place };
    handle.spawn(move || {
        Box::pin(async move {
            connection::serve(socket, id, &client.shared).await;
            drop(client);
        })
    });
}

/// Takes a client off the list when it has ended, however it ended.
struct Client {
    shared: Arc<Shared>,
    id: u64,
    _place: Place,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.clients().remove(&self.id);
        self.shared.ended.notify_all();
    }
}
