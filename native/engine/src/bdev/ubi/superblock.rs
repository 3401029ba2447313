//! The superblock: what the 0.1 layout has no place for, in two slots inside its padding. Bytes only, no I/O.
//!
//! Source: docs/on-disk-format.md. Both slots are written one after the other, each flushed before the next, so that one
//! damaged or torn slot leaves the other; the higher sequence number is the newer.

use super::geometry::{SECTOR_BYTES, STRIPE_SIZES_KB};
use super::layout::STRIPES_MAX;
use super::uuid::Uuid;

/// Where the slots are on the base; both lie in the padding behind the headers.
pub const SLOTS_AT: [u64; 2] = [0x60_0000, 0x70_0000];
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 4096;
/// Longest path of a volatile map, bytes.
pub const MAP_PATH_MAX: usize = 1024;
/// Longest tag of an image, bytes.
pub const IMAGE_TAG_MAX: usize = 256;
const IMAGE_KIND_MAX: usize = 16;

const MAGIC: &[u8; 8] = b"ubi_rpc\0";
const FORMAT_VERSION: u32 = 1;
const CRC_AT: usize = SLOT_BYTES - 4;

/// What a volume was in when the superblock was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// Being made: no request has been served, and the magic may not be there yet.
    Formatting = 0,
    /// Closed: every stripe that is Present has its header, and the digests are those of the headers.
    Clean = 1,
    /// Stripes may be Present without a header; the map of this epoch knows which.
    Open = 2,
    /// Sectors that bdev_ubi has written are being given their checks.
    Adopting = 3,
    /// A flush of the base has failed: what was written before may be lost.
    SyncFailed = 4,
}

impl VolumeState {
    /// Every state, in the order of their numbers.
    pub const ALL: [VolumeState; 5] = [
        VolumeState::Formatting,
        VolumeState::Clean,
        VolumeState::Open,
        VolumeState::Adopting,
        VolumeState::SyncFailed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            VolumeState::Formatting => "formatting",
            VolumeState::Clean => "clean",
            VolumeState::Open => "open",
            VolumeState::Adopting => "adopting",
            VolumeState::SyncFailed => "sync_failed",
        }
    }
}

/// Features in use, as ext4 has them: who does not know one of the last two kinds must not write, or not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    pub compatible: u64,
    pub read_only_compatible: u64,
    pub incompatible: u64,
}

/// Digests of the header sectors as of the last clean close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digests {
    /// Of byte 0 of every header.
    pub states: u64,
    /// Of byte 1 of every header, which bdev_ubi never changes.
    pub checks: u64,
}

/// What a volume remembers of its image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredImage {
    /// As in `images/`; at most 16 bytes.
    pub kind: String,
    pub size_bytes: u64,
    /// Whatever changes with the content: times, ETag, digest.
    pub tag: String,
}

/// One superblock; docs/on-disk-format.md has the meaning of each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub state: VolumeState,
    pub sequence: u64,
    /// Counts the times that the volume was marked open.
    pub epoch: u64,
    pub uuid: Uuid,
    /// The boot in which it was marked open; none when it is clean.
    pub boot_id: Uuid,
    pub features: Features,
    pub stripe_size_kb: u32,
    /// `Adopting` only: bdev_ubi had changed a volume that had checks already, so that checks may be those of before.
    pub adopts_changed: bool,
    pub image_end: u64,
    pub image: StoredImage,
    /// Headers whose byte 0 is 1 as of the last clean close.
    pub set_headers: u64,
    pub digests: Digests,
    /// Absolute path of the volatile map of this epoch; empty: headers are durable before writes are acknowledged.
    pub map_path: Vec<u8>,
}

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// No superblock: zeros, or what was there before.
    Absent,
    /// It begins as a superblock does and is none: torn or damaged.
    Damaged,
    /// Whole, and of a version that this program does not know.
    Unknown(u32),
    Valid(Box<Superblock>),
}

impl Slot {
    pub fn as_str(&self) -> &'static str {
        match self {
            Slot::Absent => "absent",
            Slot::Damaged => "damaged",
            Slot::Unknown(_) => "unknown",
            Slot::Valid(_) => "valid",
        }
    }

    pub fn valid(&self) -> Option<&Superblock> {
        match self {
            Slot::Valid(superblock) => Some(superblock),
            Slot::Absent | Slot::Damaged | Slot::Unknown(_) => None,
        }
    }
}

impl Superblock {
    /// The stripes that the image covers at least in part.
    pub fn stripes(&self) -> u32 {
        let stripes = self.image_end.div_ceil(u64::from(self.stripe_size_kb) << 10);
        u32::try_from(stripes).unwrap_or(STRIPES_MAX) // decode and encode see to it that it fits
    }

    /// Whether both say the same of the volume; the sequence tells only which is newer.
    pub fn says_the_same(&self, other: &Self) -> bool {
        Self { sequence: other.sequence, ..self.clone() } == *other
    }

    /// The bytes of a slot.
    ///
    /// # Panics
    /// For a path, tag or kind that is too long, which has to be seen to before.
    pub fn encode(&self) -> [u8; SLOT_BYTES] {
        assert!(self.map_path.len() <= MAP_PATH_MAX && self.image.tag.len() <= IMAGE_TAG_MAX, "they fit");
        assert!(self.image.kind.len() <= IMAGE_KIND_MAX, "a kind is a short name");
        let mut writer = Writer { bytes: [0; SLOT_BYTES], at: 0 };
        writer.put(MAGIC);
        writer.put(&FORMAT_VERSION.to_le_bytes());
        writer.put(&(self.state as u32).to_le_bytes());
        writer.put(&self.sequence.to_le_bytes());
        writer.put(&self.epoch.to_le_bytes());
        writer.put(&self.uuid.0);
        writer.put(&self.boot_id.0);
        for word in [self.features.compatible, self.features.read_only_compatible, self.features.incompatible] {
            writer.put(&word.to_le_bytes());
        }
        writer.put(&self.stripe_size_kb.to_le_bytes());
        writer.put(&u32::from(self.adopts_changed).to_le_bytes());
        writer.put(&self.image_end.to_le_bytes());
        writer.put(&self.image.size_bytes.to_le_bytes());
        writer.put_padded(self.image.kind.as_bytes(), IMAGE_KIND_MAX);
        for word in [self.set_headers, self.digests.states, self.digests.checks] {
            writer.put(&word.to_le_bytes());
        }
        writer.put(&(self.map_path.len() as u32).to_le_bytes());
        writer.put(&(self.image.tag.len() as u32).to_le_bytes());
        writer.put_padded(&self.map_path, MAP_PATH_MAX);
        writer.put_padded(self.image.tag.as_bytes(), IMAGE_TAG_MAX);
        let crc = crc32c::crc32c(&writer.bytes[..CRC_AT]);
        writer.bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        writer.bytes
    }

    /// Read a slot. Any bytes are answered, none is guessed at (INV-6).
    pub fn decode(slot: &[u8]) -> Slot {
        let Some(slot) = slot.get(..SLOT_BYTES).filter(|slot| slot[..MAGIC.len()] == *MAGIC) else {
            return Slot::Absent;
        };
        let mut reader = Reader { bytes: slot, at: CRC_AT };
        if reader.u32() != crc32c::crc32c(&slot[..CRC_AT]) {
            return Slot::Damaged;
        }
        reader.at = MAGIC.len();
        match reader.u32() {
            FORMAT_VERSION => Self::decode_fields(&mut reader).map_or(Slot::Damaged, |sb| Slot::Valid(Box::new(sb))),
            version => Slot::Unknown(version),
        }
    }

    /// The fields behind the version; None when one of them cannot be.
    fn decode_fields(reader: &mut Reader<'_>) -> Option<Self> {
        let state = *VolumeState::ALL.get(reader.u32() as usize)?;
        let (sequence, epoch) = (reader.u64(), reader.u64());
        let (uuid, boot_id) = (Uuid(reader.array()), Uuid(reader.array()));
        let (compatible, read_only_compatible, incompatible) = (reader.u64(), reader.u64(), reader.u64());
        let (stripe_size_kb, adopts_changed) = (reader.u32(), reader.u32());
        let (image_end, size_bytes) = (reader.u64(), reader.u64());
        let kind = text(reader.array::<IMAGE_KIND_MAX>().split(|&byte| byte == 0).next()?)?;
        let (set_headers, states, checks) = (reader.u64(), reader.u64(), reader.u64());
        let (path_len, tag_len) = (reader.u32() as usize, reader.u32() as usize);
        let map_path = reader.take(MAP_PATH_MAX).get(..path_len)?.to_vec();
        let tag = text(reader.take(IMAGE_TAG_MAX).get(..tag_len)?)?;
        let superblock = Self {
            state,
            sequence,
            epoch,
            uuid,
            boot_id,
            features: Features { compatible, read_only_compatible, incompatible },
            stripe_size_kb,
            adopts_changed: adopts_changed != 0,
            image_end,
            image: StoredImage { kind, size_bytes, tag },
            set_headers,
            digests: Digests { states, checks },
            map_path,
        };
        (adopts_changed <= 1 && superblock.is_possible()).then_some(superblock)
    }

    fn is_possible(&self) -> bool {
        let (smallest, largest) = STRIPE_SIZES_KB;
        let stripe_size_kb = self.stripe_size_kb;
        if !(smallest..=largest).contains(&stripe_size_kb) || !stripe_size_kb.is_power_of_two() {
            return false;
        }
        let stripes = self.image_end.div_ceil(u64::from(stripe_size_kb) << 10);
        let ends_right = self.image.size_bytes.checked_next_multiple_of(SECTOR_BYTES) == Some(self.image_end);
        ends_right
            && stripes <= u64::from(STRIPES_MAX)
            && self.set_headers <= stripes
            && !self.uuid.is_nil()
            && !self.map_path.contains(&0)
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

struct Writer {
    bytes: [u8; SLOT_BYTES],
    at: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn put_padded(&mut self, bytes: &[u8], room: usize) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += room;
    }
}

/// Reads a slot from front to back; the fields end far before the slot does.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let bytes = &self.bytes[self.at..self.at + len];
        self.at += len;
        bytes
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N));
        array
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}
