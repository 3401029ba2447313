//! What is in flight on each ring, in memory that outlives this process: the frontend keeps it and brings it back.
//!
//! Whoever had the descriptor may have written it, so everything in it is checked.
//!
//! Source: QEMU docs/interop/vhost-user.rst, "Inflight I/O tracking" (split virtqueue). The trailer is ours: the
//! layout is the backend's business.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::proto::{InflightDescription, MAX_QUEUES, MAX_RING_SIZE};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mapping::Mapping;
use crate::sys::memfd;

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const ALIGN: usize = 64;
const VERSION: u16 = 1;
const TRAILER_BYTES: usize = 64;
/// "ubi" and a version: the trailer is of this program.
const TRAILER_MAGIC: u64 = 0x7562_6976_6873_0001;

const AT_VERSION: usize = 8;
const AT_DESC_NUM: usize = 10;
const AT_LAST_BATCH: usize = 12;
const AT_USED_IDX: usize = 14;

fn queue_bytes(queue_size: u16) -> usize {
    (HEADER_BYTES + ENTRY_BYTES * usize::from(queue_size)).next_multiple_of(ALIGN)
}

fn total_bytes(num_queues: u16, queue_size: u16) -> usize {
    queue_bytes(queue_size) * usize::from(num_queues) + TRAILER_BYTES
}

fn check_counts(description: &InflightDescription) -> Result<()> {
    let InflightDescription { num_queues, queue_size, .. } = *description;
    if num_queues == 0 || usize::from(num_queues) > MAX_QUEUES || queue_size == 0 || queue_size > MAX_RING_SIZE {
        let message = format!("in-flight state of {num_queues} queues of {queue_size} entries");
        return Err(Error::new(ErrorKind::InvalidParams, message));
    }
    Ok(())
}

/// The region of all rings of a session.
#[derive(Clone)]
pub struct InflightRegion {
    mapping: Arc<Mapping>,
    num_queues: u16,
    queue_size: u16,
}

impl InflightRegion {
    /// Make the file for so many queues; the frontend keeps it.
    ///
    /// # Errors
    /// `InvalidParams` for counts that cannot be; `NoSpace` and the like from the kernel.
    pub fn create(asked: &InflightDescription) -> Result<(OwnedFd, InflightDescription)> {
        check_counts(asked)?;
        let mmap_size = total_bytes(asked.num_queues, asked.queue_size) as u64;
        let file = memfd::sealed("ubi-inflight", mmap_size);
        let file = file.map_err(|error| Error::from_io("make in-flight state", &error))?;
        Ok((file, InflightDescription { mmap_size, mmap_offset: 0, ..*asked }))
    }

    /// Take a region that the frontend brings.
    ///
    /// # Errors
    /// `InvalidParams` when counts, size and file do not agree.
    pub fn open(file: &OwnedFd, description: &InflightDescription) -> Result<Self> {
        check_counts(description)?;
        let InflightDescription { mmap_size, mmap_offset, num_queues, queue_size } = *description;
        let needed = total_bytes(num_queues, queue_size) as u64;
        if mmap_size < needed || !mmap_offset.is_multiple_of(8) {
            let message = format!("in-flight state of {mmap_size} bytes; {needed} are needed");
            return Err(Error::new(ErrorKind::InvalidParams, message));
        }
        let mapping = Mapping::new(file.as_fd(), mmap_offset, needed);
        let mapping = mapping.map_err(|error| Error::from_io("map in-flight state", &error))?;
        Ok(Self { mapping: Arc::new(mapping), num_queues, queue_size })
    }

    /// The part of one ring of `ring_size` entries; None when the region has no room for it.
    pub fn queue(&self, index: usize, ring_size: u16) -> Option<InflightQueue> {
        if index >= usize::from(self.num_queues) || ring_size > self.queue_size {
            return None;
        }
        let start = index * queue_bytes(self.queue_size);
        let room = self.queue_size;
        Some(InflightQueue { mapping: Arc::clone(&self.mapping), start, room, num: ring_size, counter: 0 })
    }

    fn trailer(&self) -> usize {
        queue_bytes(self.queue_size) * usize::from(self.num_queues)
    }

    /// Put bytes into the region as whoever has its descriptor may, as many as fit.
    pub fn fill(&self, bytes: &[u8]) {
        self.mapping.write(0, &bytes[..bytes.len().min(self.mapping.len())]);
    }

    /// The cache mode that the guest had chosen; None when nobody has written any.
    pub fn writeback(&self) -> Option<bool> {
        let at = self.trailer();
        (self.mapping.load_u64(at) == TRAILER_MAGIC).then(|| self.mapping.load_u8(at + 8) != 0)
    }

    /// Keep the cache mode for the next daemon.
    pub fn set_writeback(&self, writeback: bool) {
        let at = self.trailer();
        self.mapping.store_u8(at + 8, u8::from(writeback));
        self.mapping.store_u64(at, TRAILER_MAGIC);
    }
}

/// The part of one ring. Heads are below `num`, which its users check.
pub struct InflightQueue {
    mapping: Arc<Mapping>,
    start: usize,
    /// Entries that the region has for the ring, which may be shorter.
    room: u16,
    num: u16,
    counter: u64,
}

/// What a ring has to go on with.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Heads that were taken and not answered, in the order in which they were taken.
    pub heads: Vec<u16>,
}

impl InflightQueue {
    fn entry(&self, head: u16) -> usize {
        self.start + HEADER_BYTES + usize::from(head) * ENTRY_BYTES
    }

    pub fn is_broken(&self) -> bool {
        self.mapping.is_broken()
    }

    /// Note that a request was taken.
    #[inline]
    pub fn take(&mut self, head: u16) {
        let entry = self.entry(head);
        self.mapping.store_u64(entry + 8, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.mapping.store_u8(entry, 1);
    }

    /// Link a request to the batch that is about to be published.
    #[inline]
    pub fn prepare(&self, head: u16) {
        let last = self.mapping.load_u16(self.start + AT_LAST_BATCH);
        self.mapping.store_u16(self.entry(head) + 6, last);
        self.mapping.store_u16(self.start + AT_LAST_BATCH, head);
    }

    /// Note that the batch is published, with the ring's used index.
    pub fn published(&self, heads: impl Iterator<Item = u16>, used_idx: u16) {
        for head in heads {
            self.mapping.store_u8(self.entry(head), 0);
        }
        self.mapping.store_u16(self.start + AT_USED_IDX, used_idx);
    }

    /// Take the state over: finish what the last owner was about to publish, and tell what it left.
    ///
    /// # Errors
    /// `Corrupt` for a state that no backend leaves; nothing of it was used.
    pub fn recover(&mut self, used_idx: u16) -> Result<Recovered> {
        let version = self.mapping.load_u16(self.start + AT_VERSION);
        let desc_num = self.mapping.load_u16(self.start + AT_DESC_NUM);
        if version > VERSION || desc_num > self.room {
            let message = format!("in-flight state of version {version} for {desc_num} entries of {}", self.room);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        if version == 0 || desc_num != self.num {
            // New, or of a ring of another size, which the driver has given up.
            self.begin_anew(used_idx);
            return Ok(Recovered::default());
        }
        self.finish_last_batch(used_idx)?;
        let mut left: Vec<(u64, u16)> = (0..self.num)
            .filter(|&head| self.mapping.load_u8(self.entry(head)) != 0)
            .map(|head| (self.mapping.load_u64(self.entry(head) + 8), head))
            .collect();
        left.sort_unstable();
        self.counter = left.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(Recovered { heads: left.into_iter().map(|(_, head)| head).collect() })
    }

    fn begin_anew(&self, used_idx: u16) {
        for head in 0..self.num {
            self.mapping.store_u8(self.entry(head), 0);
        }
        self.mapping.store_u16(self.start + AT_DESC_NUM, self.num);
        self.mapping.store_u16(self.start + AT_USED_IDX, used_idx);
        self.mapping.store_u16(self.start + AT_VERSION, VERSION);
    }

    /// The used index was published and the marks of its batch were not all taken off.
    fn finish_last_batch(&self, used_idx: u16) -> Result<()> {
        let batch = used_idx.wrapping_sub(self.mapping.load_u16(self.start + AT_USED_IDX));
        if batch > self.num {
            // The driver has begun the ring anew since: what was in flight before is none of its requests.
            self.begin_anew(used_idx);
        } else {
            let mut head = self.mapping.load_u16(self.start + AT_LAST_BATCH);
            for _ in 0..batch {
                if head >= self.num {
                    return Err(Error::new(ErrorKind::Corrupt, format!("in-flight state links to entry {head}")));
                }
                self.mapping.store_u8(self.entry(head), 0);
                head = self.mapping.load_u16(self.entry(head) + 6);
            }
        }
        self.mapping.store_u16(self.start + AT_USED_IDX, used_idx);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(num_queues: u16, queue_size: u16) -> (OwnedFd, InflightDescription) {
        let asked = InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues, queue_size };
        InflightRegion::create(&asked).expect("memfd")
    }

    fn queue(file: &OwnedFd, description: &InflightDescription) -> InflightQueue {
        InflightRegion::open(file, description).expect("open").queue(0, 8).expect("a queue")
    }

    #[test]
    fn what_was_taken_and_not_published_is_told_in_order() {
        let (file, description) = region(2, 8);
        let mut first = queue(&file, &description);
        assert_eq!(first.recover(0).expect("fresh"), Recovered::default());
        for head in [5, 3, 7, 1] {
            first.take(head);
        }
        first.prepare(3);
        first.published([3].into_iter(), 1);
        let mut second = queue(&file, &description);
        assert_eq!(second.recover(1).expect("state").heads, [5, 7, 1]);
        second.take(0);
        assert_eq!(queue(&file, &description).recover(1).expect("state").heads, [5, 7, 1, 0]);
    }

    #[test]
    fn a_batch_that_the_driver_has_seen_is_finished() {
        let (file, description) = region(1, 8);
        let mut first = queue(&file, &description);
        first.recover(65535).expect("fresh");
        for head in [0, 1, 2] {
            first.take(head);
        }
        first.prepare(2);
        first.prepare(0);
        // The used index went from 65535 to 1, and the daemon died.
        assert_eq!(queue(&file, &description).recover(1).expect("state").heads, [1]);
    }

    #[test]
    fn a_ring_that_was_begun_anew_has_nothing_in_flight() {
        let (file, description) = region(1, 8);
        let mut first = queue(&file, &description);
        first.recover(500).expect("fresh");
        first.take(4);
        assert_eq!(queue(&file, &description).recover(0).expect("state"), Recovered::default());
    }

    #[test]
    fn counts_sizes_and_links_are_checked() {
        let (file, description) = region(2, 8);
        for wrong in [
            InflightDescription { num_queues: 3, ..description },
            InflightDescription { queue_size: 64, ..description },
            InflightDescription { num_queues: 0, ..description },
            InflightDescription { queue_size: 0, ..description },
            InflightDescription { num_queues: 129, ..description },
            InflightDescription { queue_size: 32769, ..description },
            InflightDescription { mmap_size: description.mmap_size - 1, ..description },
            InflightDescription { mmap_size: u64::MAX, num_queues: 128, queue_size: 32768, ..description },
            InflightDescription { mmap_offset: 64, ..description },
            InflightDescription { mmap_offset: u64::MAX - 7, ..description },
        ] {
            assert!(InflightRegion::open(&file, &wrong).is_err(), "{wrong:?}");
        }
        let open = InflightRegion::open(&file, &description).expect("open");
        assert!(open.queue(2, 8).is_none() && open.queue(0, 16).is_none());
        let mut first = open.queue(0, 8).expect("a queue");
        first.recover(0).expect("fresh");
        first.mapping.store_u16(AT_LAST_BATCH, 8);
        assert!(open.queue(0, 8).expect("a queue").recover(1).is_err());
        first.mapping.store_u16(AT_DESC_NUM, 9);
        assert!(open.queue(0, 8).expect("a queue").recover(0).is_err());
    }

    #[test]
    fn the_cache_mode_is_kept() {
        let (file, description) = region(2, 8);
        let open = InflightRegion::open(&file, &description).expect("open");
        assert_eq!(open.writeback(), None);
        open.set_writeback(false);
        assert_eq!(InflightRegion::open(&file, &description).expect("open").writeback(), Some(false));
    }
}
