//! Sectors as tags: eight bytes stand for 512, so that disks are cheap to copy, to compare and to tear apart.
//!
//! A sector that repeats eight bytes is its own tag. Any other content is remembered once per thread and named by a
//! hash of it, so that nothing is lost and a run is the same every time.

use std::cell::RefCell;
use std::collections::HashMap;

/// Bytes of a sector: the unit in which a disk keeps or loses what was not flushed.
pub const SECTOR: usize = 512;

const REMEMBERED: u64 = 1 << 63;

/// The content of a sector.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(u64);

thread_local! {
    static CONTENTS: RefCell<HashMap<u64, Box<[u8; SECTOR]>>> = RefCell::default();
}

impl Tag {
    pub const ZERO: Tag = Tag(0);

    /// What the image has in this sector of the volume.
    pub fn image(sector: usize) -> Self {
        Self::made(1, 0, sector)
    }

    /// What an earlier user of the base left: must never be read.
    pub fn canary(slot: usize) -> Self {
        Self::made(2, 0, slot)
    }

    /// What a base that does not promise zeros reads as after a discard.
    pub fn garbage(slot: usize) -> Self {
        Self::made(3, 0, slot)
    }

    /// What a request wrote to this sector of the volume.
    pub fn written(request: usize, sector: usize) -> Self {
        Self::made(4, request, sector)
    }

    fn made(kind: u64, request: usize, sector: usize) -> Self {
        Self(kind << 56 | (request as u64) << 32 | sector as u64)
    }

    /// The tag of 512 bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let first = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        if first & REMEMBERED == 0 && bytes[8..] == bytes[..SECTOR - 8] {
            return Self(first);
        }
        let hash = bytes
            .chunks_exact(8)
            .fold(0, |hash, word| mix(hash ^ u64::from_le_bytes(word.try_into().expect("eight bytes"))))
            | REMEMBERED;
        CONTENTS.with_borrow_mut(|contents| {
            let known = contents.entry(hash).or_insert_with(|| Box::new(bytes.try_into().expect("a sector")));
            assert_eq!(known[..], *bytes, "two contents share a hash");
        });
        Self(hash)
    }

    /// The tags of whole sectors.
    pub fn all_of(bytes: &[u8]) -> Vec<Self> {
        bytes.chunks_exact(SECTOR).map(Self::of).collect()
    }

    /// Write the 512 bytes.
    pub fn fill(self, sector: &mut [u8]) {
        if self.0 & REMEMBERED == 0 {
            let bytes = self.0.to_le_bytes();
            sector.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&bytes));
        } else {
            CONTENTS.with_borrow(|contents| sector.copy_from_slice(&contents[&self.0][..]));
        }
    }

    /// Write the bytes of many sectors.
    pub fn fill_all(tags: &[Self], bytes: &mut [u8]) {
        for (tag, sector) in tags.iter().zip(bytes.chunks_exact_mut(SECTOR)) {
            tag.fill(sector);
        }
    }

    /// A number for hashes.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (request, sector) = (self.0 >> 32 & 0xff_ffff, self.0 & 0xffff_ffff);
        match self.0 >> 56 {
            0 if self.0 == 0 => f.write_str("zeros"),
            1 => write!(f, "image[{sector}]"),
            2 => write!(f, "canary[{sector}]"),
            3 => write!(f, "garbage[{sector}]"),
            4 => write!(f, "request {request}[{sector}]"),
            _ if self.0 & REMEMBERED != 0 => write!(f, "content {:x}", self.0),
            _ => write!(f, "unknown {:x}", self.0),
        }
    }
}

/// One step of a hash that spreads every bit.
pub fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A hash of a disk.
pub fn hash(tags: &[Tag]) -> u64 {
    tags.iter().fold(0x5151, |hash, tag| (hash ^ tag.0).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(23))
}
