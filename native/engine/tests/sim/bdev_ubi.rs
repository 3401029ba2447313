//! A small model of bdev_ubi 0.1 on a disk, written from docs/on-disk-format.md and not from our code.
//!
//! It looks at magic, version and byte 0 of headers; it fetches whole stripes, past the image end zeros, over whatever
//! is there; at and past the image end (in blocks of the base) it never looks at a header; it writes all headers back
//! when it closes.

use std::ops::Range;

use super::setting::{DATA_SLOT, STRIPE, Setting};
use super::tags::{SECTOR, Tag};

const HEADER_SECTORS: usize = 8;
const IDENTITY: [u8; 14] = *b"BDEV_UBI\0\0\0\x01\0\x40";

/// A volume that it has open.
pub struct BdevUbi<'a> {
    setting: &'a Setting,
    disk: &'a mut [Tag],
    area: Vec<u8>,
    image: Vec<Tag>,
}

impl<'a> BdevUbi<'a> {
    /// Whether it would take a disk for a volume of its own.
    pub fn would_open(disk: &[Tag]) -> bool {
        let mut first = [0; SECTOR];
        disk[0].fill(&mut first);
        first[..14] == IDENTITY
    }

    /// Open a volume.
    ///
    /// # Errors
    /// When it would not be taken for one of its own.
    pub fn open(setting: &'a Setting, disk: &'a mut [Tag]) -> Result<Self, String> {
        let mut area = vec![0; HEADER_SECTORS * SECTOR];
        Tag::fill_all(&disk[..HEADER_SECTORS], &mut area);
        if area[..14] != IDENTITY {
            return Err(format!("bdev_ubi 0.1 does not know a volume that starts with {:02x?}", &area[..14]));
        }
        Ok(Self { image: setting.fresh(), setting, disk, area })
    }

    pub fn read(&mut self, range: Range<usize>) -> Vec<Tag> {
        range.map(|sector| self.on_disk(sector)).collect()
    }

    pub fn write(&mut self, range: Range<usize>, tag_of: impl Fn(usize) -> Tag) {
        for sector in range {
            self.on_disk(sector);
            self.disk[DATA_SLOT + sector] = tag_of(sector);
        }
    }

    pub fn close(self) {
        for (tag, sector) in self.disk.iter_mut().zip(self.area.chunks_exact(SECTOR)) {
            *tag = Tag::of(sector);
        }
    }

    /// What a sector holds, brought to the disk first if the image has it and its header is not set.
    fn on_disk(&mut self, sector: usize) -> Tag {
        let image_end = self.setting.image_bytes.div_ceil(self.setting.block_size as usize) * self.setting.block();
        let header = 14 + 2 * (sector / STRIPE);
        if sector < image_end && self.area[header] == 0 {
            let start = sector / STRIPE * STRIPE;
            let end = (start + STRIPE).min(self.setting.volume);
            self.disk[DATA_SLOT + start..DATA_SLOT + end].copy_from_slice(&self.image[start..end]);
            self.area[header] = 1;
        }
        self.disk[DATA_SLOT + sector]
    }
}
