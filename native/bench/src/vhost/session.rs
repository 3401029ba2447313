//! One connection to the backend, from the first message to running queues, and to their end.
//!
//! The order of messages is QEMU's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::args::Args;
use crate::ring::{GUEST_BASE, Layout};
use crate::sys::{Bell, SharedMemory};
use crate::wire::{self, Connection};

const FLUSH: u64 = 1 << 9;
const MQ: u64 = 1 << 12;
const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

const PROTOCOL_MQ: u64 = 1 << 0;
const REPLY_ACK: u64 = 1 << 3;
const CONFIG: u64 = 1 << 9;
const INFLIGHT_SHMFD: u64 = 1 << 12;

/// Bytes of the config space that tell the capacity.
const CAPACITY_BYTES: u32 = 8;

/// What both sides share for as long as the driver lives, whatever becomes of the backend.
pub struct Shared {
    pub memory: Arc<SharedMemory>,
    pub layouts: Vec<Layout>,
    pub kicks: Vec<Arc<Bell>>,
    pub calls: Vec<Arc<Bell>>,
}

impl Shared {
    /// # Errors
    /// No memory, no descriptors.
    pub fn new(args: &Args) -> io::Result<Self> {
        let (layouts, bytes) = Layout::of_queues(args);
        let bells = || layouts.iter().map(|_| Bell::new().map(Arc::new)).collect::<io::Result<Vec<_>>>();
        Ok(Self { memory: Arc::new(SharedMemory::new(bytes)?), kicks: bells()?, calls: bells()?, layouts })
    }
}

/// In-flight state: the backend made it, the frontend keeps it for the next one.
pub struct Inflight {
    file: OwnedFd,
    /// As the backend described it.
    description: Vec<u8>,
}

/// A connected backend.
pub struct Session {
    connection: Connection,
    pub event_idx: bool,
    pub size_bytes: u64,
}

impl Session {
    /// Agree on features.
    ///
    /// # Errors
    /// A backend that lacks what this load needs, or breaks the protocol.
    pub fn negotiate(args: &Args, mut connection: Connection) -> Result<Self, String> {
        let offered = connection.ask(wire::GET_FEATURES)?;
        let needed = VERSION_1 | PROTOCOL_FEATURES | if args.direct { 0 } else { INDIRECT };
        if offered & needed != needed {
            return Err(format!("the backend offers {offered:#x}, {needed:#x} are needed"));
        }
        let features = needed | offered & (FLUSH | MQ | EVENT_IDX);
        connection.tell(wire::SET_FEATURES, &wire::words(&[features]), &[])?;
        let offered = connection.ask(wire::GET_PROTOCOL_FEATURES)?;
        let needed = CONFIG | if args.reconnect { INFLIGHT_SHMFD } else { 0 };
        if offered & needed != needed {
            return Err(format!("the backend offers protocol features {offered:#x}, {needed:#x} are needed"));
        }
        let protocol = needed | offered & (PROTOCOL_MQ | REPLY_ACK);
        connection.tell(wire::SET_PROTOCOL_FEATURES, &wire::words(&[protocol]), &[])?;
        connection.acknowledged = protocol & REPLY_ACK != 0;
        connection.tell(wire::SET_OWNER, &[], &[])?;
        let queues = if protocol & PROTOCOL_MQ != 0 { connection.ask(wire::GET_QUEUE_NUM)? } else { 1 };
        if queues < u64::from(args.queues) {
            return Err(format!("the backend has {queues} queues"));
        }
        let size_bytes = Self::capacity(&connection)? * 512;
        connection.tell(wire::SET_FEATURES, &wire::words(&[features]), &[])?;
        Ok(Self { connection, event_idx: features & EVENT_IDX != 0, size_bytes })
    }

    fn capacity(connection: &Connection) -> Result<u64, String> {
        let mut payload: Vec<u8> = [0, CAPACITY_BYTES, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        payload.extend([0; CAPACITY_BYTES as usize]);
        let (answer, _) = connection.ask_with(wire::GET_CONFIG, &payload)?;
        let space = answer.get(12..20).and_then(|bytes| bytes.try_into().ok());
        Ok(u64::from_le_bytes(space.ok_or("the backend has no config space")?))
    }

    /// Ask for in-flight state.
    ///
    /// # Errors
    /// A backend that gives none.
    pub fn make_inflight(&self, args: &Args) -> Result<Inflight, String> {
        let mut asked = wire::words(&[0, 0]);
        asked.extend([args.queues, args.ring_size].iter().flat_map(|count| count.to_le_bytes()));
        asked.extend([0; 4]);
        let (description, file) = self.connection.ask_with(wire::GET_INFLIGHT_FD, &asked)?;
        Ok(Inflight { file: file.ok_or("the backend has sent no in-flight state")?, description })
    }

    /// Share the memory and start every queue where the ring says that the last backend has come to.
    ///
    /// # Errors
    /// A backend that refuses something.
    pub fn start(&self, shared: &Shared, inflight: Option<&Inflight>) -> Result<(), String> {
        let (connection, memory) = (&self.connection, &shared.memory);
        if let Some(Inflight { file, description }) = inflight {
            connection.tell(wire::SET_INFLIGHT_FD, description, &[file.as_raw_fd()])?;
        }
        let mut table = wire::of_queue(1, 0); // one region, and padding
        table.extend(wire::words(&[GUEST_BASE, memory.len() as u64, memory.address(), 0]));
        connection.tell(wire::SET_MEM_TABLE, &table, &[memory.descriptor()])?;
        for index in 0..shared.layouts.len() {
            self.start_queue(shared, index)?;
        }
        Ok(())
    }

    fn start_queue(&self, shared: &Shared, index: usize) -> Result<(), String> {
        let (connection, layout) = (&self.connection, &shared.layouts[index]);
        let number = index as u16;
        let base = layout.used_index(&shared.memory);
        connection.tell(wire::SET_VRING_NUM, &wire::of_queue(number, u32::from(layout.ring_size)), &[])?;
        connection.tell(wire::SET_VRING_BASE, &wire::of_queue(number, u32::from(base)), &[])?;
        let mut addresses = wire::of_queue(number, 0);
        let user = |offset: usize| shared.memory.address() + offset as u64;
        addresses.extend(wire::words(&[user(layout.descriptors), user(layout.used), user(layout.available), 0]));
        connection.tell(wire::SET_VRING_ADDR, &addresses, &[])?;
        let which = wire::words(&[u64::from(number)]);
        connection.tell(wire::SET_VRING_KICK, &which, &[shared.kicks[index].descriptor()])?;
        connection.tell(wire::SET_VRING_CALL, &which, &[shared.calls[index].descriptor()])?;
        connection.tell(wire::SET_VRING_ENABLE, &wire::of_queue(number, 1), &[])
    }

    /// Stop a queue; the available entry that the backend would take next.
    ///
    /// # Errors
    /// A backend that has gone.
    pub fn stop_queue(&self, index: u16) -> Result<u16, String> {
        let (answer, _) = self.connection.ask_with(wire::GET_VRING_BASE, &wire::of_queue(index, 0))?;
        let base = answer.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        base.and_then(|base| u16::try_from(base).ok()).ok_or_else(|| "an answer without an index".to_owned())
    }

    /// Wait until the backend has gone, at most `timeout`.
    pub fn is_gone_within(&self, timeout: std::time::Duration) -> bool {
        crate::sys::wait_readable(self.connection.descriptor(), timeout)
    }
}
