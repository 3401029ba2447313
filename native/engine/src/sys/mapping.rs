//! Shared mappings of files that another process owns and may shrink at any time; see [`super::sigbus`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, fence};

use super::sigbus::Guard;

/// A part of a file mapped shared. Concurrent accesses by its owner give a mix of bytes, as memory does.
pub struct Mapping {
    base: NonNull<u8>,
    mapped_len: usize,
    /// Where the part begins in the mapping, which begins at a page.
    skip: usize,
    len: usize,
    guard: Guard,
}

// SAFETY: the mapping is reached through raw pointers and atomics only, never through references to its bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map `len` bytes (not 0) of a regular file from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` when the file is none or has not that many bytes; what mmap says.
    pub fn new(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        // SAFETY: all-zero bytes are a valid stat.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is valid for writes.
        if unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(invalid("memory is not a regular file"));
        }
        let end = offset.checked_add(len).ok_or_else(|| invalid("memory leaves 64 bits"))?;
        if len == 0 || end > stat.st_size.cast_unsigned() {
            return Err(invalid("memory is longer than its file"));
        }
        let page = u64::try_from(stat.st_blksize).unwrap_or(0).max(4096);
        let page = if page.is_power_of_two() { page } else { 4096 };
        let (first, last) = (offset - offset % page, end.checked_next_multiple_of(page));
        let last = last.filter(|&last| i64::try_from(last).is_ok()).ok_or_else(|| invalid("memory leaves 63 bits"))?;
        let too_long = |_| invalid("memory is longer than an address space");
        let (mapped_len, len) =
            (usize::try_from(last - first).map_err(too_long)?, usize::try_from(len).map_err(too_long)?);
        let guard = Guard::take()?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), mapped_len, protection, flags, file.as_raw_fd(), first.cast_signed())
        };
        let Some(base) = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED) else {
            return Err(io::Error::last_os_error());
        };
        // SAFETY: the range was just mapped. A core dump of ours does not hold the peer's memory.
        let _ = unsafe { libc::madvise(base.as_ptr().cast(), mapped_len, libc::MADV_DONTDUMP) };
        // SAFETY: the range was just mapped and is unmapped by `drop` after `stop`; its bytes may be anything at any time.
        unsafe { guard.watch(base.as_ptr() as usize, mapped_len) };
        Ok(Self { base, mapped_len, skip: (offset - first) as usize, len, guard })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The owner has shrunk its file: what was read since is worth nothing.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.guard.is_broken()
    }

    /// Note that the owner has shrunk its file: the kernel has met that where we have not.
    pub fn mark_broken(&self) {
        self.guard.break_it();
    }

    /// A pointer to `len` bytes from `offset` on.
    ///
    /// # Panics
    /// When they leave the mapping; callers have checked what comes from outside.
    #[inline]
    pub(super) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "an access leaves its mapping");
        // SAFETY: the offset lies within the mapping, asserted above.
        unsafe { self.base.as_ptr().add(self.skip + offset) }
    }

    /// Copy out.
    #[inline]
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        let source = self.at(offset, buf.len());
        // SAFETY: `source` is valid for the length; `buf` is ours alone and no part of the mapping.
        unsafe { std::ptr::copy_nonoverlapping(source, buf.as_mut_ptr(), buf.len()) }
    }

    /// Copy in.
    #[inline]
    pub fn write(&self, offset: usize, data: &[u8]) {
        let target = self.at(offset, data.len());
        // SAFETY: `target` is valid for the length; `data` is no part of the mapping.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) }
    }

    /// Whether a value of `size` bytes can be accessed atomically at `offset`.
    pub fn is_aligned(&self, offset: usize, size: usize) -> bool {
        (self.base.as_ptr() as usize + self.skip + offset).is_multiple_of(size)
    }
}

macro_rules! atomic_access {
    ($load:ident, $store:ident, $value:ty, $atomic:ty) => {
        impl Mapping {
            /// Load a little-endian value. Panics when it leaves the mapping or is not aligned.
            #[inline]
            pub fn $load(&self, offset: usize) -> $value {
                let pointer = self.at(offset, size_of::<$value>());
                assert!(pointer.addr().is_multiple_of(size_of::<$value>()), "an unaligned access");
                // SAFETY: in bounds and aligned; the memory outlives the reference and is only accessed atomically
                // or by raw copies here.
                let place = unsafe { <$atomic>::from_ptr(pointer.cast()) };
                <$value>::from_le(place.load(Ordering::Acquire))
            }

            /// Store a little-endian value; what was written before is seen before it.
            #[inline]
            pub fn $store(&self, offset: usize, value: $value) {
                let pointer = self.at(offset, size_of::<$value>());
                assert!(pointer.addr().is_multiple_of(size_of::<$value>()), "an unaligned access");
                // SAFETY: as for the load.
                let place = unsafe { <$atomic>::from_ptr(pointer.cast()) };
                place.store(value.to_le(), Ordering::Release);
            }
        }
    };
}

atomic_access!(load_u8, store_u8, u8, AtomicU8);
atomic_access!(load_u16, store_u16, u16, AtomicU16);
atomic_access!(load_u64, store_u64, u64, AtomicU64);

impl Mapping {
    /// Set bits of a byte that others set bits of as well.
    pub fn or_u8(&self, offset: usize, bits: u8) {
        let pointer = self.at(offset, 1);
        // SAFETY: in bounds; a byte is always aligned.
        let place = unsafe { AtomicU8::from_ptr(pointer) };
        place.fetch_or(bits, Ordering::AcqRel);
    }
}

/// Order what was stored before against what is loaded after, as two sides do that wake each other.
#[inline]
pub fn full_fence() {
    fence(Ordering::SeqCst);
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard.stop();
        // SAFETY: the mapping is ours, and nobody holds a pointer into it any more.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::memfd;

    #[test]
    fn a_file_that_shrinks_breaks_its_mapping_and_nothing_else() {
        let file = memfd::unsealed("a", 3 << 12).expect("memfd");
        let other = memfd::unsealed("b", 1 << 12).expect("memfd");
        let mapping = Mapping::new(file.as_fd(), 4096, 8192).expect("map");
        let second = Mapping::new(other.as_fd(), 0, 4096).expect("map");
        mapping.write(0, &[7; 8192]);
        second.write(0, &[9; 16]);
        memfd::resize(file.as_fd(), 4096).expect("shrink");
        let mut seen = [1; 16];
        mapping.read(4000, &mut seen);
        assert!(mapping.is_broken());
        assert_eq!(seen, [0; 16]);
        mapping.store_u16(8190, 5);
        assert!(!second.is_broken());
        second.read(0, &mut seen);
        assert_eq!(seen, [9; 16]);
    }

    #[test]
    fn more_than_the_file_has_cannot_be_mapped() {
        let file = memfd::unsealed("a", 8192).expect("memfd");
        for (offset, len) in [(0, 8193), (8192, 1), (u64::MAX, 1), (1, u64::MAX), (0, 0)] {
            assert!(Mapping::new(file.as_fd(), offset, len).is_err(), "{len} at {offset}");
        }
        let mapping = Mapping::new(file.as_fd(), 16, 8176).expect("map");
        assert_eq!(mapping.len(), 8176);
        assert!(mapping.is_aligned(0, 8) && !mapping.is_aligned(1, 2));
    }

    #[test]
    #[should_panic(expected = "leaves its mapping")]
    fn an_access_past_the_end_panics() {
        let file = memfd::unsealed("a", 8192).expect("memfd");
        Mapping::new(file.as_fd(), 0, 100).expect("map").load_u8(100);
    }
}
