//! A bounded list of the ranges in which an image holds data.

use std::io;
use std::ops::Range;

use crate::sys::file::StorageFile;

/// Most extents that are kept; what comes after them counts as data.
const EXTENTS_MAX: usize = 8192;
/// Holes smaller than this count as data: no stripe is smaller, and each would cost an operation of its own.
const HOLE_MIN: u64 = 64 << 10;

/// Ascending, disjoint, non-empty ranges of bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extents(Vec<Range<u64>>);

impl Extents {
    /// Data from the first byte to the last.
    pub fn all(size_bytes: u64) -> Self {
        Self::from_ranges(std::iter::once(0..size_bytes))
    }

    /// From ascending ranges; those with little or nothing between them become one, too many end in one.
    pub fn from_ranges(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut list: Vec<Range<u64>> = Vec::new();
        for range in ranges.into_iter().filter(|range| range.start < range.end) {
            match list.last_mut() {
                Some(last) if range.start < last.end + HOLE_MIN => last.end = last.end.max(range.end),
                _ => list.push(range),
            }
        }
        Self(list)
    }

    /// Ask the file system (SEEK_DATA, SEEK_HOLE); one that does not know has data everywhere.
    pub fn of_file(file: &StorageFile, size_bytes: u64) -> Self {
        Self::seek(file, size_bytes).unwrap_or_else(|_| Self::all(size_bytes))
    }

    fn seek(file: &StorageFile, size_bytes: u64) -> io::Result<Self> {
        let mut ranges = Vec::new();
        let mut position = 0;
        while position < size_bytes {
            let Some(start) = file.seek_data(position)?.filter(|&start| start < size_bytes) else { break };
            let end = file.seek_hole(start)?.unwrap_or(size_bytes).min(size_bytes);
            if end <= start || ranges.len() == EXTENTS_MAX {
                ranges.push(start..size_bytes);
                break;
            }
            ranges.push(start..end);
            position = end;
        }
        Ok(Self::from_ranges(ranges))
    }

    /// The parts of `range` that hold data, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.0.partition_point(|extent| extent.end <= range.start);
        let end = range.end;
        self.0[first..]
            .iter()
            .take_while(move |extent| extent.start < end)
            .map(move |extent| extent.start.max(range.start)..extent.end.min(end))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sys::file::OpenOptions;

    const KIB: u64 = 1 << 10;

    #[test]
    fn near_ranges_become_one_and_are_cut_to_what_is_asked() {
        let extents = Extents::from_ranges([0..4 * KIB, 60 * KIB..70 * KIB, 200 * KIB..300 * KIB, 5..5]);
        let within = |range| extents.within(range).collect::<Vec<_>>();
        assert_eq!(within(0..1 << 20), [0..70 * KIB, 200 * KIB..300 * KIB]);
        assert_eq!(within(65 * KIB..250 * KIB), [65 * KIB..70 * KIB, 200 * KIB..250 * KIB]);
        assert_eq!(within(70 * KIB..200 * KIB), []);
        assert_eq!(within(300 * KIB..400 * KIB), []);
    }

    #[test]
    fn a_sparse_file_has_holes_and_keeps_its_data() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("set_len");
        file.as_file().write_all_at(&[1; 100], 512 * KIB + 7).expect("write");
        let file = StorageFile::open(file.path(), OpenOptions::default()).expect("open");
        let extents = Extents::of_file(&file, 1 << 20);
        let covered: u64 = extents.within(0..1 << 20).map(|range| range.end - range.start).sum();
        assert!(extents.within(512 * KIB + 7..512 * KIB + 107).eq(std::iter::once(512 * KIB + 7..512 * KIB + 107)));
        assert!(covered < 1 << 20, "the file system tells holes");
    }
}
