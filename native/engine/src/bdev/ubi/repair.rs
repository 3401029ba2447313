//! Repair of a base that nobody has open, after an operator has read what it costs: plan first, apply second.
//!
//! A repair decides for each stripe in doubt: *keep* takes it for Present as it is, *drop* gives it back to the image. What
//! it leaves is a volume in need of recovery by its headers alone, which the next open carries out.

use std::sync::Arc;

use xxhash_rust::xxh64::Xxh64;

use super::examine::{DEFAULT_STRIPE_SIZE_KB, Request};
use super::geometry::StripeIndex;
use super::host::{Host, Mapped, VolatileMap};
use super::inspect::{self, Metadata, Problem};
use super::layout::{self, MINOR_OPEN};
use super::map_check::Continued;
use super::refusal::{Name, listed_ranges, ranges};
use super::sectors::{self, Check, SECTOR};
use super::superblock::{Slot, Superblock, VolumeState};
use super::superblocks::{self, Superblocks};
use super::uuid::Uuid;
use crate::bdev::Bdev;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::buf::{IoBuf, IoData};

/// One write of header pages.
const WRITE_PIECE: usize = 1 << 20;

/// What becomes of the stripes in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// They are on the base as it is.
    Keep,
    /// They are read from the image again; what guests wrote to them is lost.
    Drop,
}

/// What a repair will do.
#[derive(Debug, Clone)]
pub struct Plan {
    pub problems: Vec<Problem>,
    /// What is done, a sentence each.
    pub steps: Vec<String>,
    /// What is lost by it or may be, a sentence each.
    pub loses: Vec<String>,
    /// Stands for all that the plan was made from: what is applied is what was shown.
    pub token: u64,
}

/// A repair, ready to be carried out.
struct Work {
    plan: Plan,
    /// The used pages as they will be.
    area: Vec<u8>,
    facts: Superblock,
    superblocks: Superblocks,
    /// Stripes that are written once more in their place before their headers are set.
    rewritten: Vec<StripeIndex>,
    old_map: Vec<u8>,
    /// The one that goes with the base.
    map: Option<Arc<dyn VolatileMap>>,
}

/// Say what a repair would do. Writes nothing.
///
/// # Errors
/// `InvalidState` when nothing is wrong, `Unsupported` for what no repair helps against or this choice does not, and
/// what reading the base said.
pub async fn plan(base: &dyn Bdev, host: &dyn Host, request: &Request, choice: Choice) -> Result<Plan> {
    Ok(prepare(base, host, request, choice).await?.plan)
}

/// Carry out a plan. A cut leaves a volume that is repaired, or refused as before and can be repaired again.
///
/// # Errors
/// `InvalidState` when the base is not what the plan was made from; those of [`plan`]; and those of the base.
pub async fn apply(base: &dyn Bdev, host: &dyn Host, request: &Request, choice: Choice, token: u64) -> Result<()> {
    let mut work = prepare(base, host, request, choice).await?;
    if work.plan.token != token {
        let message = format!("base {} has changed since the repair was planned; plan it again", request.base);
        return Err(Error::new(ErrorKind::InvalidState, message));
    }
    if let Some(map) = &work.map {
        map.set_marking_durable(false); // whoever continues it waits for the disk
    }
    for &stripe in &work.rewritten {
        rewrite(base, &work.facts, stripe).await?;
    }
    // What was read may be in the page cache alone: not beside it is the other slot written.
    work.superblocks.write_again(base).await?;
    base.flush().await?;
    for start in (0..work.area.len()).step_by(WRITE_PIECE) {
        let piece = &work.area[start..work.area.len().min(start + WRITE_PIECE)];
        base.write(start as u64, IoData::new(IoBuf::from_slice(piece)), false).await?;
    }
    base.flush().await?;
    let page = superblocks::first_page(&work.area, work.facts.uuid, MINOR_OPEN, page_bytes(base));
    work.superblocks.change(base, work.facts.clone(), Some(page), async || base.flush().await).await?;
    if !work.old_map.is_empty() {
        host.remove_map(work.old_map, work.facts.uuid, base.identity()).await;
    }
    Ok(())
}

fn page_bytes(base: &dyn Bdev) -> usize {
    (base.info().block_size as usize).max(4096)
}

async fn rewrite(base: &dyn Bdev, facts: &Superblock, stripe: StripeIndex) -> Result<()> {
    let stripe_bytes = u64::from(facts.stripe_size_kb) << 10;
    let start = layout::METADATA_BYTES + u64::from(stripe) * stripe_bytes;
    let end = (start + stripe_bytes).min(base.info().size_bytes());
    let content = base.read(start, (end - start) as usize).await?;
    base.write(start, IoData::new(content), false).await
}

async fn prepare(base: &dyn Bdev, host: &dyn Host, request: &Request, choice: Choice) -> Result<Work> {
    let mut metadata = inspect::read_metadata(base).await?;
    let stripes = inspect::stripes_of(request, &metadata);
    if let Some(stripes) = stripes {
        inspect::read_headers(base, &mut metadata, stripes).await?;
    }
    let mut report = inspect::report(request, &metadata, stripes);
    let map = inspect::consult_map(base, host, request, &metadata, &mut report).await;
    let Some(first) = report.problems.first().cloned() else {
        let message = format!("base {}: nothing is wrong that a repair could mend", request.base);
        return Err(Error::new(ErrorKind::InvalidState, message));
    };
    let hopeless = |why: &str| Error::new(ErrorKind::Unsupported, format!("{} ({why})", first.message));
    let Some(stripes) = stripes else { return Err(hopeless("to repair it, give its image and stripe size")) };
    let mut work = begin(request, host, &metadata, report.problems)?;
    work.map = map.as_ref().map(|continued| Arc::clone(&continued.map));
    let mut doctor = Doctor {
        request,
        metadata: &metadata,
        stripes,
        choice,
        mapped: map.map(|Continued { mapped, .. }| mapped),
        forgets_map: false,
        work,
    };
    match first.name {
        Name::SyncFailed => doctor.after_sync_failure(),
        Name::SectorDamaged | Name::HeaderDamaged | Name::ChangedSinceClose | Name::ZeroedMagic => doctor.headers(),
        Name::SuperblockDamaged | Name::SuperblocksDisagree => doctor.superblock(),
        Name::SuperblockSlot => doctor.step("both superblock slots are written anew"),
        Name::ImageDiffers => doctor.image().map_err(hopeless)?,
        Name::MapMissing | Name::BaseOlderThanMap | Name::MapOlderThanBase => {
            doctor.without_map(first.name).map_err(hopeless)?;
        }
        Name::ForeignContent
        | Name::TagLayout
        | Name::Ubiblk
        | Name::UnknownVersion
        | Name::UnknownStripeSize
        | Name::WipeOfVolume
        | Name::SuperblockUnknown
        | Name::UnknownFeature
        | Name::UuidDiffers
        | Name::StripeSizeDiffers
        | Name::StripeSizeNeeded => return Err(hopeless("no repair helps against that")),
    }
    Ok(doctor.finish())
}

/// What there is to begin with: the newest superblock, or a new one for a volume that has none.
fn begin(request: &Request, host: &dyn Host, metadata: &Metadata, problems: Vec<Problem>) -> Result<Work> {
    let plan = Plan { problems, steps: Vec::new(), loses: Vec::new(), token: 0 };
    let newest = metadata.slots.iter().enumerate().filter_map(|(slot, found)| Some((slot, found.valid()?.clone())));
    let (facts, superblocks) = match newest.max_by_key(|(_, superblock)| superblock.sequence) {
        Some((slot, superblock)) => (superblock.clone(), Superblocks::found(slot, superblock, &metadata.slots)),
        None => {
            let facts = new_superblock(request, host)?;
            (facts.clone(), Superblocks::new(facts))
        }
    };
    Ok(Work {
        plan,
        area: metadata.area.clone(),
        facts,
        superblocks,
        rewritten: Vec::new(),
        old_map: Vec::new(),
        map: None,
    })
}

fn new_superblock(request: &Request, host: &dyn Host) -> Result<Superblock> {
    let Some(image) = request.image.clone() else {
        let message = format!("base {} has no superblock left; to repair it, give its image", request.base);
        return Err(Error::new(ErrorKind::InvalidParams, message));
    };
    Ok(Superblock {
        state: VolumeState::Open,
        sequence: 0,
        epoch: 0,
        uuid: request.uuid.unwrap_or_else(|| host.new_uuid()),
        boot_id: Uuid::NIL,
        features: Default::default(),
        stripe_size_kb: request.stripe_size_kb.unwrap_or(DEFAULT_STRIPE_SIZE_KB),
        adopts_changed: false,
        image_end: image.size_bytes.next_multiple_of(super::geometry::SECTOR_BYTES),
        image,
        set_headers: 0,
        digests: Default::default(),
        map_path: Vec::new(),
    })
}

struct Doctor<'a> {
    request: &'a Request,
    metadata: &'a Metadata,
    stripes: u32,
    choice: Choice,
    /// What the volatile map says of each stripe, where it goes with the base.
    mapped: Option<Vec<Mapped>>,
    /// The next open goes by the headers alone.
    forgets_map: bool,
    work: Work,
}

impl Doctor<'_> {
    fn step(&mut self, what: impl Into<String>) {
        self.work.plan.steps.push(what.into());
    }

    fn lose(&mut self, what: impl Into<String>) {
        self.work.plan.loses.push(what.into());
    }

    fn after_sync_failure(&mut self) {
        self.lose("anything that was written after the last FLUSH that succeeded may be lost, in any stripe");
        self.forgets_map = true;
        self.mend_damaged();
        let unpublished = self.mapped_as(Mapped::OnBase);
        let in_doubt: Vec<_> = unpublished.into_iter().filter(|&stripe| !self.is_set(stripe)).collect();
        self.decide(&in_doubt, "whose headers are not on the base yet");
        self.step("the volume is no longer marked as failed");
    }

    /// Headers that cannot be believed as they are.
    fn headers(&mut self) {
        if layout::identify(&self.work.area) == layout::Identity::Zero {
            self.step("magic, version and stripe size are written again");
        }
        self.mend_damaged();
        if self.has(Name::ChangedSinceClose) {
            self.forgets_map = true; // of a marking that was cut short: nothing was Present yet
        }
        let of_map = [Name::MapMissing, Name::BaseOlderThanMap, Name::MapOlderThanBase];
        if let Some(why) = of_map.into_iter().find(|&name| self.has(name))
            && self.without_map(why).is_err()
        {
            self.step("the volume still names its volatile map, which a further repair can give up");
        }
    }

    /// No superblock is left, or two contradict each other.
    fn superblock(&mut self) {
        self.step("a new superblock is written, for the image and stripe size that were given");
        self.forgets_map = true;
        let set: Vec<_> = (0..self.stripes).filter(|&stripe| self.is_set(stripe)).collect();
        self.decide(&set, "whose headers say that they are on the base");
        self.lose("which image the volume was made from is not known any more: the given one is believed");
    }

    fn image(&mut self) -> std::result::Result<(), &'static str> {
        let Some(image) = self.request.image.clone() else { return Err("give the image") };
        if self.choice == Choice::Drop {
            return Err("choose keep to accept this image");
        }
        if image.size_bytes != self.work.facts.image.size_bytes {
            return Err("an image of another size cannot be accepted");
        }
        self.step(format!("the image is accepted: {} instead of {}", image.tag, self.work.facts.image.tag));
        self.lose("stripes that were not copied yet are read from this image, whatever it holds");
        self.work.facts.image = image;
        Ok(())
    }

    fn without_map(&mut self, why: Name) -> std::result::Result<(), &'static str> {
        if self.choice == Choice::Keep {
            return Err("only the map knows what could be kept; choose drop, or put back what belongs together");
        }
        self.forgets_map = true;
        self.step("the volume forgets its volatile map");
        self.lose("every stripe without a header is read from the image again: what was written to it is lost");
        if why == Name::BaseOlderThanMap {
            self.lose("whatever was written since this state of the base was saved is not on it");
        }
        Ok(())
    }

    /// The stripes of which a map that goes with the base says this.
    fn mapped_as(&self, says: Mapped) -> Vec<StripeIndex> {
        let mapped = self.mapped.iter().flatten().zip(0..);
        mapped.filter(|(mapped, _)| **mapped == says).map(|(_, stripe)| stripe).collect()
    }

    fn has(&self, name: Name) -> bool {
        self.work.plan.problems.iter().any(|problem| problem.name == name)
    }

    fn is_set(&self, stripe: StripeIndex) -> bool {
        self.work.area[layout::header_at(stripe)] == 1
    }

    /// Sectors whose check is wrong, and values that cannot be.
    fn mend_damaged(&mut self) {
        let uuid = self.work.facts.uuid;
        let is_wrong = |(index, sector): &(usize, &[u8])| sectors::look(uuid, *index, sector) != Check::Right;
        let wrong: Vec<_> =
            sectors::each(&self.metadata.area, self.stripes).filter(is_wrong).map(|(index, _)| index).collect();
        let in_doubt: Vec<_> = wrong
            .iter()
            .flat_map(|&index| sectors::headers_in(index))
            .filter(|&stripe| stripe < self.stripes)
            .collect();
        if self.mapped.is_some() {
            self.restore(&in_doubt);
        } else if !in_doubt.is_empty() {
            self.decide(&in_doubt, "whose header sectors are damaged");
        } else if self.has(Name::ChangedSinceClose) {
            self.step("the headers are believed as they are, although they are not those of the last clean close");
            self.lose("stripes that were written since the older sectors were made are read from the image again");
        }
    }

    /// Write headers again that the map of this boot knows: those that were durable. The map goes on to tell of the
    /// stripes that are on the base without one.
    fn restore(&mut self, damaged: &[StripeIndex]) {
        let Some(mapped) = self.mapped.as_ref().filter(|_| !damaged.is_empty()) else { return };
        for &stripe in damaged {
            self.work.area[layout::header_at(stripe)] = u8::from(mapped[stripe as usize] == Mapped::Durable);
        }
        let text = listed_ranges(&ranges(damaged));
        self.step(format!("the headers of the stripes {text} are written again as the volatile map knows them"));
    }

    /// Take stripes for Present where their byte 0 says so, or give them back to the image.
    fn decide(&mut self, stripes: &[StripeIndex], which: &str) {
        if stripes.is_empty() {
            return;
        }
        let text = listed_ranges(&ranges(stripes));
        let is_mapped = self.mapped.is_some();
        for &stripe in stripes {
            let at = layout::header_at(stripe);
            let was = self.work.area[at];
            self.work.area[at] = match self.choice {
                Choice::Keep if is_mapped => 1,
                Choice::Keep => u8::from(was == 1),
                Choice::Drop => 0,
            };
            if self.choice == Choice::Keep && was == 0 && self.work.area[at] == 1 {
                self.work.rewritten.push(stripe);
            }
        }
        match self.choice {
            Choice::Keep => {
                self.step(format!("the stripes {text}, {which}, are taken as they are"));
                self.lose(format!("where the stripes {text} are not what was written, old bytes of the base are read"));
                let unset: Vec<_> = stripes.iter().copied().filter(|&stripe| !self.is_set(stripe)).collect();
                if !unset.is_empty() {
                    let text = listed_ranges(&ranges(&unset));
                    self.lose(format!(
                        "the headers of the stripes {text} say that they are not on the base: they are read from the \
                         image again, and whatever was written to them is lost"
                    ));
                }
            }
            Choice::Drop => {
                self.step(format!("the stripes {text}, {which}, are read from the image again"));
                self.lose(format!("whatever was written to the stripes {text} is lost"));
            }
        }
    }

    /// Bring area and facts into the form that the next open recovers.
    fn finish(mut self) -> Work {
        let forgets_map = self.forgets_map || self.work.facts.state != VolumeState::Open;
        let facts = &mut self.work.facts;
        if forgets_map {
            self.work.old_map = std::mem::take(&mut facts.map_path);
            facts.boot_id = Uuid::NIL;
        }
        (facts.state, facts.adopts_changed) = (VolumeState::Open, false);
        let (uuid, stripe_size_kb) = (facts.uuid, facts.stripe_size_kb);
        let area = &mut self.work.area;
        layout::put_identity(area, stripe_size_kb);
        layout::put_minor(area, MINOR_OPEN);
        let held = ((area.len() - layout::HEADERS_AT) / 2).min(layout::STRIPES_MAX as usize) as u32;
        for stripe in 0..held {
            let at = layout::header_at(stripe);
            area[at] = u8::from(stripe < self.stripes && area[at] == 1);
            area[at + 1] = 0;
        }
        for (index, sector) in area.chunks_exact_mut(SECTOR).take(sectors::used(self.stripes)).enumerate() {
            sectors::seal(uuid, index, sector);
        }
        self.work.plan.token = self.token();
        self.work
    }

    fn token(&self) -> u64 {
        let mut hash = Xxh64::new(self.choice as u64);
        hash.update(&self.metadata.area);
        for slot in &self.metadata.slots {
            let encoded = if let Slot::Valid(superblock) = slot { superblock.encode() } else { [0; 4096] };
            hash.update(&encoded);
        }
        self.mapped.iter().flatten().for_each(|mapped| hash.update(&[*mapped as u8]));
        self.work.plan.steps.iter().chain(&self.work.plan.loses).for_each(|text| hash.update(text.as_bytes()));
        hash.digest()
    }
}
