//! What is known of a range without reading it: where its bytes come from, and which are zeros.

use std::ops::Range;

/// Where a read of some bytes would find them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nothing was ever put there.
    Nowhere,
    /// The bdev's own storage.
    Local,
    /// The image below an overlay.
    Image,
}

/// How far the copying of some bytes from an image has come; a bdev without an image is always `is_here`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchState {
    /// The bdev's own storage holds it.
    pub is_here: bool,
    /// Somebody is bringing it there.
    pub is_filling: bool,
    /// The last attempt to fetch it failed, and none succeeded since.
    pub has_failed: bool,
}

impl FetchState {
    pub const HERE: Self = Self { is_here: true, is_filling: false, has_failed: false };
}

/// What is known of every byte of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentState {
    /// Reads as zeros; false where that is not known.
    pub is_zero: bool,
    /// Takes no space, so that a write may find none; false where that is not known.
    pub is_hole: bool,
    pub source: Source,
    pub fetch: FetchState,
}

impl ExtentState {
    /// Bytes of the bdev's own of which nothing is known.
    pub const DATA: Self = Self { is_zero: false, is_hole: false, source: Source::Local, fetch: FetchState::HERE };
    /// A part of the bdev's own storage that holds nothing.
    pub const HOLE: Self = Self { is_zero: true, is_hole: true, source: Source::Nowhere, fetch: FetchState::HERE };
}

/// A run of bytes with one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; not 0.
    pub len: u64,
    pub state: ExtentState,
}

/// A growing, bounded list of extents that follow one another; neighbours with one state become one.
#[derive(Debug)]
pub struct ExtentList {
    extents: Vec<Extent>,
    max: usize,
    len: u64,
}

impl ExtentList {
    /// A list of at most `max` (at least 1) extents.
    pub fn new(max: usize) -> Self {
        Self { extents: Vec::new(), max: max.max(1), len: 0 }
    }

    /// Bytes that are described so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Add `len` bytes; false, with nothing changed, when that were one extent too many.
    pub fn push(&mut self, len: u64, state: ExtentState) -> bool {
        let is_full = self.extents.len() == self.max;
        match self.extents.last_mut() {
            _ if len == 0 => return true,
            Some(last) if last.state == state => last.len += len,
            _ if is_full => return false,
            _ => self.extents.push(Extent { len, state }),
        }
        self.len += len;
        true
    }

    /// Add a range of which `data` (ascending ranges, reaching beyond `range` or not) are one state and the gaps
    /// another. Data is rounded outwards to blocks of `block` bytes. False when the list became full on the way.
    pub fn push_data(
        &mut self,
        range: Range<u64>,
        block: u64,
        data: impl IntoIterator<Item = Range<u64>>,
        states: (ExtentState, ExtentState),
    ) -> bool {
        let (of_data, of_gaps) = states;
        let mut position = range.start;
        for piece in data {
            let start = (piece.start - piece.start % block).clamp(position, range.end);
            let end = piece.end.next_multiple_of(block).clamp(start, range.end);
            if !self.push(start - position, of_gaps) || !self.push(end - start, of_data) {
                return false;
            }
            position = end;
        }
        self.push(range.end - position, of_gaps)
    }

    pub fn into_vec(self) -> Vec<Extent> {
        self.extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: ExtentState = ExtentState::DATA;
    const HOLE: ExtentState = ExtentState::HOLE;

    fn told(list: ExtentList) -> Vec<(u64, bool)> {
        list.into_vec().iter().map(|extent| (extent.len, extent.state.is_zero)).collect()
    }

    #[test]
    fn equal_neighbours_become_one_and_the_bound_holds() {
        let mut list = ExtentList::new(2);
        assert!(list.push(1, DATA) && list.push(2, DATA) && list.push(0, HOLE) && list.push(3, HOLE));
        assert!(!list.push(1, DATA), "a third one");
        assert!(list.push(4, HOLE), "the last one grows");
        assert_eq!(list.len(), 10);
        assert_eq!(told(list), [(3, false), (7, true)]);
    }

    #[test]
    fn data_is_rounded_outwards_and_cut_to_the_range() {
        let mut list = ExtentList::new(100);
        assert!(list.push_data(512..8192, 512, [0..600, 700..701, 2000..2048, 9000..9001], (DATA, HOLE)));
        assert_eq!(told(list), [(512, false), (512, true), (512, false), (6144, true)]);
        let mut list = ExtentList::new(100);
        assert!(list.push_data(0..4096, 512, [], (DATA, HOLE)));
        assert_eq!(told(list), [(4096, true)]);
        let mut list = ExtentList::new(1);
        assert!(!list.push_data(0..4096, 512, std::iter::once(512..1024), (DATA, HOLE)));
        assert_eq!(told(list), [(512, true)]);
    }
}
