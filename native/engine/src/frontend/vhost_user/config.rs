//! The config space of a virtio block device, and which device features go with it.
//!
//! Source: virtio 1.2, 5.2.3 ("Feature bits"), 5.2.4 ("Device configuration layout").

use super::proto::{MAX_CONFIG, MAX_QUEUES, OLD_CONFIG_OFFSET, feature};
use crate::bdev::BdevInfo;

/// Bytes of one descriptor that the driver should not exceed.
const SIZE_MAX: u32 = 128 << 10;
/// Data descriptors of one request: a ring of 128 has room for them and for header and status.
const SEG_MAX: u32 = 126;
/// Ranges of one DISCARD or WRITE_ZEROES.
pub const MAX_RANGES: u32 = 32;
/// Sectors of one range of a DISCARD: 1 GiB, and of a WRITE_ZEROES: 64 MiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
pub const MAX_ZERO_SECTORS: u32 = 1 << 17;

const AT_WRITEBACK: u32 = 32;
const BYTES: usize = MAX_CONFIG as usize;

/// What a device offers: fixed by its bdev and by how the controller was made.
#[must_use]
pub fn features(info: &BdevInfo, readonly: bool) -> u64 {
    use feature::{
        BLK_SIZE, CONFIG_WCE, DISCARD, EVENT_IDX, FLUSH, INDIRECT_DESC, LOG_ALL, MQ, PROTOCOL_FEATURES, RO, SEG_MAX,
        SIZE_MAX, TOPOLOGY, VERSION_1, WRITE_ZEROES,
    };
    let always = [SIZE_MAX, SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, LOG_ALL];
    let transport = [INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1];
    let by_access: &[u32] = if readonly { &[RO] } else { &[WRITE_ZEROES] };
    let discard: &[u32] = if info.unmap && !readonly { &[DISCARD] } else { &[] };
    let bits = always.iter().chain(&transport).chain(by_access).chain(discard);
    bits.fold(0, |features, bit| features | 1 << bit)
}

/// The whole space as it is now.
fn space(info: &BdevInfo, writeback: bool) -> [u8; BYTES] {
    let mut space = [0; BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let block_sectors = info.block_size / 512;
    put(0, &(info.size_bytes() / 512).to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &info.block_size.to_le_bytes());
    // Topology: physical blocks of 4 KiB, in exponents of the block size; the smallest good write is one of them.
    let exponent = (4096 / info.block_size.clamp(512, 4096)).trailing_zeros();
    put(24, &[exponent as u8, 0]);
    put(26, &((1u16 << exponent).to_le_bytes()));
    put(AT_WRITEBACK as usize, &[u8::from(writeback)]);
    put(34, &(MAX_QUEUES as u16).to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &block_sectors.to_le_bytes());
    put(48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[u8::from(info.unmap)]);
    space
}

/// Where in the space `size` bytes at `offset` are, whichever way the frontend counts.
fn range(offset: u32, size: u32) -> Option<std::ops::Range<usize>> {
    let start = if offset >= OLD_CONFIG_OFFSET { offset - OLD_CONFIG_OFFSET } else { offset };
    let end = start.checked_add(size).filter(|&end| end <= MAX_CONFIG && size > 0)?;
    Some(start as usize..end as usize)
}

/// `size` bytes from `offset` on; None when they leave the space.
pub fn read(info: &BdevInfo, writeback: bool, offset: u32, size: u32) -> Option<Vec<u8>> {
    range(offset, size).map(|range| space(info, writeback)[range].to_vec())
}

/// The cache mode that a write of the config space asks for.
///
/// # Errors
/// Why not: the cache mode is all that can be written.
pub fn written_cache_mode(offset: u32, data: &[u8]) -> Result<bool, String> {
    let range = range(offset, data.len() as u32);
    match (range, data) {
        (Some(range), &[mode @ 0..=1]) if range.start == AT_WRITEBACK as usize => Ok(mode == 1),
        _ => Err(format!("a write of {} bytes at {offset} of the config space", data.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::Bdev;
    use crate::bdev::malloc::MallocBdev;

    #[test]
    fn the_space_is_read_the_way_each_frontend_does() {
        let bdev = MallocBdev::new("m", 2048, 4096).expect("malloc");
        let info = bdev.info();
        let all = read(info, true, 0, 256).expect("SPDK reads all of it");
        assert_eq!(all[..8], (2048u64 * 8).to_le_bytes());
        assert_eq!(all[20..24], 4096u32.to_le_bytes());
        assert_eq!(read(info, true, 0, 60).expect("Firecracker"), all[..60]);
        assert_eq!(read(info, true, 0x100, 60).expect("Cloud Hypervisor"), all[..60]);
        assert_eq!(read(info, true, 20, 4).expect("a field"), all[20..24]);
        assert_eq!((all[32], read(info, false, 32, 1).expect("the mode")[0]), (1, 0));
        for (offset, size) in [(0, 257), (255, 2), (0, 0), (0x100, 257), (u32::MAX, 1), (1, u32::MAX)] {
            assert_eq!(read(info, true, offset, size), None, "{size} at {offset}");
        }
    }

    #[test]
    fn only_the_cache_mode_can_be_written() {
        assert_eq!(written_cache_mode(32, &[0]), Ok(false));
        assert_eq!(written_cache_mode(32, &[1]), Ok(true));
        for (offset, data) in [(32, &[2][..]), (31, &[1]), (32, &[]), (32, &[1, 0]), (0, &[1]), (u32::MAX, &[1])] {
            assert!(written_cache_mode(offset, data).is_err(), "{data:?} at {offset}");
        }
    }
}
