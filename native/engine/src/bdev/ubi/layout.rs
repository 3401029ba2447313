//! The bytes of the metadata area that bdev_ubi 0.1 knows. No I/O.
//!
//! Source: docs/on-disk-format.md. Superblock and self-checking sectors are beside this module.

use super::geometry::{Geometry, StripeIndex};

/// Size of the metadata area at the start of the base.
pub const METADATA_BYTES: u64 = 8 << 20;
/// Number of stripe headers in it.
pub const STRIPES_MAX: u32 = 2_097_152;
/// Offset of the header of stripe 0.
pub const HEADERS_AT: usize = 14;
/// "BDEV_UBI" and a NUL.
pub const MAGIC: &[u8; 9] = b"BDEV_UBI\0";

const HEADER_BYTES: usize = 2;
const MAJOR_AT: usize = 9;
const MINOR_AT: usize = 11;
const STRIPE_SIZE_AT: usize = 13;
/// Pages of header bytes are read and written in units of this, or of a block if that is more.
const PAGE_BYTES: u64 = 4096;

/// Minor version of a volume that is closed and complete: what bdev_ubi opens.
pub const MINOR_CLOSED: u16 = 1;
/// Minor version of a volume that is open, or that needs recovery: what bdev_ubi refuses.
pub const MINOR_OPEN: u16 = 2;

/// What the first bytes of a base are, looked at alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// No magic: a base that has never been used, has been zeroed, or whose format was cut short.
    Zero,
    /// A volume of this format: its minor version and byte 13.
    Volume {
        minor: u16,
        size_byte: u8,
    },
    /// Stripes of so many MiB and 4-byte headers: the release 0.1 of bdev_ubi.
    TagLayout(u8),
    Ubiblk,
    Version(u16, u16),
    /// Byte 13 names no stripe size.
    SizeByte(u8),
    /// Something else, described.
    Foreign(String),
}

/// Say what the first bytes of a base are; `page` is its first page, at least 512 bytes.
pub fn identify(page: &[u8]) -> Identity {
    if page[..MAGIC.len()].iter().all(|&byte| byte == 0) {
        return Identity::Zero;
    }
    if &page[..MAGIC.len()] != MAGIC {
        return Identity::Foreign(describe(page));
    }
    let word = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    match (word(MAJOR_AT), word(MINOR_AT), page[STRIPE_SIZE_AT]) {
        (0, minor @ (MINOR_CLOSED | MINOR_OPEN), size_byte @ (0x40 | 0x80 | 0x00)) => {
            Identity::Volume { minor, size_byte }
        }
        (0, MINOR_CLOSED, mib @ (1 | 2 | 4 | 8)) => Identity::TagLayout(mib),
        (0, MINOR_CLOSED | MINOR_OPEN, size_byte) => Identity::SizeByte(size_byte),
        (2, _, _) | (0, 0, _) => Identity::Ubiblk,
        (major, minor, _) => Identity::Version(major, minor),
    }
}

/// Put a minor version into the first bytes of the area.
pub fn put_minor(area: &mut [u8], minor: u16) {
    area[MINOR_AT..STRIPE_SIZE_AT].copy_from_slice(&minor.to_le_bytes());
}

/// The minor version in the first bytes of the area.
pub fn minor(area: &[u8]) -> u16 {
    u16::from_le_bytes([area[MINOR_AT], area[MINOR_AT + 1]])
}

/// Where the header of a stripe is in the metadata area.
pub fn header_at(stripe: StripeIndex) -> usize {
    HEADERS_AT + HEADER_BYTES * stripe as usize
}

/// Unit in which header bytes are read and written.
pub fn page_bytes(geometry: &Geometry) -> usize {
    geometry.block_bytes.max(PAGE_BYTES) as usize
}

/// Bytes from the start of the base up to the end of the last page that holds a header of the image.
pub fn used_bytes(geometry: &Geometry) -> usize {
    used_bytes_of(geometry.stripes, page_bytes(geometry))
}

/// The same for so many stripes, in pages of `page` bytes.
pub fn used_bytes_of(stripes: u32, page: usize) -> usize {
    (HEADERS_AT + HEADER_BYTES * stripes as usize).next_multiple_of(page)
}

/// What byte 13 holds for a stripe size: its KiB cut to eight bits, 0 for 256 and more.
pub fn stripe_size_byte(stripe_size_kb: u32) -> u8 {
    (stripe_size_kb & 0xff) as u8
}

/// Write magic, version and stripe size into the first bytes of the area.
pub fn put_identity(area: &mut [u8], stripe_size_kb: u32) {
    area[..MAGIC.len()].copy_from_slice(MAGIC);
    area[MAJOR_AT..MINOR_AT].copy_from_slice(&0u16.to_le_bytes());
    area[MINOR_AT..STRIPE_SIZE_AT].copy_from_slice(&1u16.to_le_bytes());
    area[STRIPE_SIZE_AT] = stripe_size_byte(stripe_size_kb);
}

/// Say what a first page without our magic looks like.
fn describe(page: &[u8]) -> String {
    const KNOWN: &[(usize, &[u8], &str)] = &[
        (0, b"QFI\xfb", "holds a qcow2 image"),
        (0, b"LUKS\xba\xbe", "holds a LUKS volume"),
        (0, b"XFSB", "holds an XFS file system"),
        (0, b"hsqs", "holds a squashfs file system"),
        (0, b"KDMV", "holds a VMDK image"),
        (0, b"vhdxfile", "holds a VHDX image"),
        (0, b"conectix", "holds a VHD image"),
        (0, b"\x1f\x8b", "holds gzip data"),
        (0, b"\x28\xb5\x2f\xfd", "holds zstd data"),
        (0, b"\xfd7zXZ\0", "holds xz data"),
        (0, b"\x7fELF", "holds an ELF program"),
        (1080, b"\x53\xef", "holds an ext2, ext3 or ext4 file system"),
        (512, b"EFI PART", "holds a GPT partition table"),
        (512, b"LABELONE", "holds an LVM physical volume"),
        (3, b"NTFS    ", "holds an NTFS file system"),
        (54, b"FAT", "holds a FAT file system"),
        (82, b"FAT32", "holds a FAT file system"),
        (510, b"\x55\xaa", "holds a boot sector or an MBR partition table"),
    ];
    let known = KNOWN.iter().find(|(at, magic, _)| page.get(*at..at + magic.len()) == Some(magic));
    match known {
        Some((_, _, what)) => (*what).into(),
        None => format!("holds data of an unknown kind (first bytes {:02x?})", &page[..MAGIC.len()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_page(stripe_size_kb: u32) -> Vec<u8> {
        let mut page = vec![0; 4096];
        put_identity(&mut page, stripe_size_kb);
        page
    }

    #[test]
    fn the_identity_is_that_of_bdev_ubi() {
        let hex = |kb| first_page(kb)[..16].to_vec();
        let magic = [0x42, 0x44, 0x45, 0x56, 0x5f, 0x55, 0x42, 0x49, 0x00, 0, 0, 1, 0];
        for (kb, byte) in [(64, 0x40), (128, 0x80), (256, 0), (512, 0), (1024, 0)] {
            assert_eq!(hex(kb), [&magic[..], &[byte, 0, 0]].concat());
        }
        assert_eq!((header_at(0), header_at(249), header_at(STRIPES_MAX - 1)), (14, 512, 4_194_316));
    }

    #[test]
    fn first_pages_are_told_apart() {
        let changed = |at: usize, value: u8| {
            let mut page = first_page(64);
            page[at] = value;
            identify(&page)
        };
        assert_eq!(identify(&[0; 4096]), Identity::Zero);
        assert_eq!(identify(&first_page(64)), Identity::Volume { minor: 1, size_byte: 0x40 });
        assert_eq!(changed(11, 2), Identity::Volume { minor: 2, size_byte: 0x40 });
        assert_eq!(changed(13, 1), Identity::TagLayout(1));
        assert_eq!(changed(13, 0x41), Identity::SizeByte(0x41));
        assert_eq!(changed(9, 2), Identity::Ubiblk);
        assert_eq!(changed(11, 0), Identity::Ubiblk);
        assert_eq!(changed(11, 3), Identity::Version(0, 3));
        assert_eq!(changed(10, 1), Identity::Version(256, 1));
        assert!(matches!(changed(8, b'!'), Identity::Foreign(what) if what.contains("unknown kind")));
    }

    #[test]
    fn foreign_content_is_named() {
        let named = |at: usize, bytes: &[u8]| {
            let mut page = vec![0; 4096];
            page[0] = 0xeb;
            page[at..at + bytes.len()].copy_from_slice(bytes);
            match identify(&page) {
                Identity::Foreign(what) => what,
                other => panic!("{other:?}"),
            }
        };
        assert!(named(0, b"QFI\xfb").contains("qcow2"));
        assert!(named(1080, b"\x53\xef").contains("ext4"));
        assert!(named(512, b"EFI PART").contains("GPT"));
        assert!(named(510, b"\x55\xaa").contains("MBR"));
    }
}
