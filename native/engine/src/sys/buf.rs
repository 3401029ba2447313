//! Aligned buffers for storage I/O, recycled per thread.
//!
//! Every buffer is zeroed when it is first allocated and reused afterwards without being cleared:
//! whoever hands a buffer to a client proves first that all of it was filled (INV-7).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every buffer in bytes: enough for O_DIRECT on any device in use.
pub const BUF_ALIGN: usize = 4096;

const POOL_CLASSES: usize = 10; // 4 KiB << 0 ..= 4 KiB << 9 (2 MiB)
const POOL_BYTES_PER_CLASS: usize = 8 << 20;

struct Block {
    ptr: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a Block is the sole owner of plain heap memory; nothing in it is tied to a thread.
unsafe impl Send for Block {}
// SAFETY: shared access only reads; writing needs `&mut`.
unsafe impl Sync for Block {}

impl Block {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BUF_ALIGN).expect("a buffer's capacity is far below isize::MAX")
    }

    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a non-zero size, since every capacity is at least BUF_ALIGN.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { ptr, capacity }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and owned by nobody else.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
    }
}

thread_local! {
    static POOL: RefCell<[Vec<Block>; POOL_CLASSES]> = const { RefCell::new([const { Vec::new() }; POOL_CLASSES]) };
}

fn class_of(capacity: usize) -> Option<usize> {
    let class = (capacity / BUF_ALIGN).trailing_zeros() as usize;
    (class < POOL_CLASSES).then_some(class)
}

/// An owned, 4096-byte aligned buffer of `len` bytes.
pub struct IoBuf {
    block: Option<Block>,
    len: usize,
}

impl IoBuf {
    /// A buffer of `len` bytes whose content is unspecified but initialised.
    pub fn new(len: usize) -> Self {
        let capacity = len.max(BUF_ALIGN).next_power_of_two();
        let recycled =
            class_of(capacity).and_then(|class| POOL.try_with(|pool| pool.borrow_mut()[class].pop()).ok().flatten());
        Self { block: Some(recycled.unwrap_or_else(|| Block::new(capacity))), len }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::new(len);
        buf.fill(0);
        buf
    }

    /// A copy of `data`.
    pub fn from_slice(data: &[u8]) -> Self {
        let mut buf = Self::new(data.len());
        buf.copy_from_slice(data);
        buf
    }

    /// Cut the buffer to its first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn block(&self) -> &Block {
        self.block.as_ref().expect("the block is taken only in drop")
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block holds at least `len` initialised bytes and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.block().ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.block().ptr.as_ptr(), self.len) }
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let Some(class) = class_of(block.capacity) else { return };
        // A thread that is ending has no pool any more: the block is freed then.
        let _ = POOL.try_with(|pool| {
            let pool = &mut pool.borrow_mut()[class];
            if (pool.len() + 1) * block.capacity <= POOL_BYTES_PER_CLASS {
                pool.push(block);
            }
        });
    }
}

impl std::fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

/// A shared, read-only view of a part of a buffer: what a write carries.
#[derive(Clone, Debug)]
pub struct IoData {
    buf: Arc<IoBuf>,
    start: usize,
    len: usize,
}

impl IoData {
    pub fn new(buf: IoBuf) -> Self {
        Self::shared(Arc::new(buf))
    }

    /// A view of all of `buf`.
    pub fn shared(buf: Arc<IoBuf>) -> Self {
        let len = buf.len();
        Self { buf, start: 0, len }
    }

    /// The part of this view that starts at `start` and has `len` bytes.
    ///
    /// # Panics
    /// When the part leaves the view.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        assert!(start <= self.len && len <= self.len - start, "a slice leaves its buffer");
        Self { buf: Arc::clone(&self.buf), start: self.start + start, len }
    }
}

impl Deref for IoData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let first = IoBuf::new(8192);
        let address = first.as_ptr() as usize;
        assert_eq!(address % BUF_ALIGN, 0);
        drop(first);
        assert_eq!(IoBuf::new(5000).as_ptr() as usize, address);
    }

    #[test]
    fn zeroed_clears_a_recycled_buffer() {
        let mut dirty = IoBuf::new(4096);
        dirty.fill(7);
        drop(dirty);
        assert!(IoBuf::zeroed(4096).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn slices_share_the_buffer() {
        let data = IoData::new(IoBuf::from_slice(&[1, 2, 3, 4, 5]));
        assert_eq!(&*data.slice(1, 3).slice(1, 2), &[3, 4]);
    }
}
