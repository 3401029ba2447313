//! Bytes in shared pages: a copy of a whole base costs next to nothing.

use std::ops::Range;
use std::sync::Arc;

const PAGE: usize = 4096;

/// A fixed number of bytes.
#[derive(Clone, Default)]
pub struct Pages {
    pages: Vec<Arc<[u8; PAGE]>>,
    len: usize,
}

impl Pages {
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = Arc::new([0; PAGE]);
        let page = |chunk: &[u8]| {
            if chunk.iter().all(|&byte| byte == 0) {
                return Arc::clone(&zeros);
            }
            let mut page = [0; PAGE];
            page[..chunk.len()].copy_from_slice(chunk);
            Arc::new(page)
        };
        Self { pages: bytes.chunks(PAGE).map(page).collect(), len: bytes.len() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, range: Range<u64>) -> Vec<u8> {
        let (start, end) = (range.start as usize, range.end as usize);
        assert!(end <= self.len, "a read inside the base");
        let mut bytes = Vec::with_capacity(end - start);
        let mut position = start;
        while position < end {
            let (page, at) = (position / PAGE, position % PAGE);
            let piece = (PAGE - at).min(end - position);
            bytes.extend_from_slice(&self.pages[page][at..at + piece]);
            position += piece;
        }
        bytes
    }

    pub fn put(&mut self, offset: u64, mut bytes: &[u8]) {
        let mut position = offset as usize;
        assert!(position + bytes.len() <= self.len, "a write inside the base");
        while !bytes.is_empty() {
            let (page, at) = (position / PAGE, position % PAGE);
            let piece = (PAGE - at).min(bytes.len());
            Arc::make_mut(&mut self.pages[page])[at..at + piece].copy_from_slice(&bytes[..piece]);
            bytes = &bytes[piece..];
            position += piece;
        }
    }
}
