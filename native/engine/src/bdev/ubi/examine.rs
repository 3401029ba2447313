//! What to do with a base, decided from its bytes and from what was asked for. No I/O, nothing guessed (INV-6).
//!
//! In two steps, because how many headers there are follows from the first: [`find`] looks at the first page and the two
//! superblock slots, [`judge`] at the header sectors. Source: docs/on-disk-format.md, "Opening", row by row.

use super::layout::{self, Identity, MINOR_CLOSED, MINOR_OPEN};
use super::refusal::{Name, Refusal, listed, listed_ranges};
use super::sectors::{self, Check, SECTOR};
use super::superblock::{Digests, Slot, StoredImage, Superblock, VolumeState};
use super::uuid::Uuid;

/// Stripe size of a new volume when none is asked for, KiB.
pub const DEFAULT_STRIPE_SIZE_KB: u32 = 1024;

/// What an open asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Names the base in messages.
    pub base: String,
    /// The image that is there now; None leaves the image out (tools).
    pub image: Option<StoredImage>,
    pub stripe_size_kb: Option<u32>,
    pub uuid: Option<Uuid>,
    /// Format although a superblock is there without a magic.
    pub wipe: bool,
    /// Take over what bdev_ubi has changed since the last clean close.
    pub adopt: bool,
    /// Give up what only a lost map knew: power-cut semantics on the same boot.
    pub discard_unpublished: bool,
    /// The boot that runs; None when the kernel does not say.
    pub boot_id: Option<Uuid>,
}

/// What the first page and the slots say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// To be formatted.
    New,
    Volume(Box<FoundVolume>),
}

/// A volume whose headers have not been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundVolume {
    pub minor: u16,
    pub stripe_size_kb: u32,
    /// The newest superblock and the slot that has it; None for a volume of bdev_ubi's.
    pub superblock: Option<(usize, Superblock)>,
    /// The other slot says the same.
    pub is_doubled: bool,
}

/// What open does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Format,
    /// A clean volume. `finish`: what a cut interrupted (the end of a format or a close, the begin of marking) is brought
    /// to its end first, by writing superblock and minor version as a clean close does.
    Open {
        finish: bool,
    },
    /// Give every sector its check; begin it, or go on with it. `changed`: the volume had checks before.
    Adopt {
        changed: bool,
    },
    /// After an unclean end.
    Recover(Recovery),
}

/// Which stripes a recovery takes for Present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The same boot: those with a header and those of the map, which is continued.
    WithMap,
    /// Those with a header: it is another boot, or no map was used.
    Headers,
    /// The same boot, and what only the map knew is given up, as asked.
    Discarding,
}

impl Recovery {
    pub fn as_str(self) -> &'static str {
        match self {
            Recovery::WithMap => "map",
            Recovery::Headers => "headers",
            Recovery::Discarding => "discarded",
        }
    }
}

/// Look at the first page of a base and at its superblock slots.
///
/// # Errors
/// A [`Refusal`] that names what is there instead of a volume, or why it does not fit the request.
pub fn find(request: &Request, first: &[u8], slots: &[Slot; 2]) -> Result<Found, Refusal> {
    let base = &request.base;
    let refuse = |name, message: String| Err(Refusal::new(name, format!("base {base} {message}")));
    let (minor, size_byte) = match layout::identify(first) {
        Identity::Zero => return find_zeroed(request, slots),
        Identity::Volume { minor, size_byte } => (minor, size_byte),
        Identity::TagLayout(mib) => {
            let message = format!(
                "has the layout of the bdev_ubi 0.1 release (stripes of {mib} MiB, 4-byte headers), which later \
                 releases changed without a new version number; it cannot be opened"
            );
            return refuse(Name::TagLayout, message);
        }
        Identity::Ubiblk => {
            return refuse(Name::Ubiblk, "has metadata of ubiblk, which keeps its data elsewhere".into());
        }
        Identity::Version(major, minor) => {
            let message = format!("has metadata of version {major}.{minor}; only 0.1 and 0.2 are known");
            return refuse(Name::UnknownVersion, message);
        }
        Identity::SizeByte(byte) => {
            return refuse(Name::UnknownStripeSize, format!("names no stripe size (byte 13 is {byte:#04x})"));
        }
        Identity::Foreign(what) => {
            let message = match slots.iter().any(|slot| slot.valid().is_some()) {
                true => format!(
                    "{what}, and the superblock of a volume behind it: if that volume is still wanted, its first sector \
                     is damaged (see ubi repair); if not, zero its first 8 MiB to use it for another"
                ),
                false => format!("{what}; to use it for a volume, zero its first 8 MiB"),
            };
            return refuse(Name::ForeignContent, message);
        }
    };
    if request.wipe {
        let message = "holds a volume, and wipe only lifts the refusal of a base whose magic has been zeroed; to make \
                       a new volume of it, zero its first 8 MiB";
        return refuse(Name::WipeOfVolume, message.into());
    }
    match newest(base, slots)? {
        Some((slot, superblock)) => find_with_superblock(request, (minor, size_byte), slots, slot, superblock),
        None => find_without_superblock(request, (minor, size_byte), slots),
    }
}

/// No magic: new, or a format that was cut short, or a volume whose magic somebody has zeroed.
fn find_zeroed(request: &Request, slots: &[Slot; 2]) -> Result<Found, Refusal> {
    let is_of_a_volume = |slot: &Slot| match slot {
        Slot::Absent | Slot::Damaged => false,
        Slot::Unknown(_) => true,
        Slot::Valid(superblock) => superblock.state != VolumeState::Formatting,
    };
    // A format writes one slot, then the other: its cut leaves at most one of them torn.
    let are_damaged = slots.iter().all(|slot| *slot == Slot::Damaged);
    let is_new = !are_damaged && !slots.iter().any(is_of_a_volume) || is_cut_format(slots);
    if request.wipe || is_new {
        return Ok(Found::New);
    }
    let message = format!(
        "base {} has no magic but a superblock: either its first sector was zeroed to make it new (then zero all of \
         its first 8 MiB, or give wipe) or that sector is lost from a volume that is still wanted (then restore it)",
        request.base
    );
    Err(Refusal::new(Name::ZeroedMagic, message))
}

/// The last step of a format writes the magic and the clean superblock, in any order; nothing was served yet, and the next
/// flush finds the other slot clean as well.
fn is_cut_format(slots: &[Slot; 2]) -> bool {
    let (Some(first), Some(second)) = (slots[0].valid(), slots[1].valid()) else { return false };
    first.state == VolumeState::Formatting
        && second.state == VolumeState::Clean
        && first.uuid == second.uuid
        && first.sequence.checked_add(1) == Some(second.sequence)
}

/// The valid superblock with the highest sequence, None when there is no trace of one.
fn newest(base: &str, slots: &[Slot; 2]) -> Result<Option<(usize, Superblock)>, Refusal> {
    let refuse = |name, message: String| Err(Refusal::new(name, format!("base {base} {message}")));
    if let Some(version) =
        slots.iter().find_map(|slot| if let Slot::Unknown(version) = slot { Some(version) } else { None })
    {
        let message = format!("has a superblock of version {version}; only 1 is known: use the program that made it");
        return refuse(Name::SuperblockUnknown, message);
    }
    match (slots[0].valid(), slots[1].valid()) {
        (Some(first), Some(second)) if first.uuid != second.uuid || first.sequence == second.sequence => {
            refuse(Name::SuperblocksDisagree, "has two superblocks that contradict each other; see ubi repair".into())
        }
        (Some(first), Some(second)) if second.sequence > first.sequence => Ok(Some((1, second.clone()))),
        (Some(first), _) => Ok(Some((0, first.clone()))),
        (None, Some(second)) => Ok(Some((1, second.clone()))),
        (None, None) if slots.contains(&Slot::Damaged) => {
            refuse(Name::SuperblockDamaged, "has no undamaged superblock; see ubi repair".into())
        }
        (None, None) => Ok(None),
    }
}

fn find_without_superblock(
    request: &Request,
    (minor, size_byte): (u16, u8),
    slots: &[Slot; 2],
) -> Result<Found, Refusal> {
    let base = &request.base;
    debug_assert!(slots.iter().all(|slot| *slot == Slot::Absent));
    if minor == MINOR_OPEN {
        let message = format!("base {base} has metadata of version 0.2 and no superblock left; see ubi repair");
        return Err(Refusal::new(Name::SuperblockDamaged, message));
    }
    let Some(stripe_size_kb) = request.stripe_size_kb else {
        let message = format!(
            "base {base} holds a volume of bdev_ubi, which does not say its stripe size; give stripe_size_kb as it \
             was made with"
        );
        return Err(Refusal::new(Name::StripeSizeNeeded, message));
    };
    check_size_byte(base, size_byte, stripe_size_kb)?;
    Ok(Found::Volume(Box::new(FoundVolume { minor, stripe_size_kb, superblock: None, is_doubled: false })))
}

fn check_size_byte(base: &str, size_byte: u8, stripe_size_kb: u32) -> Result<(), Refusal> {
    if size_byte == layout::stripe_size_byte(stripe_size_kb) {
        return Ok(());
    }
    let real = if size_byte == 0 { "256, 512 or 1024".into() } else { size_byte.to_string() };
    let message =
        format!("base {base} holds a volume with stripes of {real} KiB, not {stripe_size_kb}; give its stripe size");
    Err(Refusal::new(Name::StripeSizeDiffers, message))
}

fn find_with_superblock(
    request: &Request,
    (minor, size_byte): (u16, u8),
    slots: &[Slot; 2],
    slot: usize,
    superblock: Superblock,
) -> Result<Found, Refusal> {
    check_fit(request, size_byte, &superblock)?;
    let is_doubled = slots[1 - slot].valid().is_some_and(|other| other.says_the_same(&superblock));
    let stripe_size_kb = superblock.stripe_size_kb;
    let superblock = Some((slot, superblock));
    Ok(Found::Volume(Box::new(FoundVolume { minor, stripe_size_kb, superblock, is_doubled })))
}

/// Whether this program and this request may have the volume at all.
fn check_fit(request: &Request, size_byte: u8, superblock: &Superblock) -> Result<(), Refusal> {
    let base = &request.base;
    let refuse = |name, message: String| Err(Refusal::new(name, format!("base {base} {message}")));
    let features = superblock.features;
    if features.incompatible != 0 || features.read_only_compatible != 0 {
        let message = format!(
            "uses features that this program does not know (incompatible {:#x}, read-only compatible {:#x}): use the \
             program that made it",
            features.incompatible, features.read_only_compatible
        );
        return refuse(Name::UnknownFeature, message);
    }
    if size_byte != layout::stripe_size_byte(superblock.stripe_size_kb) {
        let message = format!(
            "says stripes of {} KiB in its superblock, and byte 13 is {size_byte:#04x}: its first sector is damaged; \
             see ubi repair",
            superblock.stripe_size_kb
        );
        return Err(Refusal::new(Name::SectorDamaged, format!("base {base} {message}"))
            .in_sectors(vec![0], superblock.stripes()));
    }
    if let Some(asked) = request.uuid.filter(|&asked| asked != superblock.uuid) {
        return refuse(Name::UuidDiffers, format!("holds volume {}, not {asked}; leave uuid out", superblock.uuid));
    }
    if let Some(asked) = request.stripe_size_kb.filter(|&asked| asked != superblock.stripe_size_kb) {
        let real = superblock.stripe_size_kb;
        let message = format!("holds a volume with stripes of {real} KiB, not {asked}; give its stripe size");
        return refuse(Name::StripeSizeDiffers, message);
    }
    if superblock.state == VolumeState::SyncFailed {
        return Err(sync_failed(base));
    }
    check_image_size(request, superblock)
}

/// The refusal of a volume whose base has failed to flush.
pub fn sync_failed(base: &str) -> Refusal {
    let message = format!(
        "base {base} has failed to flush while its volume was open: what was written before may be lost, and a new \
         flush would not tell; ubi repair keeps or drops what had no header yet"
    );
    Refusal::new(Name::SyncFailed, message)
}

/// The refusal of an unclean volume whose map is gone, in the boot in which it was open. `why`: what became of it.
pub fn map_missing(base: &str, path: &[u8], why: &str) -> Refusal {
    let message = format!(
        "base {base} was not closed, and its volatile map {} {why}: which stripes are on the base is not known. Put the \
         map back, or give recover \"discard_unpublished\" to lose what no header tells of, as a power cut would",
        String::from_utf8_lossy(path)
    );
    Refusal::new(Name::MapMissing, message)
}

fn check_image_size(request: &Request, superblock: &Superblock) -> Result<(), Refusal> {
    let Some(image) = &request.image else { return Ok(()) };
    let was = &superblock.image;
    if (image.kind == was.kind || was.kind.is_empty()) && image.size_bytes == was.size_bytes {
        return Ok(());
    }
    let message = format!(
        "base {} holds a volume over an image of kind {} with {} bytes; this one is of kind {} and has {}: give the \
         image that it was made with",
        request.base, was.kind, was.size_bytes, image.kind, image.size_bytes
    );
    Err(Refusal::new(Name::ImageDiffers, message))
}

/// An image may only be another one when no stripe of it is needed any more.
fn check_image_tag(request: &Request, superblock: &Superblock, is_complete: bool) -> Result<(), Refusal> {
    let Some(image) = &request.image else { return Ok(()) };
    let was = &superblock.image.tag;
    if is_complete || image.tag == *was {
        return Ok(());
    }
    let message = format!(
        "base {} holds a volume over an image that has changed since ({was} then, {} now), and some of its stripes are \
         still needed; restore the image, or tell ubi repair to accept it",
        request.base, image.tag
    );
    Err(Refusal::new(Name::ImageDiffers, message))
}

/// Look at the headers of a volume. `area`: its used pages from the start of the base; `stripes`: how many the image has.
///
/// # Errors
/// A [`Refusal`] that names what is damaged or in the way.
pub fn judge(request: &Request, found: &FoundVolume, area: &[u8], stripes: u32) -> Result<Decision, Refusal> {
    let headers = Headers { request, area, stripes };
    let Some((_, superblock)) = &found.superblock else {
        headers.check_values()?;
        headers.check_unchecked()?;
        return Ok(Decision::Adopt { changed: false });
    };
    check_image_tag(request, superblock, sectors::count_set(area, stripes) == u64::from(stripes))?;
    let decision = match (superblock.state, found.minor) {
        (VolumeState::SyncFailed, _) => return Err(sync_failed(&request.base)),
        (VolumeState::Adopting, _) => headers.judge_adopting(superblock)?,
        (VolumeState::Open, MINOR_CLOSED) => headers.judge_closed(superblock, true)?,
        (VolumeState::Open, _) => {
            headers.check_sectors(superblock.uuid)?;
            Decision::Recover(headers.recovery(superblock))
        }
        (VolumeState::Clean | VolumeState::Formatting, minor) => {
            let finish = minor != MINOR_CLOSED || superblock.state != VolumeState::Clean || !found.is_doubled;
            headers.judge_closed(superblock, finish)?
        }
    };
    headers.check_values()?;
    Ok(decision)
}

/// The used sectors whose check is not right.
pub fn wrong_sectors(uuid: Uuid, area: &[u8], stripes: u32) -> Vec<u32> {
    let is_wrong = |&(index, sector): &(usize, &[u8])| sectors::look(uuid, index, sector) != Check::Right;
    sectors::each(area, stripes).filter(is_wrong).map(|(index, _)| index as u32).collect()
}

/// The refusal for sectors with a wrong check, None when there are none.
pub fn sector_damage(base: &str, wrong: Vec<u32>, stripes: u32) -> Option<Refusal> {
    if wrong.is_empty() {
        return None;
    }
    let sectors = listed(&wrong);
    let refusal = Refusal::new(Name::SectorDamaged, String::new()).in_sectors(wrong, stripes);
    let message = format!(
        "base {base} has damaged header sectors: {sectors}; whether their stripes ({}) are on the base is not known. See \
         ubi repair",
        listed_ranges(&refusal.stripes)
    );
    Some(Refusal { message, ..refusal })
}

struct Headers<'a> {
    request: &'a Request,
    area: &'a [u8],
    stripes: u32,
}

impl Headers<'_> {
    fn refuse<T>(&self, name: Name, message: &str, wrong: Vec<u32>) -> Result<T, Refusal> {
        let refusal = Refusal::new(name, String::new()).in_sectors(wrong, self.stripes);
        let message = format!("base {} {message}", self.request.base);
        Err(Refusal { message, ..refusal })
    }

    /// Byte 0 of every header is 0 or 1, none is set past the image, and what no header of the image uses is zero.
    fn check_values(&self) -> Result<(), Refusal> {
        let used = sectors::used(self.stripes);
        let held = ((self.area.len() - layout::HEADERS_AT) / 2).min(layout::STRIPES_MAX as usize) as u32;
        let is_wrong = |&stripe: &u32| {
            let at = layout::header_at(stripe);
            let (first, second) = (self.area[at], self.area[at + 1]);
            match at / SECTOR < used {
                true => first > 1 || (first == 1 && stripe >= self.stripes),
                false => first != 0 || second != 0,
            }
        };
        let Some(stripe) = (0..held).find(is_wrong) else { return Ok(()) };
        let at = layout::header_at(stripe);
        let what = match (self.area[at], stripe < self.stripes) {
            (1, false) => "is set, past the end of the image: another image, or another stripe size".into(),
            (first, _) => format!("is {first:#04x} {:#04x}", self.area[at + 1]),
        };
        let message = format!("has damaged metadata: the header of stripe {stripe} {what}; see ubi repair");
        self.refuse(Name::HeaderDamaged, &message, vec![(at / SECTOR) as u32])
    }

    /// A volume of bdev_ubi's: no sector has a check.
    fn check_unchecked(&self) -> Result<(), Refusal> {
        let wrong = self.wrong(|index, sector| !sectors::has_no_check(index, sector));
        if wrong.is_empty() {
            return Ok(());
        }
        let message = format!(
            "has header sectors with checks ({}) and no superblock: it is damaged, or not a volume of bdev_ubi; see \
             ubi repair",
            listed(&wrong)
        );
        self.refuse(Name::SuperblockDamaged, &message, wrong)
    }

    /// Every used sector has the right check.
    fn check_sectors(&self, uuid: Uuid) -> Result<(), Refusal> {
        let wrong = wrong_sectors(uuid, self.area, self.stripes);
        sector_damage(&self.request.base, wrong, self.stripes).map_or(Ok(()), Err)
    }

    fn wrong(&self, is_wrong: impl Fn(usize, &[u8]) -> bool) -> Vec<u32> {
        let wrong = sectors::each(self.area, self.stripes).filter(|(index, sector)| is_wrong(*index, sector));
        wrong.map(|(index, _)| index as u32).collect()
    }

    /// The digests as they are if the volume is as its last clean close left it.
    fn digests(&self, uuid: Uuid) -> Digests {
        let mut digests = sectors::digests(self.area, self.stripes);
        // The close writes the superblock before the minor version that its digests are for.
        if layout::minor(self.area) != MINOR_CLOSED
            && sectors::look(uuid, 0, self.area.get(..SECTOR).unwrap_or_default()) == Check::Right
        {
            let mut area = self.area.to_vec();
            area[..SECTOR].copy_from_slice(&sectors::closed(uuid, self.area));
            digests = sectors::digests(&area, self.stripes);
        }
        digests
    }

    /// A volume that says that nothing has become Present since its last clean close.
    fn judge_closed(&self, superblock: &Superblock, finish: bool) -> Result<Decision, Refusal> {
        let found = self.digests(superblock.uuid);
        if found == superblock.digests {
            self.check_sectors(superblock.uuid)?;
            return Ok(Decision::Open { finish });
        }
        self.judge_changed(superblock, found)
    }

    /// Headers that are not those of the last clean close.
    fn judge_changed(&self, superblock: &Superblock, found: Digests) -> Result<Decision, Refusal> {
        let wrong = wrong_sectors(superblock.uuid, self.area, self.stripes);
        let (count, uuid) = (wrong.len(), superblock.uuid);
        let is_open_to_bdev_ubi = layout::minor(self.area) == MINOR_CLOSED && !uuid.is_nil();
        let set = sectors::count_set(self.area, self.stripes);
        let may_be_adopted =
            is_open_to_bdev_ubi && found.checks == superblock.digests.checks && set > superblock.set_headers;
        let may_be_adopted = may_be_adopted && self.check_values().is_ok();
        if may_be_adopted && self.request.adopt {
            return Ok(Decision::Adopt { changed: true });
        }
        let what = match (is_open_to_bdev_ubi, count) {
            (false, _) | (true, 0) => "damaged since our clean close".into(),
            (true, _) => format!("changed by bdev_ubi or damaged since our clean close: {count} sectors"),
        };
        let advice = match (may_be_adopted, count) {
            (true, _) => "if bdev_ubi has had it, give adopt; if not, see ubi repair",
            (false, 0) => "whole sectors are not those of the close (older ones, as a rule); see ubi repair",
            (false, _) => "it is not what bdev_ubi leaves; see ubi repair",
        };
        let (sectors, refusal) = (listed(&wrong), Refusal::new(Name::ChangedSinceClose, String::new()));
        let places = if count == 0 { String::new() } else { format!(" ({sectors})") };
        let message = format!("base {} was {what}{places}; {advice}", self.request.base);
        Err(Refusal { message, ..refusal.in_sectors(wrong, self.stripes) })
    }

    /// An adoption that was cut short: byte 0s are as it found them, and checks are on their way.
    fn judge_adopting(&self, superblock: &Superblock) -> Result<Decision, Refusal> {
        let found = sectors::digests(self.area, self.stripes);
        if found.states != superblock.digests.states {
            return self.judge_changed(superblock, found);
        }
        let changed = superblock.adopts_changed;
        let is_wrong = |index: usize, sector: &[u8]| match sectors::look(superblock.uuid, index, sector) {
            Check::Right | Check::Absent => false,
            Check::Wrong => !changed,
        };
        let wrong = self.wrong(is_wrong);
        if wrong.is_empty() {
            return Ok(Decision::Adopt { changed });
        }
        let message = format!("has damaged header sectors: {}; see ubi repair", listed(&wrong));
        self.refuse(Name::SectorDamaged, &message, wrong)
    }

    fn recovery(&self, superblock: &Superblock) -> Recovery {
        let is_other_boot = self.request.boot_id.is_some_and(|boot| boot != superblock.boot_id);
        if superblock.map_path.is_empty() || is_other_boot {
            Recovery::Headers
        } else if self.request.discard_unpublished {
            Recovery::Discarding
        } else {
            Recovery::WithMap
        }
    }
}
