//! What is fixed for one simulated history: sizes, options and how nasty base and image are.

use std::sync::Arc;

use ubi_engine::bdev::ubi::UbiOptions;
use ubi_engine::bdev::{BaseIdentity, BdevInfo, Survives};

use super::host::SimHost;
use super::tags::{SECTOR, Tag};

/// Sectors of a stripe: 64 KiB, the smallest there is.
pub const STRIPE: usize = 128;

/// Parts of the base that exist, as sectors: the first page of headers, the places of the two superblock slots, and
/// the data from 8 MiB on. What lies between is never touched.
const WINDOWS: [(u64, usize); 3] = [(0, 8), (0x60_0000 / 512, 8), (0x70_0000 / 512, 8)];
/// Slots of header pages, which come first; then those of the superblocks.
pub const HEADER_SLOTS: usize = 8;
/// Slot of the first data sector.
pub const DATA_SLOT: usize = 24;
/// Sector of the base where the data start.
const DATA_SECTOR: u64 = (8 << 20) / 512;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub block_size: u32,
    /// Sectors that a base keeps or loses together.
    pub tear: usize,
    pub image_bytes: usize,
    /// Sectors of the volume.
    pub volume: usize,
    /// The first stripe of the image is a hole.
    pub has_hole: bool,
    pub copy_on_read: bool,
    pub no_sync: bool,
    pub unmap_reads_zero: bool,
    /// The base takes some requests inline, as a page cache does.
    pub inline: bool,
    /// One base operation or image read in this many fails.
    pub fault_one_in: Option<u64>,
    /// The machine has a place for volatile maps; without it headers are published before writes are acknowledged.
    pub has_maps: bool,
    /// The guest has its write cache off: everything it writes is FUA.
    pub write_through: bool,
    /// What an operator decides after a failed sync: keep what has no header, or drop it.
    pub keeps: bool,
    /// The image changes behind our back at some time.
    pub image_changes: bool,
    /// Somebody cuts a volatile map short while it is in use.
    pub loses_map: bool,
}

impl Setting {
    /// One whole stripe and a part of a second one that ends inside a sector; a little room behind it.
    pub fn plain() -> Self {
        Self {
            block_size: 512,
            tear: 1,
            image_bytes: STRIPE * SECTOR + 4 * SECTOR + 700,
            volume: STRIPE + 24,
            has_hole: false,
            copy_on_read: true,
            no_sync: false,
            unmap_reads_zero: true,
            inline: false,
            fault_one_in: None,
            has_maps: true,
            write_through: false,
            keeps: true,
            image_changes: false,
            loses_map: false,
        }
    }

    /// Sectors that the image covers at least in part.
    pub fn image_end(&self) -> usize {
        self.image_bytes.div_ceil(SECTOR)
    }

    /// The sectors behind the image in its last stripe.
    pub fn tail(&self) -> std::ops::Range<usize> {
        self.image_end()..self.image_end().next_multiple_of(STRIPE).min(self.volume)
    }

    /// Sectors of a block.
    pub fn block(&self) -> usize {
        self.block_size as usize / SECTOR
    }

    /// The image's bytes.
    pub fn image_content(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.image_end() * SECTOR];
        let first = if self.has_hole { STRIPE } else { 0 };
        for (sector, target) in bytes.chunks_exact_mut(SECTOR).enumerate().skip(first) {
            Tag::image(sector).fill(target);
        }
        bytes.truncate(self.image_bytes);
        bytes
    }

    /// What a new volume reads as: the image, then zeros.
    pub fn fresh(&self) -> Vec<Tag> {
        let mut bytes = self.image_content();
        bytes.resize(self.volume * SECTOR, 0);
        Tag::all_of(&bytes)
    }

    /// A base that somebody else has used before; only its magic is zero.
    pub fn used_base(&self) -> Vec<Tag> {
        let mut tags: Vec<Tag> = (0..DATA_SLOT + self.volume).map(Tag::canary).collect();
        let mut first = [0; SECTOR];
        Tag::canary(0).fill(&mut first);
        first[..9].fill(0);
        tags[0] = Tag::of(&first);
        tags
    }

    pub fn info(&self) -> BdevInfo {
        let sectors = DATA_SECTOR + self.volume as u64;
        BdevInfo {
            name: "base".into(),
            block_size: self.block_size,
            num_blocks: (sectors / self.block() as u64).into(),
            readonly: false,
            write_cache: true,
            unmap: true,
            write_zeroes: true,
            flush: true,
            unmap_reads_zero: self.unmap_reads_zero,
            buffered: self.inline,
            survives: Survives::Power,
        }
    }

    pub fn options(&self, host: Arc<SimHost>, adopt: bool) -> UbiOptions {
        UbiOptions {
            stripe_size_kb: Some((STRIPE * SECTOR / 1024) as u32),
            no_sync: self.no_sync,
            copy_on_read: self.copy_on_read,
            adopt,
            ..UbiOptions::new("", host)
        }
    }

    /// What the maps of this base are known by.
    pub fn identity(&self) -> BaseIdentity {
        BaseIdentity { dev: 7, ino: 1234, rdev: 0, made: 99 }
    }

    pub fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}

/// Where a range of the base is kept.
///
/// # Panics
/// For a range that is not simulated: widen `WINDOWS`.
pub fn slots(offset: u64, len: u64) -> std::ops::Range<usize> {
    let (sector, count) = (offset / SECTOR as u64, (len / SECTOR as u64) as usize);
    if sector >= DATA_SECTOR {
        let first = DATA_SLOT + (sector - DATA_SECTOR) as usize;
        return first..first + count;
    }
    let mut first = 0;
    for (start, length) in WINDOWS {
        if sector >= start && sector + count as u64 <= start + length as u64 {
            let first = first + (sector - start) as usize;
            return first..first + count;
        }
        first += length;
    }
    panic!("{len} bytes at {offset} of the base are not simulated");
}
