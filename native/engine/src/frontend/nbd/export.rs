//! One export: a name, a bdev, and the clients that use it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::MAX_PAYLOAD;
use super::handshake::{Agreed, ExportDescription, NoEntry};
use super::proto;
use super::unaligned::RangeLocks;
use crate::bdev::Bdev;
use crate::sys::socket::Socket;

/// Clients that take no answers are cut off after this long when their export goes.
const DRAIN_TIME: Duration = Duration::from_secs(4);

/// What is to be exported, and how.
#[derive(Clone)]
pub struct ExportOptions {
    pub name: String,
    pub bdev: Arc<dyn Bdev>,
    pub readonly: bool,
    /// Answers to the empty name.
    pub default: bool,
    /// 0: no limit of its own.
    pub max_connections: usize,
    /// Clients that are let in each second, and at once after a quiet second; 0: no limit.
    pub max_handshakes_per_s: u32,
    pub description: String,
}

/// An export and its clients.
pub struct Export {
    pub name: String,
    pub bdev: Arc<dyn Bdev>,
    pub readonly: bool,
    pub default: bool,
    max_connections: usize,
    rate: Option<Rate>,
    description: String,
    /// Taken by changes once a client has made one that is not in whole blocks.
    pub(super) locks: Arc<RangeLocks>,
    closing: AtomicBool,
    clients: Mutex<HashMap<u64, Arc<Socket>>>,
    all_gone: Condvar,
}

impl Export {
    pub fn new(options: ExportOptions) -> Self {
        let readonly = options.readonly || options.bdev.info().readonly;
        Self {
            name: options.name,
            locks: RangeLocks::of(&options.bdev),
            bdev: options.bdev,
            readonly,
            default: options.default,
            max_connections: options.max_connections,
            rate: Rate::new(options.max_handshakes_per_s),
            description: options.description,
            closing: AtomicBool::new(false),
            clients: Mutex::new(HashMap::new()),
            all_gone: Condvar::new(),
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Arc<Socket>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn connections(&self) -> usize {
        self.clients().len()
    }

    pub fn description(&self) -> &str {
        &self.description
    }

    /// What a client is told about the export.
    pub fn describe(&self) -> ExportDescription {
        let info = self.bdev.info();
        let mut flags = proto::TRANS_HAS_FLAGS
            | proto::TRANS_SEND_FLUSH
            | proto::TRANS_SEND_FUA
            | proto::TRANS_SEND_CACHE
            | proto::TRANS_CAN_MULTI_CONN;
        if self.readonly {
            flags |= proto::TRANS_READ_ONLY;
        } else {
            flags |= proto::TRANS_SEND_WRITE_ZEROES | proto::TRANS_SEND_FAST_ZERO | proto::TRANS_SEND_TRIM;
        }
        ExportDescription {
            name: self.name.clone(),
            size_bytes: info.size_bytes(),
            transmission_flags: flags,
            description: self.description.clone(),
            min_block: info.block_size,
            preferred_block: info.block_size.max(4096),
            max_payload: MAX_PAYLOAD,
        }
    }

    /// Count a client in.
    ///
    /// # Errors
    /// The export is going away, is full, or had too many new clients in the last second.
    pub fn enter(self: &Arc<Self>, id: u64, socket: Arc<Socket>) -> std::result::Result<Seat, NoEntry> {
        let mut clients = self.clients();
        if self.closing.load(Ordering::Acquire) {
            return Err(NoEntry::Closing);
        }
        if self.max_connections != 0 && clients.len() >= self.max_connections {
            return Err(NoEntry::Policy(format!("the export has its {} connections already", self.max_connections)));
        }
        if let Some(rate) = &self.rate
            && !rate.try_take(Instant::now())
        {
            return Err(NoEntry::Policy(format!("the export takes {} new connections a second", rate.per_s)));
        }
        clients.insert(id, socket);
        Ok(Seat { export: Arc::clone(self), id })
    }

    /// Let every client finish what it has in flight, then part with it. Returns when the last one is gone.
    pub fn drain(&self) {
        self.closing.store(true, Ordering::Release);
        let mut clients = self.clients();
        for socket in clients.values() {
            socket.stop_reading();
        }
        let deadline = Instant::now() + DRAIN_TIME;
        while !clients.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                for socket in clients.values() {
                    socket.shutdown();
                }
            }
            // Requests in flight always end (INV-4), so this waits for them and for nothing else.
            let pause = if left.is_zero() { Duration::from_secs(1) } else { left };
            clients = self.all_gone.wait_timeout(clients, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A rate of new clients: a bucket of one second's worth.
struct Rate {
    per_s: u32,
    /// Entries that are left, and when that was so.
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    fn new(per_s: u32) -> Option<Self> {
        (per_s > 0).then(|| Self { per_s, left: Mutex::new((f64::from(per_s), Instant::now())) })
    }

    fn try_take(&self, now: Instant) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (entries, since) = *left;
        let per_s = f64::from(self.per_s);
        let entries = (entries + per_s * now.saturating_duration_since(since).as_secs_f64()).min(per_s);
        let is_free = entries >= 1.0;
        *left = (if is_free { entries - 1.0 } else { entries }, now);
        is_free
    }
}

/// A client's place among those of an export; free again when dropped.
pub struct Seat {
    export: Arc<Export>,
    id: u64,
}

/// One client's use of an export; ends when dropped.
pub struct Session {
    seat: Seat,
    agreed: Agreed,
}

impl Session {
    pub fn new(seat: Seat, agreed: Agreed) -> Self {
        Self { seat, agreed }
    }

    pub fn export(&self) -> &Arc<Export> {
        &self.seat.export
    }

    pub fn id(&self) -> u64 {
        self.seat.id
    }

    /// What the handshake agreed on.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// The export is going away: take no more requests.
    pub fn is_closing(&self) -> bool {
        self.seat.export.closing.load(Ordering::Acquire)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut clients = self.export.clients();
        clients.remove(&self.id);
        if clients.is_empty() {
            self.export.all_gone.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_in_one_seconds_worth_at_once_and_then_as_many_as_time_brings() {
        assert!(Rate::new(0).is_none());
        let rate = Rate::new(4).expect("a rate");
        let start = Instant::now();
        let taken = |at: Duration| (0..10).filter(|_| rate.try_take(start + at)).count();
        assert_eq!(taken(Duration::ZERO), 4);
        assert_eq!(taken(Duration::from_millis(200)), 0);
        assert_eq!(taken(Duration::from_millis(600)), 2);
        assert_eq!(taken(Duration::from_secs(60)), 4, "time that passed unused is not saved up");
    }
}
