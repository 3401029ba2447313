//! Sizes and positions of a volume, fixed for its life. Pure arithmetic, no I/O.
//!
//! Positions are guest bytes: byte x of the volume is byte x of the image, and byte x + 8 MiB of the base.

use std::ops::Range;

use super::layout::{METADATA_BYTES, STRIPES_MAX};
use crate::bdev::BdevInfo;
use crate::error::{Error, ErrorKind, Result};

/// The image end is rounded up to this, whatever the base's block size.
pub const SECTOR_BYTES: u64 = 512;
/// Limits of bdev_ubi 0.1.
pub const STRIPE_SIZES_KB: (u32, u32) = (64, 1024);

/// Index of a stripe that the image covers at least in part.
pub type StripeIndex = u32;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    pub block_bytes: u64,
    pub stripe_size_kb: u32,
    stripe_shift: u32,
    /// Bytes in the image.
    pub image_bytes: u64,
    /// The same rounded up to 512: from here on the base is the truth, always.
    pub image_end: u64,
    /// Stripes that the image covers at least in part.
    pub stripes: u32,
    /// Bytes of the volume when it was opened; it may have grown since.
    pub volume_bytes: u64,
}

impl Geometry {
    /// Check that the image, the stripe size and the base fit together.
    ///
    /// # Errors
    /// `InvalidParams` naming the numbers that do not fit; bdev_ubi answers EINVAL to each of them.
    pub fn new(base: &BdevInfo, image_bytes: u64, stripe_size_kb: u32) -> Result<Self> {
        let block_bytes = u64::from(base.block_size);
        check_sizes(base, stripe_size_kb)?;
        let stripe_bytes = u64::from(stripe_size_kb) << 10;
        let image_end = image_bytes.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(u64::MAX);
        let stripes = image_end.div_ceil(stripe_bytes);
        if stripes > u64::from(STRIPES_MAX) {
            return invalid(format!(
                "an image of {image_bytes} bytes has {stripes} stripes of {stripe_size_kb} KiB; the format has room \
                 for {STRIPES_MAX}"
            ));
        }
        let base_bytes = base.size_bytes();
        let needed = image_end.saturating_add(METADATA_BYTES).max(METADATA_BYTES + block_bytes);
        if base_bytes < needed {
            return invalid(format!(
                "base {} has {base_bytes} bytes; an image of {image_bytes} bytes and the metadata need {needed}",
                base.name
            ));
        }
        Ok(Self {
            block_bytes,
            stripe_size_kb,
            stripe_shift: stripe_bytes.trailing_zeros(),
            image_bytes,
            image_end,
            stripes: u32::try_from(stripes).expect("at most STRIPES_MAX"),
            volume_bytes: base_bytes - METADATA_BYTES,
        })
    }

    /// The stripe that holds a position, None in stripes wholly past the image.
    pub fn stripe_at(&self, position: u64) -> Option<StripeIndex> {
        let index = position >> self.stripe_shift;
        (index < u64::from(self.stripes)).then_some(index as StripeIndex)
    }

    /// The stripes that a non-empty range touches; its part past the last stripe of the image counts for nothing.
    pub fn stripes_of(&self, start: u64, end: u64) -> Range<StripeIndex> {
        debug_assert!(start < end);
        let last = ((end - 1) >> self.stripe_shift) + 1;
        let clip = |index: u64| index.min(u64::from(self.stripes)) as StripeIndex;
        clip(start >> self.stripe_shift)..clip(last)
    }

    /// Where a stripe starts.
    pub fn stripe_start(&self, stripe: StripeIndex) -> u64 {
        u64::from(stripe) << self.stripe_shift
    }

    /// Where a stripe ends, its part past the image included.
    pub fn stripe_end(&self, stripe: StripeIndex) -> u64 {
        (u64::from(stripe) + 1) << self.stripe_shift
    }

    /// The part of a stripe that the image covers; never empty.
    pub fn image_part(&self, stripe: StripeIndex) -> Range<u64> {
        self.stripe_start(stripe)..self.stripe_end(stripe).min(self.image_end)
    }

    /// Whether a range covers all that the image has in a stripe: then nothing of the image is needed to fill it.
    pub fn covers_image_part(&self, stripe: StripeIndex, start: u64, end: u64) -> bool {
        let part = self.image_part(stripe);
        start <= part.start && part.end <= end
    }

    /// Where a position of the volume is on the base.
    pub fn on_base(&self, position: u64) -> u64 {
        position + METADATA_BYTES
    }

    /// The smallest range of whole blocks around a range.
    pub fn to_blocks(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start - range.start % self.block_bytes;
        start..range.end.next_multiple_of(self.block_bytes)
    }
}

fn check_sizes(base: &BdevInfo, stripe_size_kb: u32) -> Result<()> {
    let (smallest, largest) = STRIPE_SIZES_KB;
    if !(smallest..=largest).contains(&stripe_size_kb) || !stripe_size_kb.is_power_of_two() {
        return invalid(format!(
            "a stripe size of {stripe_size_kb} KiB is not a power of two from {smallest} to {largest}"
        ));
    }
    let block_bytes = u64::from(base.block_size);
    if block_bytes == 0 || !block_bytes.is_multiple_of(SECTOR_BYTES) || !METADATA_BYTES.is_multiple_of(block_bytes) {
        return invalid(format!("base {} has blocks of {block_bytes} bytes; they must divide 8 MiB", base.name));
    }
    if block_bytes > u64::from(stripe_size_kb) << 10 {
        return invalid(format!(
            "base {} has blocks of {block_bytes} bytes, more than a stripe of {stripe_size_kb} KiB",
            base.name
        ));
    }
    Ok(())
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidParams, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::Survives;

    fn base(block_size: u32, bytes: u64) -> BdevInfo {
        BdevInfo {
            name: "b".into(),
            block_size,
            num_blocks: (bytes / u64::from(block_size)).into(),
            readonly: false,
            write_cache: true,
            unmap: true,
            write_zeroes: true,
            flush: true,
            unmap_reads_zero: true,
            buffered: true,
            survives: Survives::Power,
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn an_unaligned_image_ends_at_the_next_sector() {
        let geometry = Geometry::new(&base(512, 16 * MIB), 3 * MIB + 700, 1024).expect("fits");
        assert_eq!((geometry.stripes, geometry.image_end), (4, 3 * MIB + 1024));
        assert_eq!(geometry.image_part(3), 3 * MIB..3 * MIB + 1024);
        assert_eq!(geometry.volume_bytes, 8 * MIB);
        assert_eq!(geometry.stripe_at(4 * MIB - 1), Some(3));
        assert_eq!(geometry.stripe_at(4 * MIB), None);
        assert_eq!(geometry.stripes_of(2 * MIB, 6 * MIB), 2..4);
        assert!(geometry.stripes_of(5 * MIB, 6 * MIB).is_empty());
        assert!(geometry.covers_image_part(3, 3 * MIB, 3 * MIB + 1024));
        assert!(!geometry.covers_image_part(3, 3 * MIB + 512, 4 * MIB));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_numbers() {
        let refused = |base: &BdevInfo, image, stripe_kb| {
            let error = Geometry::new(base, image, stripe_kb).expect_err("refused");
            assert_eq!(error.errno(), libc::EINVAL, "{error}");
            error.message().to_owned()
        };
        let small = base(512, 9 * MIB);
        for stripe_kb in [0, 1, 32, 63, 65, 96, 1023, 1025, 2048, u32::MAX] {
            assert!(refused(&small, MIB, stripe_kb).contains(&stripe_kb.to_string()));
        }
        assert!(refused(&small, MIB + 1, 64).contains(&(9 * MIB + 512).to_string()));
        assert!(Geometry::new(&small, MIB, 64).is_ok());
        assert!(refused(&base(512, 8 * MIB), 0, 64).contains("8389120"));
        assert!(refused(&small, u64::MAX, 1024).contains(&u64::MAX.to_string()));
        assert!(refused(&base(128 << 10, 16 * MIB), MIB, 64).contains("131072"));
        assert!(refused(&base(1536, 15 * MIB), MIB, 64).contains("1536"));
    }

    #[test]
    fn the_format_has_room_for_2097152_stripes() {
        let most = u64::from(STRIPES_MAX) * (64 << 10);
        assert!(Geometry::new(&base(512, 1 << 40), most, 64).is_ok());
        assert!(Geometry::new(&base(512, 1 << 40), most + 1, 64).is_err());
    }
}
