//! A shared region of anonymous memory that several threads read and write at will: the malloc bdev's store.

use std::io;
use std::ptr::NonNull;

use super::sg_list::SgList;

/// A region of so many bytes is not in the CPU's caches for the most part.
const UNCACHED_BYTES: usize = 32 << 20;
/// Shorter copies are not worth a way of their own.
const STREAM_MIN: usize = 2048;

/// Most that is worth being brought nearer: of more, the CPU sees by itself what comes next.
const NEARER_MAX: usize = 4096;
/// Bytes of a line of the CPU's caches.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Zero-filled anonymous memory. Concurrent overlapping accesses give a mix of bytes, as on a disk.
pub struct SharedMemory {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the region is plain memory that is reached through raw pointers only, never through references.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; `read` and `write` copy between the region and the caller's own memory.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Map `len` bytes (not 0), in large pages where there are any: looking up a small one takes as long as copying a third
    /// of it. Fails with ENOMEM when the kernel would not back them.
    pub fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ptr: NonNull<u8> = NonNull::new(ptr.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: the range was just mapped; the advice changes the size of its pages and nothing else.
        let _ = unsafe { libc::madvise(ptr.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(Self { ptr, len })
    }

    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(offset).expect("checked at the bdev border");
        assert!(offset <= self.len && len <= self.len - offset, "checked at the bdev border");
        // SAFETY: the offset lies within the mapping, asserted above.
        unsafe { self.ptr.as_ptr().add(offset) }
    }

    /// Copy out. Panics when the range leaves the region.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let source = self.at(offset, buf.len());
        // SAFETY: `source` is valid for the length; `buf` is ours alone and no part of the region.
        unsafe { std::ptr::copy_nonoverlapping(source, buf.as_mut_ptr(), buf.len()) }
    }

    /// Copy in. Panics when the range leaves the region.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let target = self.at(offset, data.len());
        // SAFETY: `target` is valid for the length; `data` is no part of the region.
        unsafe { self.copy_in(data.as_ptr(), target, data.len()) }
    }

    /// Copy into the region; past the caches if its bytes are not there anyway, which saves reading what is replaced.
    ///
    /// # Safety
    /// Both are valid for `len` bytes and do not overlap.
    unsafe fn copy_in(&self, source: *const u8, target: *mut u8, len: usize) {
        let streamed = if self.len >= UNCACHED_BYTES && len >= STREAM_MIN && target.addr().is_multiple_of(STREAM_UNIT) {
            // SAFETY: as promised by the caller; aligned as just seen.
            unsafe { stream(source, target, len) }
        } else {
            0
        };
        let (source, target) = (source.wrapping_add(streamed), target.wrapping_add(streamed));
        // SAFETY: as promised by the caller; what is left of both.
        unsafe { std::ptr::copy_nonoverlapping(source, target, len - streamed) }
    }

    /// Have the CPU fetch the beginning of a range that is read soon, while it does other work. Nothing where the range
    /// leaves the region, or is likely to be in the caches.
    #[inline]
    pub fn bring_nearer(&self, offset: u64, len: usize) {
        let Ok(offset) = usize::try_from(offset) else { return };
        if self.len >= UNCACHED_BYTES && offset <= self.len && len <= self.len - offset {
            fetch(self.ptr.as_ptr().wrapping_add(offset), len.min(NEARER_MAX));
        }
    }

    /// Copy out into memory that others share. Panics when the range leaves the region.
    pub fn read_sg(&self, offset: u64, target: &SgList) {
        let mut source = self.at(offset, target.len());
        for piece in target.iovecs() {
            // SAFETY: `source` has as many bytes left as the pieces, which lie in mappings that the list keeps and which
            // are no part of the region.
            unsafe { std::ptr::copy_nonoverlapping(source, piece.iov_base.cast(), piece.iov_len) };
            source = source.wrapping_add(piece.iov_len);
        }
    }

    /// Copy in from memory that others share. Panics when the range leaves the region.
    pub fn write_sg(&self, offset: u64, source: &SgList) {
        let mut target = self.at(offset, source.len());
        for piece in source.iovecs() {
            // SAFETY: as above, the other way round.
            unsafe { self.copy_in(piece.iov_base.cast(), target, piece.iov_len) };
            target = target.wrapping_add(piece.iov_len);
        }
    }

    /// Zero a range, giving whole pages back to the kernel.
    pub fn zero(&self, offset: u64, len: u64) {
        const PAGE: u64 = 4096;
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(PAGE), end - end % PAGE);
        if first >= last {
            return self.fill_zero(offset, len);
        }
        self.fill_zero(offset, first - offset);
        self.fill_zero(last, end - last);
        let target = self.at(first, (last - first) as usize);
        // SAFETY: whole pages of our own private mapping; they read as zeros afterwards.
        let result = unsafe { libc::madvise(target.cast(), (last - first) as usize, libc::MADV_DONTNEED) };
        if result < 0 {
            self.fill_zero(first, last - first);
        }
    }

    fn fill_zero(&self, offset: u64, len: u64) {
        let target = self.at(offset, len as usize);
        // SAFETY: `target` is valid for the length.
        unsafe { std::ptr::write_bytes(target, 0, len as usize) }
    }
}

/// Bytes of one store past the caches, and its alignment.
const STREAM_UNIT: usize = 16;

/// Copy whole units with stores past the caches; how many bytes that were. Other threads see them as they see others.
///
/// # Safety
/// Both are valid for `len` bytes and do not overlap; `target` is aligned to a unit.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(source: *const u8, target: *mut u8, len: usize) -> usize {
    use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    let whole = len - len % STREAM_UNIT;
    for at in (0..whole).step_by(STREAM_UNIT) {
        // SAFETY: within the length, as promised by the caller; the load needs no alignment.
        let unit = unsafe { _mm_loadu_si128(source.wrapping_add(at).cast::<__m128i>()) };
        // SAFETY: within the length and aligned, as promised by the caller; the fence below ends it.
        unsafe { _mm_stream_si128(target.wrapping_add(at).cast::<__m128i>(), unit) };
    }
    // SAFETY: every x86-64 CPU has the instruction. Stores past the caches are seen in order by its help alone.
    unsafe { _mm_sfence() };
    whole
}

/// Begin to fetch lines into the second cache: the first one is smaller than the copies that are made meanwhile.
#[cfg(target_arch = "x86_64")]
fn fetch(start: *const u8, len: usize) {
    use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    for at in (0..len).step_by(LINE) {
        // SAFETY: a prefetch is a hint, which reads nothing and cannot fault; every x86-64 CPU has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast()) };
    }
}

/// No such hint is known here.
#[cfg(not(target_arch = "x86_64"))]
fn fetch(_start: *const u8, _len: usize) {}

/// No way past the caches is known here.
///
/// # Safety
/// None is needed.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(_source: *const u8, _target: *mut u8, _len: usize) -> usize {
    0
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody holds a pointer into it any more.
        let _ = unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_changes_exactly_its_range_whatever_its_place_and_length() {
        for len in [64 << 10, UNCACHED_BYTES] {
            let memory = SharedMemory::new(len).expect("mmap");
            let data: Vec<u8> = (0..9000u32).map(|value| (value % 251) as u8 + 1).collect();
            for (offset, len) in [(512, 4096), (513, 4096), (1024, 2047), (1040, 2063), (16, 9000)] {
                memory.zero(0, 16 << 10);
                memory.write(offset, &data[..len]);
                let mut all = vec![9; 16 << 10];
                memory.read(0, &mut all);
                let end = offset as usize + len;
                assert_eq!(all[offset as usize..end], data[..len], "{len} at {offset}");
                assert!(all[..offset as usize].iter().chain(&all[end..]).all(|&byte| byte == 0), "{len} at {offset}");
            }
        }
    }

    #[test]
    fn any_range_may_be_asked_to_come_nearer() {
        let memory = SharedMemory::new(UNCACHED_BYTES).expect("mmap");
        memory.write(UNCACHED_BYTES as u64 - 2, &[7, 8]);
        for (offset, len) in [(0, 4096), (UNCACHED_BYTES as u64 - 2, 2), (UNCACHED_BYTES as u64, 0), (1, usize::MAX)] {
            memory.bring_nearer(offset, len);
        }
        memory.bring_nearer(u64::MAX, 512);
        let mut end = [0; 2];
        memory.read(UNCACHED_BYTES as u64 - 2, &mut end);
        assert_eq!(end, [7, 8]);
    }

    #[test]
    fn zero_clears_exactly_its_range() {
        let memory = SharedMemory::new(64 << 10).expect("mmap");
        memory.write(0, &vec![7u8; 64 << 10]);
        memory.zero(100, 20_000);
        let mut all = vec![0u8; 64 << 10];
        memory.read(0, &mut all);
        for (index, &byte) in all.iter().enumerate() {
            assert_eq!(byte, if (100..20_100).contains(&index) { 0 } else { 7 }, "at {index}");
        }
    }
}
