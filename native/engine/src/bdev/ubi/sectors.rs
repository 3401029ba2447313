//! Header sectors that check themselves, and the digests of all of them. Bytes only, no I/O.
//!
//! The check of a used sector is XXH64 (seed 0) over the volume's UUID, the sector's number and the sector with its
//! eight check bytes as zero. Its bytes, least significant first, are the byte 1s of the sector's first eight headers.

use std::ops::Range;

use xxhash_rust::xxh64::{Xxh64, xxh64};

use super::geometry::StripeIndex;
use super::layout::{self, HEADERS_AT, STRIPES_MAX};
use super::superblock::Digests;
use super::uuid::Uuid;

/// Bytes of a sector: what a disk writes whole or not at all.
pub const SECTOR: usize = 512;
const CHECK_BYTES: usize = 8;
/// Bytes of the area up to the end of the last header.
const HEADERS_END: usize = HEADERS_AT + 2 * STRIPES_MAX as usize;

/// What the check of a sector says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Right,
    /// As bdev_ubi makes a sector: every byte 1 is zero.
    Absent,
    Wrong,
}

/// Number of sectors that hold a header of the image; the one with the magic always counts.
pub fn used(stripes: u32) -> usize {
    match stripes {
        0 => 1,
        stripes => (HEADERS_AT + 2 * stripes as usize).div_ceil(SECTOR),
    }
}

/// The headers whose bytes lie in a sector, those past the image included.
pub fn headers_in(sector: usize) -> Range<StripeIndex> {
    let first =
        |sector: usize| (sector * SECTOR).saturating_sub(HEADERS_AT).div_ceil(2).min(STRIPES_MAX as usize) as u32;
    first(sector)..first(sector + 1)
}

/// Where byte 1 of the first header is in a sector; the other check bytes follow at every other byte.
fn check_at(index: usize) -> usize {
    if index == 0 { HEADERS_AT + 1 } else { 1 }
}

/// The check that a sector should have; never 0.
pub fn compute(uuid: Uuid, index: usize, sector: &[u8]) -> u64 {
    let mut bytes = [0; 16 + 8 + SECTOR];
    bytes[..16].copy_from_slice(&uuid.0);
    bytes[16..24].copy_from_slice(&(index as u64).to_le_bytes());
    bytes[24..].copy_from_slice(sector);
    let first = 24 + check_at(index);
    (0..CHECK_BYTES).for_each(|byte| bytes[first + 2 * byte] = 0);
    xxh64(&bytes, 0).max(1)
}

/// The check that a sector has.
pub fn stored(index: usize, sector: &[u8]) -> u64 {
    let bytes: [u8; CHECK_BYTES] = std::array::from_fn(|byte| sector[check_at(index) + 2 * byte]);
    u64::from_le_bytes(bytes)
}

/// Give a sector its check.
pub fn seal(uuid: Uuid, index: usize, sector: &mut [u8]) {
    let check = compute(uuid, index, sector).to_le_bytes();
    (0..CHECK_BYTES).for_each(|byte| sector[check_at(index) + 2 * byte] = check[byte]);
}

/// Look at the check of a sector.
pub fn look(uuid: Uuid, index: usize, sector: &[u8]) -> Check {
    if stored(index, sector) == compute(uuid, index, sector) {
        Check::Right
    } else if has_no_check(index, sector) {
        Check::Absent
    } else {
        Check::Wrong
    }
}

/// Whether byte 1 of every header in a sector is zero.
pub fn has_no_check(index: usize, sector: &[u8]) -> bool {
    let base = index * SECTOR;
    headers_in(index).all(|stripe| sector[layout::header_at(stripe) + 1 - base] == 0)
}

/// The sectors of an area, with their numbers.
pub fn each(area: &[u8], stripes: u32) -> impl Iterator<Item = (usize, &[u8])> {
    area.chunks_exact(SECTOR).take(used(stripes)).enumerate()
}

/// The digests of the used sectors of a volume whose minor version is 1 (see [`closed`]): XXH64, seed 0, of byte 0 of
/// every header in them in order, and of byte 1.
pub fn digests(area: &[u8], stripes: u32) -> Digests {
    let end = (used(stripes) * SECTOR).min(HEADERS_END).min(area.len());
    let headers = &area[HEADERS_AT..end];
    let digest = |byte: usize| {
        let mut hash = Xxh64::new(0);
        let mut piece = [0; 4096];
        for chunk in headers.chunks(2 * piece.len()) {
            let bytes = chunk.iter().skip(byte).step_by(2);
            let len = bytes.len();
            piece.iter_mut().zip(bytes).for_each(|(target, source)| *target = *source);
            hash.update(&piece[..len]);
        }
        hash.digest()
    };
    Digests { states: digest(0), checks: digest(1) }
}

/// The first sector of a volume as a clean close leaves it: minor version 1, its check right.
pub fn closed(uuid: Uuid, first: &[u8]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector.copy_from_slice(&first[..SECTOR]);
    layout::put_minor(&mut sector, layout::MINOR_CLOSED);
    seal(uuid, 0, &mut sector);
    sector
}

/// Headers of the image whose byte 0 is set.
pub fn count_set(area: &[u8], stripes: u32) -> u64 {
    (0..stripes).filter(|&stripe| area[layout::header_at(stripe)] != 0).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: Uuid = Uuid([7; 16]);

    #[test]
    fn sectors_hold_the_headers_that_the_layout_puts_there() {
        assert_eq!((headers_in(0), headers_in(1), headers_in(2)), (0..249, 249..505, 505..761));
        assert_eq!(
            (headers_in(8191), headers_in(8192), headers_in(8193)),
            (2_096_889..2_097_145, 2_097_145..2_097_152, 2_097_152..2_097_152)
        );
        assert_eq!([0, 1, 249, 250, 505, 2_097_152].map(used), [1, 1, 1, 2, 2, 8193]);
    }

    #[test]
    fn a_check_depends_on_every_byte_the_place_and_the_volume() {
        for index in [0, 1, 8192] {
            let mut sector = [0x5a; SECTOR];
            seal(UUID, index, &mut sector);
            assert_eq!(look(UUID, index, &sector), Check::Right);
            assert_eq!(look(Uuid([8; 16]), index, &sector), Check::Wrong);
            if index < 8192 {
                assert_eq!(look(UUID, index + 1, &sector), Check::Wrong);
            }
            for bit in 0..8 * SECTOR {
                let mut flipped = sector;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(look(UUID, index, &flipped), Check::Wrong, "bit {bit}");
            }
        }
        assert_eq!(look(UUID, 3, &[0; SECTOR]), Check::Absent);
    }
}
