//! A driver: the other side of a split ring, kept by `virtio-queue` in memory of `vm-memory`.

use std::time::Instant;

use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{MEMORY_AT, PATIENCE};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Memory of one ring; memory of one request's data and where it begins.
const RING_BYTES: u64 = 0x8000;
const DATA_AT: u64 = MEMORY_AT + 0x10_0000;
const DATA_BYTES: u64 = 0x8000;

/// A request: its kind, its place, and the bytes that go out or the number of bytes that come in.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub kind: u32,
    pub sector: u64,
    pub out: &'a [u8],
    pub into: u32,
}

impl<'a> Request<'a> {
    pub fn read(sector: u64, into: u32) -> Self {
        Self { kind: super::IN, sector, out: &[], into }
    }

    pub fn write(sector: u64, out: &'a [u8]) -> Self {
        Self { kind: super::OUT, sector, out, into: 0 }
    }

    pub fn other(kind: u32, out: &'a [u8]) -> Self {
        Self { kind, sector: 0, out, into: 0 }
    }
}

/// See the module. Requests use the descriptors 4n to 4n + 2.
pub struct Driver<'m> {
    memory: &'m GuestMemoryMmap,
    index: usize,
    num: u16,
    table: DescriptorTable<'m, GuestMemoryMmap>,
    available: AvailRing<'m, GuestMemoryMmap>,
    used: UsedRing<'m, GuestMemoryMmap>,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    /// Which part of the data memory single requests use.
    pub slot: u16,
    seen: u16,
}

impl<'m> Driver<'m> {
    /// A ring of `num` entries in its own part of the memory; `index` is below 16.
    pub fn new(memory: &'m GuestMemoryMmap, index: usize, num: u16) -> Self {
        let at = MEMORY_AT + index as u64 * RING_BYTES;
        let event = || EventFd::new(EFD_NONBLOCK).expect("eventfd");
        Self {
            memory,
            index,
            num,
            table: DescriptorTable::new(memory, GuestAddress(at), num),
            available: AvailRing::new(memory, GuestAddress(at + 0x4000), num),
            used: UsedRing::new(memory, GuestAddress(at + 0x5000), num),
            kick: event(),
            call: event(),
            err: event(),
            slot: 0,
            seen: 0,
        }
    }

    fn user_address(&self, guest: u64) -> u64 {
        self.memory.get_host_address(GuestAddress(guest)).expect("in memory") as u64
    }

    pub fn config(&self) -> VringConfigData {
        let at = MEMORY_AT + self.index as u64 * RING_BYTES;
        VringConfigData {
            queue_max_size: self.num,
            queue_size: self.num,
            flags: 0,
            desc_table_addr: self.user_address(at),
            avail_ring_addr: self.user_address(at + 0x4000),
            used_ring_addr: self.user_address(at + 0x5000),
            log_addr: None,
        }
    }

    /// One of the six messages that start a ring.
    pub fn set_up_by(&self, step: usize, frontend: &mut Frontend) -> vhost::Result<()> {
        match step {
            0 => frontend.set_vring_num(self.index, self.num),
            1 => frontend.set_vring_base(self.index, self.seen),
            2 => frontend.set_vring_addr(self.index, &self.config()),
            3 => frontend.set_vring_call(self.index, &self.call),
            4 => frontend.set_vring_kick(self.index, &self.kick),
            _ => frontend.set_vring_enable(self.index, true),
        }
    }

    /// Start the ring.
    pub fn set_up(&self, frontend: &mut Frontend) {
        frontend.set_vring_err(self.index, &self.err).expect("err");
        for step in 0..6 {
            self.set_up_by(step, frontend).expect("a ring");
        }
    }

    fn data_at(slot: u16) -> u64 {
        DATA_AT + u64::from(slot) * DATA_BYTES
    }

    /// Make a request available without a kick.
    pub fn offer(&mut self, slot: u16, request: &Request<'_>) {
        let at = Self::data_at(slot);
        let write = |bytes: &[u8], at: u64| self.memory.write_slice(bytes, GuestAddress(at)).expect("in memory");
        write(&[request.kind.to_le_bytes(), [0; 4]].concat(), at);
        write(&request.sector.to_le_bytes(), at + 8);
        write(&[0xff], at + 16);
        write(request.out, at + 512);
        let mut pieces = vec![(at, 16, 0)];
        if !request.out.is_empty() {
            pieces.push((at + 512, request.out.len() as u32, 0));
        }
        if request.into > 0 {
            pieces.push((at + 512, request.into, WRITE));
        }
        pieces.push((at + 16, 1, WRITE));
        let (head, last) = (slot * 4, pieces.len() - 1);
        for (number, (at, len, flags)) in pieces.into_iter().enumerate() {
            let index = head + number as u16;
            let next = if number < last { NEXT } else { 0 };
            let descriptor = Descriptor::new(at, len, flags | next, index + 1);
            self.table.store(index, RawDescriptor::from(descriptor)).expect("a descriptor");
        }
        let available = self.available.idx().load();
        self.available.ring().ref_at(usize::from(available % self.num)).expect("an entry").store(head);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.available.idx().store(available.wrapping_add(1));
    }

    /// Look at used entries up to now; each with its slot and how many bytes the device wrote.
    ///
    /// What is published while used_event is being set brings no notification: it is looked for once more.
    pub fn take(&mut self) -> Vec<(u16, u32)> {
        let mut taken = Vec::new();
        loop {
            while self.seen != self.used.idx().load() {
                let entry = self.used.ring().ref_at(usize::from(self.seen % self.num)).expect("an entry").load();
                taken.push(((entry.id() / 4) as u16, entry.len()));
                self.seen = self.seen.wrapping_add(1);
            }
            // used_event, for who has negotiated EVENT_IDX; nobody looks at it else.
            let at = MEMORY_AT + self.index as u64 * RING_BYTES + 0x4000 + 4 + 2 * u64::from(self.num);
            self.memory.write_obj(self.seen, GuestAddress(at)).expect("in memory");
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if self.seen == self.used.idx().load() {
                return taken;
            }
        }
    }

    /// Wait for `count` completions, asleep on the call descriptor.
    pub fn wait(&mut self, count: usize) -> Vec<(u16, u32)> {
        let (deadline, mut done) = (Instant::now() + PATIENCE, self.take());
        while done.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} requests are complete", done.len());
            if self.call.read().is_err() {
                std::thread::sleep(std::time::Duration::from_micros(50));
                continue;
            }
            done.extend(self.take());
        }
        done
    }

    /// Carry out one request; its status and how many bytes the device wrote.
    pub fn run(&mut self, request: &Request<'_>) -> (u8, u32) {
        self.offer(self.slot, request);
        self.kick.write(1).expect("kick");
        let done = self.wait(1);
        assert_eq!((done.len(), done[0].0), (1, self.slot));
        (self.status(self.slot), done[0].1)
    }

    pub fn status(&self, slot: u16) -> u8 {
        self.memory.read_obj(GuestAddress(Self::data_at(slot) + 16)).expect("in memory")
    }

    /// What a request has read.
    pub fn data(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(Self::data_at(slot) + 512)).expect("in memory");
        data
    }

    /// The first block is read as it was written last, whatever that was.
    pub fn is_served(&mut self) -> bool {
        self.run(&Request::read(0, 512)) == (0, 513)
    }
}
