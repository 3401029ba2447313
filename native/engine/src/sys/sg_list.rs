//! Pieces of memory shared with another process, which storage is read into or written from where they lie.
//!
//! The other process may change the bytes at any time, and may take the memory away: who moves them by system calls
//! meets EFAULT then, who copies them meets zeros (see [`super::mapping`]).

use std::sync::Arc;

use smallvec::SmallVec;

use super::mapping::Mapping;

/// Pieces of one operation; the kernel takes no more (IOV_MAX).
pub const MAX_PIECES: usize = 1024;

/// A scatter-gather list, and the mappings that its pieces lie in: those stay as long as the list does, which an
/// operation owns until its completion.
#[derive(Default)]
pub struct SgList {
    /// One alone lies here, more of them on the heap: where the kernel finds them does not change when the list moves.
    pieces: SmallVec<[libc::iovec; 1]>,
    owners: SmallVec<[Arc<Mapping>; 1]>,
    len: usize,
}

// SAFETY: the pieces point into mappings that the list owns, and which any thread may access.
unsafe impl Send for SgList {}
// SAFETY: shared access hands out no more than the pieces' places and lengths.
unsafe impl Sync for SgList {}

impl SgList {
    /// Add `len` bytes of a mapping from `offset` on. False, and nothing is added, when there are too many pieces.
    ///
    /// # Panics
    /// When they leave the mapping; callers have checked what comes from outside.
    #[inline]
    pub fn push(&mut self, mapping: &Arc<Mapping>, offset: usize, len: usize) -> bool {
        let start = mapping.at(offset, len);
        let owned = self.owners.last().is_some_and(|owner| Arc::ptr_eq(owner, mapping));
        if let Some(last) = self.pieces.last_mut()
            && owned
            && last.iov_base.addr() + last.iov_len == start.addr()
        {
            last.iov_len += len;
            self.len += len;
            return true;
        }
        if self.pieces.len() == MAX_PIECES {
            return false;
        }
        if !owned {
            self.owners.push(Arc::clone(mapping));
        }
        self.pieces.push(libc::iovec { iov_base: start.cast(), iov_len: len });
        self.len += len;
        true
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Leave all pieces out. One mapping is kept, for the next pieces are likely to lie there.
    #[inline]
    pub fn begin_anew(&mut self) {
        self.pieces.clear();
        self.owners.truncate(1);
        self.len = 0;
    }

    /// The pieces, as system calls take them.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// Whether each piece begins at a multiple of `address` bytes and has a multiple of `len` bytes.
    pub fn is_aligned(&self, address: usize, len: usize) -> bool {
        let fits = |piece: &libc::iovec| {
            piece.iov_base.addr().is_multiple_of(address.max(1)) && piece.iov_len.is_multiple_of(len.max(1))
        };
        self.pieces.iter().all(fits)
    }

    /// Leave the first `count` bytes out: they are moved already.
    pub fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "more was moved than was asked for");
        self.len -= count;
        let whole = self.pieces.iter().take_while(|piece| {
            let is_whole = piece.iov_len <= count;
            count -= if is_whole { piece.iov_len } else { 0 };
            is_whole
        });
        let whole = whole.count();
        self.pieces.drain(..whole);
        if let Some(first) = self.pieces.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(count);
            first.iov_len -= count;
        }
    }

    /// Fill the pieces with zeros.
    pub fn zero(&self) {
        for piece in &self.pieces {
            // SAFETY: the piece lies in a mapping that the list owns, checked when it was added.
            unsafe { std::ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) };
        }
    }
}

impl std::fmt::Debug for SgList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SgList({} bytes in {} pieces)", self.len, self.pieces.len())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::memfd;

    fn mapping() -> Arc<Mapping> {
        let file = memfd::unsealed("m", 3 << 12).expect("memfd");
        Arc::new(Mapping::new(file.as_fd(), 0, 3 << 12).expect("map"))
    }

    fn lens(list: &SgList) -> Vec<usize> {
        list.iovecs().iter().map(|piece| piece.iov_len).collect()
    }

    #[test]
    fn neighbours_are_one_piece_and_what_is_moved_is_left_out() {
        let (one, other) = (mapping(), mapping());
        let mut list = SgList::default();
        for (mapping, offset, len) in [(&one, 0, 512), (&one, 512, 100), (&one, 700, 4), (&other, 704, 8)] {
            assert!(list.push(mapping, offset, len));
        }
        assert_eq!((lens(&list), list.len()), (vec![612, 4, 8], 624));
        assert_eq!((Arc::strong_count(&one), Arc::strong_count(&other)), (2, 2));
        list.advance(613);
        assert_eq!((lens(&list), list.len()), (vec![3, 8], 11));
        list.advance(3);
        assert_eq!(lens(&list), [8]);
        list.advance(8);
        assert!(list.is_empty() && list.iovecs().is_empty());
    }

    #[test]
    fn a_list_that_begins_anew_keeps_one_mapping_and_no_piece() {
        let (one, other) = (mapping(), mapping());
        let mut list = SgList::default();
        for _ in 0..3 {
            list.begin_anew();
            assert!(list.is_empty() && list.iovecs().is_empty());
            assert!(list.push(&one, 0, 8) && list.push(&other, 0, 8));
            assert_eq!((lens(&list), list.len()), (vec![8, 8], 16));
        }
        list.begin_anew();
        assert_eq!((Arc::strong_count(&one), Arc::strong_count(&other)), (2, 1));
        assert!(list.push(&one, 0, 8));
        assert_eq!(Arc::strong_count(&one), 2, "it is counted once");
    }

    #[test]
    fn every_piece_counts_for_alignment() {
        let memory = mapping();
        let mut list = SgList::default();
        list.push(&memory, 512, 1024);
        assert!(list.is_aligned(512, 512) && list.is_aligned(1, 1) && !list.is_aligned(1024, 512));
        list.push(&memory, 4096, 100);
        assert!(!list.is_aligned(512, 512) && list.is_aligned(512, 4));
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_are_refused() {
        let memory = mapping();
        let mut list = SgList::default();
        assert!((0..MAX_PIECES).all(|index| list.push(&memory, index * 2, 1)));
        assert!(!list.push(&memory, MAX_PIECES * 2, 1));
        assert_eq!(list.len(), MAX_PIECES);
    }

    #[test]
    fn only_the_pieces_are_zeroed() {
        let memory = mapping();
        memory.write(0, &[7; 64]);
        let mut list = SgList::default();
        list.push(&memory, 8, 8);
        list.push(&memory, 32, 8);
        list.zero();
        let mut seen = [0; 64];
        memory.read(0, &mut seen);
        for (index, &byte) in seen.iter().enumerate() {
            assert_eq!(byte, if (8..16).contains(&index) || (32..40).contains(&index) { 0 } else { 7 }, "at {index}");
        }
    }
}
