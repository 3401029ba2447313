//! The guest's memory: regions of files that the frontend shares. Every access is checked against them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::proto::{MAX_REGIONS, RegionDescription};
use super::ring::Segment;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mapping::Mapping;
use crate::sys::sg_list::SgList;

/// One region, mapped.
#[derive(Clone)]
pub struct Region {
    description: RegionDescription,
    mapping: Arc<Mapping>,
}

/// All regions of a session at one time; whoever works with guest memory holds one until it is done.
#[derive(Clone, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

/// Contiguous bytes of guest memory inside one region.
#[derive(Clone)]
pub struct Window {
    pub mapping: Arc<Mapping>,
    pub offset: usize,
    pub len: usize,
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidParams, message)
}

fn overlap(start: u64, other: u64, len: u64, other_len: u64) -> bool {
    start < other + other_len && other < start + len
}

impl GuestMemory {
    /// The same memory and one more region.
    ///
    /// # Errors
    /// `InvalidParams` when it wraps around, overlaps another one, is longer than its file, or is one too many.
    pub fn with(&self, description: RegionDescription, file: &OwnedFd) -> Result<Self> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(refuse(format!("there are {MAX_REGIONS} memory regions already")));
        }
        let RegionDescription { guest_address, size, user_address, mmap_offset } = description;
        if guest_address.checked_add(size).is_none() || user_address.checked_add(size).is_none() {
            return Err(refuse("a memory region leaves 64 bits"));
        }
        let clash = |other: &Region| {
            let other = &other.description;
            overlap(guest_address, other.guest_address, size, other.size)
                || overlap(user_address, other.user_address, size, other.size)
        };
        if self.regions.iter().any(clash) {
            return Err(refuse("a memory region overlaps another one"));
        }
        let mapping =
            Mapping::new(file.as_fd(), mmap_offset, size).map_err(|error| Error::from_io("map memory", &error));
        let region = Region { description, mapping: Arc::new(mapping?) };
        let mut regions = self.regions.clone();
        regions.push(region);
        Ok(Self { regions })
    }

    /// The same memory without one region.
    ///
    /// # Errors
    /// `NotFound` when there is none with these addresses and this size.
    pub fn without(&self, description: &RegionDescription) -> Result<Self> {
        let is_it = |region: &Region| {
            let known = &region.description;
            (known.guest_address, known.user_address, known.size)
                == (description.guest_address, description.user_address, description.size)
        };
        if !self.regions.iter().any(is_it) {
            return Err(Error::new(ErrorKind::NotFound, "there is no such memory region"));
        }
        Ok(Self { regions: self.regions.iter().filter(|region| !is_it(region)).cloned().collect() })
    }

    /// Note that a region's file was shrunk: the kernel could not move data from or to it (EFAULT).
    pub fn mark_broken(&self) {
        self.regions.iter().for_each(|region| region.mapping.mark_broken());
    }

    /// A region's file was shrunk by its owner.
    pub fn is_broken(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_broken())
    }

    /// Where the longest contiguous part of a guest range begins; None when nothing is there.
    #[inline]
    fn part(&self, address: u64, len: usize) -> Option<(&Region, usize, usize)> {
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.description.guest_address)?;
            let left = region.description.size.checked_sub(offset).filter(|&left| left > 0)?;
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(len);
            Some((region, offset as usize, now))
        })
    }

    /// Call `each` for every contiguous part of a guest range, which may span regions that follow one another.
    fn parts(&self, mut address: u64, mut len: usize, mut each: impl FnMut(&Mapping, usize, usize)) -> Option<()> {
        while len > 0 {
            let (region, offset, now) = self.part(address, len)?;
            each(&region.mapping, offset, now);
            len -= now;
            address = address.checked_add(now as u64).or_else(|| (len == 0).then_some(0))?;
        }
        Some(())
    }

    /// Whether all of a guest range is memory.
    #[inline]
    pub fn contains(&self, address: u64, len: usize) -> bool {
        self.parts(address, len, |_, _, _| {}).is_some()
    }

    /// Copy out; None when the range is not all memory.
    #[inline]
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Option<()> {
        let mut done = 0;
        self.parts(address, buf.len(), |mapping, offset, now| {
            mapping.read(offset, &mut buf[done..done + now]);
            done += now;
        })
    }

    /// Copy in; None when the range is not all memory, and a part may have been written then.
    #[inline]
    pub fn write(&self, address: u64, data: &[u8]) -> Option<()> {
        let mut done = 0;
        self.parts(address, data.len(), |mapping, offset, now| {
            mapping.write(offset, &data[done..done + now]);
            done += now;
        })
    }

    /// The memory of some segments as storage takes it; None when it is not all memory, or in too many pieces.
    #[inline]
    pub fn pieces(&self, segments: &[Segment]) -> Option<SgList> {
        let mut list = SgList::default();
        self.find_pieces(segments, &mut list).then_some(list)
    }

    /// The same in a list that is there already, instead of what it held; false for None.
    #[inline]
    pub fn find_pieces(&self, segments: &[Segment], list: &mut SgList) -> bool {
        list.begin_anew();
        segments.iter().all(|segment| self.add_pieces(segment, list).is_some())
    }

    #[inline]
    fn add_pieces(&self, segment: &Segment, list: &mut SgList) -> Option<()> {
        let (mut address, mut left) = (segment.address, segment.len as usize);
        while left > 0 {
            let (region, offset, now) = self.part(address, left)?;
            list.push(&region.mapping, offset, now).then_some(())?;
            left -= now;
            address = address.checked_add(now as u64).or_else(|| (left == 0).then_some(0))?;
        }
        Some(())
    }

    /// Contiguous memory by the frontend's own address.
    ///
    /// # Errors
    /// `InvalidParams` when it is not all in one region, or not aligned to `align` bytes.
    pub fn window(&self, user_address: u64, len: usize, align: usize) -> Result<Window> {
        let found = self.regions.iter().find_map(|region| {
            let offset = user_address.checked_sub(region.description.user_address)?;
            let left = region.description.size.checked_sub(offset)?;
            (left >= len as u64).then_some((region, offset as usize))
        });
        let Some((region, offset)) = found else {
            return Err(refuse(format!("{len} bytes of a ring at {user_address:#x} are not in the shared memory")));
        };
        if !region.mapping.is_aligned(offset, align) {
            return Err(refuse(format!("a part of a ring at {user_address:#x} is not aligned to {align} bytes")));
        }
        Ok(Window { mapping: Arc::clone(&region.mapping), offset, len })
    }
}

impl Window {
    #[inline]
    pub fn read(&self, at: usize, buf: &mut [u8]) {
        assert!(at + buf.len() <= self.len, "an access leaves its window");
        self.mapping.read(self.offset + at, buf);
    }

    #[inline]
    pub fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.len, "an access leaves its window");
        self.mapping.write(self.offset + at, data);
    }

    #[inline]
    pub fn load_u16(&self, at: usize) -> u16 {
        assert!(at + 2 <= self.len, "an access leaves its window");
        self.mapping.load_u16(self.offset + at)
    }

    #[inline]
    pub fn store_u16(&self, at: usize, value: u16) {
        assert!(at + 2 <= self.len, "an access leaves its window");
        self.mapping.store_u16(self.offset + at, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd;

    fn region(guest_address: u64, size: u64, user_address: u64, mmap_offset: u64) -> RegionDescription {
        RegionDescription { guest_address, size, user_address, mmap_offset }
    }

    #[test]
    fn a_range_may_span_regions_and_not_leave_them() {
        let file = memfd::sealed("m", 16384).expect("memfd");
        let memory = GuestMemory::default().with(region(4096, 4096, 1 << 40, 0), &file).expect("map");
        let memory = memory.with(region(8192, 4096, 2 << 40, 8192), &file).expect("map");
        memory.write(8190, &[1, 2, 3, 4]).expect("in both");
        let mut seen = [0; 4];
        memory.read(8190, &mut seen).expect("in both");
        assert_eq!(seen, [1, 2, 3, 4]);
        for (address, len) in [(4095, 2), (12287, 2), (0, 1), (u64::MAX, 1), (4096, 8193), (u64::MAX, 2)] {
            assert!(!memory.contains(address, len), "{len} at {address}");
        }
        assert!(memory.contains(4096, 8192));
        assert!(memory.window((1 << 40) + 4094, 4, 2).is_err(), "a ring is in one region");
        assert!(memory.window((1 << 40) + 1, 4, 2).is_err(), "and aligned");
        assert!(memory.window(1 << 40, 4096, 16).is_ok());
    }

    #[test]
    fn regions_do_not_overlap_wrap_or_outgrow_their_file() {
        let file = memfd::sealed("m", 8192).expect("memfd");
        let memory = GuestMemory::default().with(region(0, 4096, 0, 0), &file).expect("map");
        for wrong in [
            region(0, 4096, 1 << 40, 0),
            region(1 << 40, 4096, 100, 0),
            region(1 << 20, 8193, 1 << 20, 0),
            region(1 << 20, 4096, 1 << 20, 8192),
            region(u64::MAX, 4096, 1 << 20, 0),
            region(1 << 20, 4096, u64::MAX, 0),
            region(1 << 20, 0, 1 << 20, 0),
            region(1 << 20, 4096, 1 << 20, u64::MAX),
        ] {
            assert!(memory.with(wrong, &file).is_err(), "{wrong:?}");
        }
        assert!(memory.without(&region(0, 4096, 1, 0)).is_err());
        assert!(memory.without(&region(0, 4096, 0, 0)).is_ok());
    }
}
