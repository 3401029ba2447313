//! The driver's side of a split virtqueue: requests in, completions out.
//!
//! A request's slot has its descriptors, header, status and data at a fixed place for ever.
//!
//! Source: virtio 1.2, 2.7 ("Split Virtqueues"), 5.2.6 ("Device Operation").

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::args::Args;
use crate::sys::{Bell, SharedMemory};

/// Where the memory is in the guest's addresses.
pub const GUEST_BASE: u64 = 1 << 30;
const PAGE: usize = 4096;
const DESCRIPTOR_BYTES: usize = 16;
const HEADER_BYTES: usize = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;
/// A status that no backend writes.
const UNTOUCHED: u8 = 0xff;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read = 0,
    Write = 1,
}

/// Where the parts of one queue are.
#[derive(Debug, Clone)]
pub struct Layout {
    pub ring_size: u16,
    pub descriptors: usize,
    pub available: usize,
    pub used: usize,
    tables: usize,
    headers: usize,
    statuses: usize,
    data: usize,
    data_stride: usize,
    shift: usize,
    block_size: usize,
    segments: u16,
    ring_descriptors: u16,
    end: usize,
}

impl Layout {
    /// The parts of a queue from `start` on, each on pages of its own.
    fn new(args: &Args, start: usize) -> Self {
        let mut end = start;
        let mut place = |bytes: usize| {
            let at = end;
            end += bytes.next_multiple_of(PAGE);
            at
        };
        let (entries, depth) = (usize::from(args.ring_size), usize::from(args.queue_depth));
        let block_size = args.block_size as usize;
        let data_stride = (block_size + args.shift as usize).next_multiple_of(PAGE);
        Self {
            ring_size: args.ring_size,
            descriptors: place(entries * DESCRIPTOR_BYTES),
            available: place(6 + entries * 2),
            used: place(6 + entries * 8),
            tables: place(depth * (2 + usize::from(args.segments)) * DESCRIPTOR_BYTES),
            headers: place(depth * HEADER_BYTES),
            statuses: place(depth),
            data: place(depth * data_stride),
            data_stride,
            shift: args.shift as usize,
            block_size,
            segments: args.segments,
            ring_descriptors: args.ring_descriptors(),
            end,
        }
    }

    /// The queues one after the other, and the bytes that all of them need.
    pub fn of_queues(args: &Args) -> (Vec<Self>, usize) {
        let mut end = 0;
        let layouts = (0..args.queues).map(|_| {
            let layout = Self::new(args, end);
            end = layout.end;
            layout
        });
        let layouts = layouts.collect();
        (layouts, end)
    }

    /// Where a slot's data are.
    pub fn data(&self, slot: u16) -> usize {
        self.data + usize::from(slot) * self.data_stride + self.shift
    }

    /// The used index, as the backend has left it.
    pub fn used_index(&self, memory: &SharedMemory) -> u16 {
        memory.load(self.used + 2)
    }
}

/// A completed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub slot: u16,
    pub ok: bool,
}

/// A queue as its driver has it.
pub struct DriverRing {
    memory: Arc<SharedMemory>,
    layout: Layout,
    kick: Arc<Bell>,
    event_idx: bool,
    next_available: u16,
    published: u16,
    last_used: u16,
}

impl DriverRing {
    pub fn new(memory: &Arc<SharedMemory>, layout: &Layout, kick: &Arc<Bell>, event_idx: bool) -> Self {
        let (memory, layout, kick) = (Arc::clone(memory), layout.clone(), Arc::clone(kick));
        Self { memory, layout, kick, event_idx, next_available: 0, published: 0, last_used: 0 }
    }

    /// How many requests were ever made available.
    pub fn available_index(&self) -> u16 {
        self.next_available
    }

    /// Make a request available; the backend sees it after `publish`.
    pub fn add(&mut self, slot: u16, kind: Kind, sector: u64) {
        let layout = &self.layout;
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&(kind as u32).to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(layout.headers + usize::from(slot) * HEADER_BYTES, &header);
        self.memory.write(layout.statuses + usize::from(slot), &[UNTOUCHED]);
        let head = slot * layout.ring_descriptors;
        let indirect = layout.ring_descriptors == 1;
        let table_bytes = (2 + usize::from(layout.segments)) * DESCRIPTOR_BYTES;
        let table = layout.tables + usize::from(slot) * table_bytes;
        if indirect {
            self.describe(table, 0, slot, kind);
            self.put(layout.descriptors, head, table, table_bytes, FLAG_INDIRECT, 0);
        } else {
            self.describe(layout.descriptors, head, slot, kind);
        }
        let entry = usize::from(self.next_available & (layout.ring_size - 1));
        self.memory.store(layout.available + 4 + entry * 2, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// The chain of a request, from entry `first` of a table on.
    fn describe(&self, table: usize, first: u16, slot: u16, kind: Kind) {
        let layout = &self.layout;
        let header = layout.headers + usize::from(slot) * HEADER_BYTES;
        self.put(table, first, header, HEADER_BYTES, FLAG_NEXT, first + 1);
        let sectors = layout.block_size / 512;
        let flags = FLAG_NEXT | if kind == Kind::Read { FLAG_WRITE } else { 0 };
        for segment in 0..layout.segments {
            let cut = |index: u16| sectors * usize::from(index) / usize::from(layout.segments) * 512;
            let (from, to) = (cut(segment), cut(segment + 1));
            let index = first + 1 + segment;
            self.put(table, index, layout.data(slot) + from, to - from, flags, index + 1);
        }
        let status = layout.statuses + usize::from(slot);
        self.put(table, first + 1 + layout.segments, status, 1, FLAG_WRITE, 0);
    }

    fn put(&self, table: usize, index: u16, offset: usize, len: usize, flags: u16, next: u16) {
        let mut bytes = [0; DESCRIPTOR_BYTES];
        bytes[..8].copy_from_slice(&(GUEST_BASE + offset as u64).to_le_bytes());
        bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write(table + usize::from(index) * DESCRIPTOR_BYTES, &bytes);
    }

    /// Show the backend what was added, and kick it if it asks for that; whether it was kicked.
    pub fn publish(&mut self) -> bool {
        let (new, old) = (self.next_available, self.published);
        if new == old {
            return false;
        }
        self.published = new;
        self.memory.store(self.layout.available + 2, new);
        fence(Ordering::SeqCst); // the backend sees the index, or we see that it wants a kick
        let wanted = if self.event_idx {
            let event = self.memory.load(self.layout.used + 4 + usize::from(self.layout.ring_size) * 8);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.load(self.layout.used) & NO_NOTIFY == 0
        };
        if wanted {
            self.kick.ring();
        }
        wanted
    }

    /// Whether completions wait to be taken.
    pub fn has_used(&self) -> bool {
        self.layout.used_index(&self.memory) != self.last_used
    }

    /// Take a completion.
    ///
    /// # Errors
    /// One that no backend may make.
    pub fn take(&mut self) -> Result<Option<Completion>, String> {
        if !self.has_used() {
            return Ok(None);
        }
        let entry = usize::from(self.last_used & (self.layout.ring_size - 1));
        let mut head = [0; 4];
        self.memory.read(self.layout.used + 4 + entry * 8, &mut head);
        let head = u32::from_le_bytes(head);
        let each = u32::from(self.layout.ring_descriptors);
        let slot = u16::try_from(head / each).ok().filter(|_| head.is_multiple_of(each));
        let slot = slot.filter(|&slot| slot < self.layout.ring_size);
        let slot = slot.ok_or_else(|| format!("the backend has used head {head}"))?;
        self.last_used = self.last_used.wrapping_add(1);
        let mut status = [0];
        self.memory.read(self.layout.statuses + usize::from(slot), &mut status);
        Ok(Some(Completion { slot, ok: status == [0] }))
    }

    /// Ask for a notification of the next completion; the caller looks at the ring once more afterwards.
    pub fn want_notification(&self) {
        if self.event_idx {
            self.set_event(self.last_used);
        } else {
            self.memory.store(self.layout.available, 0);
        }
        fence(Ordering::SeqCst);
    }

    /// Ask for none: the ring is looked at all the time.
    pub fn want_no_notification(&self) {
        if self.event_idx {
            self.set_event(self.last_used.wrapping_add(1 << 15));
        } else {
            self.memory.store(self.layout.available, NO_INTERRUPT);
        }
    }

    fn set_event(&self, event: u16) {
        self.memory.store(self.layout.available + 4 + usize::from(self.layout.ring_size) * 2, event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(line: &str) -> (Arc<SharedMemory>, Layout, DriverRing) {
        let args = Args::parse(line.split_whitespace().map(str::to_owned)).expect("a good line");
        let (mut layouts, bytes) = Layout::of_queues(&args);
        let memory = Arc::new(SharedMemory::new(bytes).expect("memory"));
        let layout = layouts.remove(0);
        let ring = DriverRing::new(&memory, &layout, &Arc::new(Bell::new().expect("eventfd")), true);
        (memory, layout, ring)
    }

    fn descriptor(memory: &SharedMemory, at: usize) -> (u64, u32, u16, u16) {
        let mut bytes = [0; 16];
        memory.read(at, &mut bytes);
        let (address, rest) = bytes.split_first_chunk::<8>().expect("16 bytes");
        let len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let word = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
        (u64::from_le_bytes(*address) - GUEST_BASE, len, word(4), word(6))
    }

    #[test]
    fn a_request_is_header_data_and_status() {
        let (memory, layout, mut ring) = ring("--socket /s --direct --segments 2 --qd 4 --bs 1536 --shift 512");
        ring.add(1, Kind::Read, 7);
        let at = |index: usize| descriptor(&memory, layout.descriptors + index * 16);
        assert_eq!(at(4), (layout.headers as u64 + 16, 16, FLAG_NEXT, 5));
        let data = layout.data(1) as u64;
        assert_eq!(data % 4096, 512);
        assert_eq!(at(5), (data, 512, FLAG_NEXT | FLAG_WRITE, 6));
        assert_eq!(at(6), (data + 512, 1024, FLAG_NEXT | FLAG_WRITE, 7));
        assert_eq!(at(7), (layout.statuses as u64 + 1, 1, FLAG_WRITE, 0));
        assert_eq!(memory.load(layout.available + 4), 4, "its head");
    }

    #[test]
    fn an_indirect_request_takes_one_entry() {
        let (memory, layout, mut ring) = ring("--socket /s --qd 4");
        ring.add(3, Kind::Write, 0);
        assert_eq!(descriptor(&memory, layout.descriptors + 48), (layout.tables as u64 + 144, 48, FLAG_INDIRECT, 0));
        let (_, len, flags, _) = descriptor(&memory, layout.tables + 144 + 16);
        assert_eq!((len, flags), (4096, FLAG_NEXT));
    }

    #[test]
    fn the_backend_is_kicked_when_it_asks_for_that_and_is_believed_only_what_can_be() {
        let (memory, layout, mut ring) = ring("--socket /s --qd 4");
        ring.add(0, Kind::Read, 0);
        assert!(ring.publish(), "it waits for entry 0");
        ring.add(1, Kind::Read, 0);
        assert!(!ring.publish(), "it has not asked again");
        assert_eq!(ring.take(), Ok(None));
        memory.write(layout.used + 4, &1u32.to_le_bytes());
        memory.write(layout.statuses + 1, &[0]);
        memory.write(layout.used + 12, &999u32.to_le_bytes());
        memory.store(layout.used + 2, 2);
        assert_eq!(ring.take(), Ok(Some(Completion { slot: 1, ok: true })));
        assert!(ring.take().is_err());
    }
}
