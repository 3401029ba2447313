//! A split virtqueue, the device's side of it. What the guest writes is read once, into private memory, and checked.
//!
//! Source: virtio 1.2, 2.7 ("Split Virtqueues").

use smallvec::SmallVec;

use super::memory::{GuestMemory, Window};
use super::proto::{MAX_RING_SIZE, RingAddresses};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mapping::full_fence;

const DESCRIPTOR_BYTES: usize = 16;
const USED_BYTES: usize = 8;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Descriptors of one chain, an indirect table's included.
pub const MAX_CHAIN: usize = 1024;

/// A piece of guest memory that a chain names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub len: u32,
}

/// What the driver made available: a head and its memory, checked to be memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    pub head: u16,
    /// The device reads these.
    pub readable: SmallVec<[Segment; 4]>,
    /// The device writes these.
    pub writable: SmallVec<[Segment; 4]>,
}

/// A ring that breaks the rules; nothing more is taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

type Checked<T> = std::result::Result<T, Violation>;

fn violation<T>(message: impl Into<String>) -> Checked<T> {
    Err(Violation(message.into()))
}

/// Where a ring is and how long it is.
#[derive(Debug, Clone, Copy)]
pub struct RingPlace {
    pub num: u16,
    pub addresses: RingAddresses,
}

/// A split ring and how far both sides have come.
pub struct Ring {
    num: u16,
    descriptors: Window,
    available: Window,
    used: Window,
    event_idx: bool,
    /// The next available entry to take.
    next_available: u16,
    /// The next used entry to fill.
    next_used: u16,
    /// `next_used` when the driver was last notified.
    notified_at: u16,
    /// A notification has been decided on at least once, so that `notified_at` means something.
    notified: bool,
}

impl Ring {
    /// A ring in the memory that is shared now.
    ///
    /// # Errors
    /// `InvalidParams` for a size that is no power of two, or parts that are outside of the memory or not aligned.
    pub fn new(memory: &GuestMemory, place: RingPlace, base: u16, event_idx: bool) -> Result<Self> {
        let RingPlace { num, addresses } = place;
        if !num.is_power_of_two() || num > MAX_RING_SIZE {
            let message = format!("a ring has {num} entries, which is no power of two up to {MAX_RING_SIZE}");
            return Err(Error::new(ErrorKind::InvalidParams, message));
        }
        let entries = usize::from(num);
        let used = memory.window(addresses.used, 6 + entries * USED_BYTES, 4)?;
        let next_used = used.load_u16(2);
        Ok(Self {
            num,
            descriptors: memory.window(addresses.descriptors, entries * DESCRIPTOR_BYTES, 16)?,
            available: memory.window(addresses.available, 6 + entries * 2, 2)?,
            used,
            event_idx,
            next_available: base,
            next_used,
            notified_at: next_used,
            notified: false,
        })
    }

    pub fn num(&self) -> u16 {
        self.num
    }

    /// The next available entry to take; what GET_VRING_BASE tells once all that was taken is done.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    pub fn set_next_available(&mut self, base: u16) {
        self.next_available = base;
    }

    /// How many requests the driver has seen completed.
    pub fn used_idx(&self) -> u16 {
        self.next_used
    }

    pub fn is_broken(&self) -> bool {
        self.available.mapping.is_broken() || self.used.mapping.is_broken() || self.descriptors.mapping.is_broken()
    }

    /// How many entries wait to be taken.
    ///
    /// # Errors
    /// More than the ring has.
    #[inline]
    pub fn waiting(&self) -> Checked<u16> {
        let waiting = self.available.load_u16(2).wrapping_sub(self.next_available);
        if waiting > self.num {
            return violation(format!("the available index is {waiting} entries ahead in a ring of {}", self.num));
        }
        Ok(waiting)
    }

    /// Take the next head of those that `waiting` has counted.
    ///
    /// # Errors
    /// A head outside of the ring.
    #[inline]
    pub fn take_head(&mut self) -> Checked<u16> {
        let slot = usize::from(self.next_available & (self.num - 1));
        let head = self.available.load_u16(4 + slot * 2);
        if head >= self.num && !fault!(HeadTrusted) {
            return violation(format!("head {head} in a ring of {}", self.num));
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(head)
    }

    /// Read the chain that starts at `head` (below the ring's size).
    ///
    /// # Errors
    /// A loop, an index outside of the table, memory that is not shared, an empty descriptor, writable before
    /// readable, an indirect table inside another or beside other descriptors, or of a wrong size.
    pub fn chain(&self, memory: &GuestMemory, head: u16, indirect: bool) -> Checked<Chain> {
        let mut chain = Chain { head, ..Chain::default() };
        let mut index = head;
        for taken in 0.. {
            if taken >= self.num {
                return violation("a chain is longer than the ring: it has a loop");
            }
            let mut bytes = [0; DESCRIPTOR_BYTES];
            self.descriptors.read(usize::from(index) * DESCRIPTOR_BYTES, &mut bytes);
            let descriptor = Descriptor::parse(&bytes);
            if descriptor.flags & FLAG_INDIRECT != 0 {
                if !indirect {
                    return violation("an indirect descriptor that was not negotiated");
                }
                if descriptor.flags & (FLAG_NEXT | FLAG_WRITE) != 0 {
                    return violation("an indirect descriptor with other flags");
                }
                chain.follow_table(memory, &descriptor)?;
                return Ok(chain);
            }
            chain.add(memory, &descriptor)?;
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(chain);
            }
            if descriptor.next >= self.num {
                return violation(format!("descriptor {} in a ring of {}", descriptor.next, self.num));
            }
            index = descriptor.next;
        }
        violation("a chain without an end")
    }

    /// Put a request into the used ring; the driver sees it after `publish`.
    #[inline]
    pub fn push_used(&mut self, head: u16, written: u32) {
        let slot = usize::from(self.next_used & (self.num - 1));
        let mut entry = [0; USED_BYTES];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        self.used.write(4 + slot * USED_BYTES, &entry);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Show the driver everything that was pushed.
    #[inline]
    pub fn publish(&mut self) {
        self.used.store_u16(2, self.next_used);
    }

    /// Whether the driver wants to hear of what was published since it last heard.
    #[inline]
    pub fn wants_notification(&mut self) -> bool {
        full_fence(); // the driver sees the index, or we see its event
        if !self.event_idx {
            return self.available.load_u16(0) & AVAIL_NO_INTERRUPT == 0;
        }
        let event = self.available.load_u16(4 + usize::from(self.num) * 2);
        let (new, old) = (self.next_used, self.notified_at);
        let wanted = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        let wanted = wanted || !self.notified;
        self.notified = true;
        self.notified_at = new;
        wanted
    }

    /// Ask for no kicks: the ring is looked at without.
    #[inline]
    pub fn disable_kicks(&self) {
        if !self.event_idx {
            self.used.store_u16(0, USED_NO_NOTIFY);
        }
    }

    /// Ask for a kick at the next entry; the caller looks at the ring once more afterwards.
    #[inline]
    pub fn enable_kicks(&self) {
        if self.event_idx {
            self.used.store_u16(4 + usize::from(self.num) * USED_BYTES, self.next_available);
        } else {
            self.used.store_u16(0, 0);
        }
        full_fence();
    }

    /// The range of a used entry and the index, relative to the used ring, for the log of dirty pages.
    pub fn used_len(&self) -> usize {
        self.used.len
    }
}

/// A descriptor, read once.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn parse(bytes: &[u8; DESCRIPTOR_BYTES]) -> Self {
        let (address, rest) = bytes.split_first_chunk::<8>().expect("16 bytes");
        Self {
            address: u64::from_le_bytes(*address),
            len: u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]),
            flags: u16::from_le_bytes([rest[4], rest[5]]),
            next: u16::from_le_bytes([rest[6], rest[7]]),
        }
    }
}

impl Chain {
    fn add(&mut self, memory: &GuestMemory, descriptor: &Descriptor) -> Checked<()> {
        let Descriptor { address, len, .. } = *descriptor;
        if len == 0 {
            return violation("an empty descriptor");
        }
        if !memory.contains(address, len as usize) && !fault!(DescriptorTrusted) {
            return violation(format!("a descriptor of {len} bytes at {address:#x} is outside of the shared memory"));
        }
        let segment = Segment { address, len };
        if descriptor.flags & FLAG_WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return violation("a readable descriptor behind a writable one");
        }
        Ok(())
    }

    /// Read an indirect table, copied before it is looked at.
    fn follow_table(&mut self, memory: &GuestMemory, descriptor: &Descriptor) -> Checked<()> {
        let bytes = descriptor.len as usize;
        let entries = bytes / DESCRIPTOR_BYTES;
        if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR_BYTES) || entries > MAX_CHAIN {
            return violation(format!("an indirect table of {bytes} bytes"));
        }
        let mut table: SmallVec<[u8; 8 * DESCRIPTOR_BYTES]> = smallvec::smallvec![0; bytes];
        if memory.read(descriptor.address, &mut table).is_none() {
            return violation(format!(
                "an indirect table at {:#x} is outside of the shared memory",
                descriptor.address
            ));
        }
        let mut index = 0;
        for _ in 0..entries {
            let entry = table[index * DESCRIPTOR_BYTES..].first_chunk().expect("a whole table");
            let descriptor = Descriptor::parse(entry);
            if descriptor.flags & FLAG_INDIRECT != 0 {
                return violation("an indirect table inside another");
            }
            self.add(memory, &descriptor)?;
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(());
            }
            index = usize::from(descriptor.next);
            if index >= entries {
                return violation(format!("descriptor {index} in an indirect table of {entries}"));
            }
        }
        violation("an indirect table has a loop")
    }
}

#[cfg(test)]
mod tests;
