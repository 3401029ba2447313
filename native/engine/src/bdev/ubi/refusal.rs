//! Why a base is not opened: a name for programs, the places for tools, and what the operator can do.

use std::ops::Range;

use super::geometry::StripeIndex;
use super::sectors;
use crate::error::{Error, ErrorKind};

macro_rules! names {
    ($($name:ident: $text:literal,)*) => {
        /// What is wrong, or in the way; the texts are part of the interface of `ubi_inspect`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Name { $($name,)* }

        impl Name {
            /// Every name with its text.
            pub const ALL: &[(Name, &str)] = &[$((Name::$name, $text),)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Name::$name => $text,)* }
            }
        }
    };
}

names! {
    ForeignContent: "foreign_content",
    TagLayout: "layout_of_0_1_release",
    Ubiblk: "ubiblk",
    UnknownVersion: "unknown_version",
    UnknownStripeSize: "unknown_stripe_size",
    ZeroedMagic: "zeroed_magic",
    WipeOfVolume: "wipe_of_volume",
    SuperblockDamaged: "superblock_damaged",
    SuperblockSlot: "superblock_slot",
    SuperblockUnknown: "superblock_unknown",
    SuperblocksDisagree: "superblocks_disagree",
    UnknownFeature: "unknown_feature",
    UuidDiffers: "uuid_differs",
    StripeSizeDiffers: "stripe_size_differs",
    StripeSizeNeeded: "stripe_size_needed",
    ImageDiffers: "image_differs",
    HeaderDamaged: "header_damaged",
    SectorDamaged: "sector_damaged",
    ChangedSinceClose: "changed_since_close",
    SyncFailed: "sync_failed",
    MapMissing: "map_missing",
    BaseOlderThanMap: "base_older_than_map",
    MapOlderThanBase: "map_older_than_base",
}

/// A base that is not opened, with nothing written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub name: Name,
    /// A whole sentence about "base NAME": what is wrong and what to do.
    pub message: String,
    /// The header sectors that are wrong, ascending.
    pub sectors: Vec<u32>,
    /// The stripes of the image whose headers are in them.
    pub stripes: Vec<Range<StripeIndex>>,
}

/// Places that a message lists before it only counts the rest.
const LISTED_MAX: usize = 8;

impl Refusal {
    pub fn new(name: Name, message: impl Into<String>) -> Self {
        Self { name, message: message.into(), sectors: Vec::new(), stripes: Vec::new() }
    }

    /// With the header sectors that are wrong, of a volume of so many stripes.
    pub fn in_sectors(self, wrong: Vec<u32>, stripes: u32) -> Self {
        let mut ranges: Vec<Range<StripeIndex>> = Vec::new();
        for &sector in &wrong {
            let headers = sectors::headers_in(sector as usize);
            let headers = headers.start.min(stripes)..headers.end.min(stripes);
            match ranges.last_mut() {
                Some(last) if last.end == headers.start => last.end = headers.end,
                _ if headers.is_empty() => {}
                _ => ranges.push(headers),
            }
        }
        Self { sectors: wrong, stripes: ranges, ..self }
    }

    /// As the error of an open. EINVAL, as bdev_ubi answers.
    pub fn into_error(self) -> Error {
        let kind = match self.name {
            Name::ForeignContent
            | Name::TagLayout
            | Name::Ubiblk
            | Name::UnknownVersion
            | Name::ZeroedMagic
            | Name::WipeOfVolume
            | Name::SuperblockUnknown
            | Name::UnknownFeature
            | Name::UuidDiffers
            | Name::StripeSizeDiffers
            | Name::StripeSizeNeeded
            | Name::ImageDiffers => ErrorKind::InvalidParams,
            Name::UnknownStripeSize
            | Name::SuperblockDamaged
            | Name::SuperblockSlot
            | Name::SuperblocksDisagree
            | Name::HeaderDamaged
            | Name::SectorDamaged
            | Name::ChangedSinceClose => ErrorKind::Corrupt,
            Name::SyncFailed | Name::MapMissing | Name::BaseOlderThanMap | Name::MapOlderThanBase => {
                ErrorKind::InvalidState
            }
        };
        Error::with_errno(kind, libc::EINVAL, self.message)
    }
}

/// "1, 2, 9" of the first few, and how many more there are.
pub fn listed(numbers: &[u32]) -> String {
    let shown = numbers.iter().take(LISTED_MAX).map(u32::to_string).collect::<Vec<_>>().join(", ");
    more(shown, numbers.len())
}

/// "0-248, 505-760" of the first few ranges, and how many more there are.
pub fn listed_ranges(ranges: &[Range<u32>]) -> String {
    let text = |range: &Range<u32>| match range.len() {
        1 => range.start.to_string(),
        _ => format!("{}-{}", range.start, range.end - 1),
    };
    let shown = ranges.iter().take(LISTED_MAX).map(text).collect::<Vec<_>>().join(", ");
    more(shown, ranges.len())
}

/// Ascending numbers as ranges.
pub fn ranges(numbers: &[u32]) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => ranges.push(number..number + 1),
        }
    }
    ranges
}

fn more(shown: String, count: usize) -> String {
    match count.saturating_sub(LISTED_MAX) {
        0 => shown,
        rest => format!("{shown} and {rest} more"),
    }
}
