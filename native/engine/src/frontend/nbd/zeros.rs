//! How a read is told: as data, runs of zeros as holes, and what could not be read.
//!
//! A hole takes some thirty bytes on the wire whatever its length, and looking for one costs next to nothing where
//! there is data: the first byte that is not zero ends it.
//!
//! Source: NBD proto.md, "Structured reply chunk message": NBD_REPLY_TYPE_OFFSET_HOLE, NBD_REPLY_TYPE_ERROR_OFFSET.

use std::ops::Range;

use crate::error::Error;

/// Zeros are looked for in blocks of this many bytes, in step with the device's offsets.
const BLOCK: u64 = 4096;
/// Shortest run of zeros between other bytes that is worth chunks of its own.
const HOLE_MIN: u64 = 32 << 10;
/// Most holes of one reply: beyond, zeros are sent as data.
const HOLES_MAX: usize = 64;

/// What there is to say of a piece of a read.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    Data,
    Zeros,
    Failed(&'a Error),
}

/// A piece of a read.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Bytes of the device.
    pub range: Range<u64>,
    pub content: Content<'a>,
}

/// Whether all bytes are zero.
#[inline]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    let is_zero_line = |line: &[u8; 64]| line.iter().fold(0, |all, byte| all | byte) == 0;
    lines.iter().all(is_zero_line) && (fault!(HoleTooLong) || rest.iter().all(|&byte| byte == 0))
}

/// Cut the answer to a read of `len` (not 0) bytes at `offset` into pieces that cover it, in order.
///
/// `failures` are ascending ranges of it; outside of them `buf` has the bytes. With `only_one` (the client set DF) there
/// is at most one piece that is not a failure, so a read that failed anywhere has no content.
pub fn plan_read_reply<'a>(
    offset: u64,
    len: u64,
    buf: &[u8],
    failures: &'a [(Range<u64>, Error)],
    only_one: bool,
) -> Vec<Piece<'a>> {
    let end = offset + len;
    let mut plan = Plan { offset, buf, pieces: Vec::new(), holes: 0 };
    let failed = |(range, error): &'a (Range<u64>, Error)| Piece {
        range: range.start.clamp(offset, end)..range.end.clamp(offset, end),
        content: Content::Failed(error),
    };
    if only_one {
        match failures.first() {
            Some(failure) => plan.pieces.push(failed(failure)),
            None if is_zero(buf) => plan.push(offset..end, Content::Zeros),
            None => plan.push(offset..end, Content::Data),
        }
        return plan.pieces;
    }
    let mut position = offset;
    for failure in failures {
        let failure = failed(failure);
        plan.push_content(position..failure.range.start.max(position));
        position = failure.range.end.max(position);
        plan.pieces.push(failure);
    }
    plan.push_content(position..end);
    plan.pieces
}

struct Plan<'a, 'b> {
    offset: u64,
    buf: &'b [u8],
    pieces: Vec<Piece<'a>>,
    holes: usize,
}

impl<'a> Plan<'a, '_> {
    fn push(&mut self, range: Range<u64>, content: Content<'a>) {
        if !range.is_empty() {
            self.holes += usize::from(matches!(content, Content::Zeros));
            self.pieces.push(Piece { range, content });
        }
    }

    /// Add a range that was read, its longer runs of zeros as holes.
    fn push_content(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if self.is_zero(&range) {
            return self.push(range, Content::Zeros);
        }
        let mut data = range.start;
        let mut position = range.start;
        while position < range.end && self.holes < HOLES_MAX {
            let run = position..self.end_of_zeros(position, range.end);
            if run.end - run.start >= HOLE_MIN {
                self.push(data..run.start, Content::Data);
                self.push(run.clone(), Content::Zeros);
                data = run.end;
            }
            position = self.next_block(run.end, range.end);
        }
        self.push(data..range.end, Content::Data);
    }

    /// The end of the whole blocks of zeros from `position` on.
    fn end_of_zeros(&self, mut position: u64, end: u64) -> u64 {
        while position < end {
            let next = self.next_block(position, end);
            if !self.is_zero(&(position..next)) {
                break;
            }
            position = next;
        }
        position
    }

    fn next_block(&self, position: u64, end: u64) -> u64 {
        (position - position % BLOCK).saturating_add(BLOCK).min(end)
    }

    fn is_zero(&self, range: &Range<u64>) -> bool {
        is_zero(&self.buf[(range.start - self.offset) as usize..(range.end - self.offset) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const KIB: u64 = 1 << 10;

    /// (start, length, kind) of each piece, in KiB.
    fn pieces(offset: u64, buf: &[u8], failures: &[(Range<u64>, Error)], only_one: bool) -> Vec<(u64, u64, char)> {
        let pieces = plan_read_reply(offset, buf.len() as u64, buf, failures, only_one);
        let kind = |content: &Content<'_>| match content {
            Content::Data => 'd',
            Content::Zeros => 'z',
            Content::Failed(_) => 'f',
        };
        pieces
            .iter()
            .map(|piece| (piece.range.start / KIB, (piece.range.end - piece.range.start) / KIB, kind(&piece.content)))
            .collect()
    }

    fn bytes(len: u64, data: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; (len * KIB) as usize];
        for (start, end) in data {
            bytes[(start * KIB) as usize..(end * KIB) as usize].fill(7);
        }
        bytes
    }

    #[test]
    fn zeros_are_seen_wherever_the_one_byte_is() {
        assert!(is_zero(&[]) && is_zero(&[0; 1]) && is_zero(&[0; 4096]) && is_zero(&[0; 4097]));
        for at in [0, 1, 63, 64, 65, 4095, 4096] {
            let mut bytes = [0; 4097];
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "byte {at}");
        }
    }

    #[test]
    fn long_runs_of_zeros_are_holes_and_short_ones_are_data() {
        assert_eq!(pieces(0, &bytes(64, &[]), &[], false), [(0, 64, 'z')]);
        assert_eq!(pieces(0, &bytes(1, &[]), &[], false), [(0, 1, 'z')], "a whole reply, however short");
        assert_eq!(pieces(0, &bytes(64, &[(0, 64)]), &[], false), [(0, 64, 'd')]);
        let mixed = bytes(128, &[(0, 4), (40, 44), (60, 64)]);
        assert_eq!(
            pieces(4 * KIB, &mixed, &[], false),
            [(4, 4, 'd'), (8, 36, 'z'), (44, 24, 'd'), (68, 64, 'z')],
            "16 KiB of zeros are not worth it"
        );
        assert_eq!(
            pieces(KIB, &bytes(64, &[(0, 1)]), &[], false),
            [(1, 3, 'd'), (4, 61, 'z')],
            "in step with the device"
        );
    }

    #[test]
    fn holes_are_bounded() {
        let mut fragmented = bytes(200 * 36, &[]);
        for at in (0..200).map(|index| index * 36 * KIB as usize) {
            fragmented[at] = 1;
        }
        let plan = pieces(0, &fragmented, &[], false);
        assert_eq!(plan.iter().filter(|piece| piece.2 == 'z').count(), HOLES_MAX);
        assert_eq!(plan.iter().map(|piece| piece.1).sum::<u64>(), 200 * 36);
    }

    #[test]
    fn failures_are_told_where_they_are_and_the_rest_is_of_use() {
        let failed = |from: u64, to: u64| (from * KIB..to * KIB, Error::new(ErrorKind::Io, "broken"));
        let data = bytes(64, &[(0, 64)]);
        assert_eq!(pieces(0, &data, &[failed(16, 32)], false), [(0, 16, 'd'), (16, 16, 'f'), (32, 32, 'd')]);
        assert_eq!(
            pieces(0, &data, &[failed(0, 16), failed(16, 64)], false),
            [(0, 16, 'f'), (16, 48, 'f')],
            "each for itself"
        );
        assert_eq!(pieces(0, &data, &[failed(16, 32)], true), [(16, 16, 'f')], "one chunk cannot have a gap");
        let all_failed = [failed(0, 64)];
        assert_eq!(plan_read_reply(0, 64 * KIB, &[], &all_failed, false).len(), 1);
    }

    #[test]
    fn a_client_that_wants_one_chunk_gets_one() {
        assert_eq!(pieces(0, &bytes(128, &[(0, 4)]), &[], true), [(0, 128, 'd')]);
        assert_eq!(pieces(0, &bytes(128, &[]), &[], true), [(0, 128, 'z')]);
    }
}
