//! Opening: what is on the base is read and judged; a new base is formatted, an adoption and what a cut interrupted are
//! brought to their end. Afterwards the volume is either as a clean close leaves it, or in recovery.

use std::ops::Range;

use super::UbiOptions;
use super::examine::{self, Decision, Found, FoundVolume, Recovery, Request};
use super::geometry::Geometry;
use super::host::Mapped;
use super::inspect::{self, Metadata};
use super::layout::{self, MINOR_CLOSED, MINOR_OPEN};
use super::map_check::{self, Continued};
use super::sectors::{self, SECTOR};
use super::superblock::{Slot, StoredImage, Superblock, VolumeState};
use super::superblocks::{self, Superblocks};
use super::uuid::Uuid;
use crate::bdev::{Bdev, ZeroFlags};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::sys::buf::{IoBuf, IoData};

/// One write of header pages.
const WRITE_PIECE: usize = 1 << 20;
/// One piece of what a new volume zeroes past the image end.
const ZERO_PIECE: u64 = 1 << 30;

/// A volume whose metadata are known and whole.
pub struct Loaded {
    pub geometry: Geometry,
    /// The used pages of the metadata area as they are on stable storage.
    pub area: Vec<u8>,
    pub superblocks: Superblocks,
    /// None: as a clean close leaves it.
    pub recovery: Option<Recovery>,
    /// The map that is continued.
    pub map: Option<Continued>,
    /// What an operator should know of it.
    pub remark: Option<String>,
}

/// Read what the base has and judge it, or format it.
///
/// # Errors
/// A refusal (EINVAL) with nothing written; and those of the base.
pub async fn load(base: &dyn Bdev, image: &dyn Image, options: &UbiOptions) -> Result<Loaded> {
    let request = request(base, image, options);
    // Sizes first: they are wrong whatever the base holds.
    let asked_kb = options.stripe_size_kb.unwrap_or(examine::DEFAULT_STRIPE_SIZE_KB);
    let mut geometry = Geometry::new(base.info(), image.size_bytes(), asked_kb)?;
    let mut metadata = inspect::read_metadata(base).await?;
    let found = examine::find(&request, &metadata.area, &metadata.slots).map_err(examine_error)?;
    let (found, decision) = match found {
        Found::New => (None, Decision::Format),
        Found::Volume(found) => {
            if found.stripe_size_kb != asked_kb {
                geometry = Geometry::new(base.info(), image.size_bytes(), found.stripe_size_kb)?;
            }
            inspect::read_headers(base, &mut metadata, geometry.stripes).await?;
            let judged = examine::judge(&request, &found, &metadata.area, geometry.stripes);
            let decision = judged.map_err(examine_error)?;
            (Some(*found), decision)
        }
    };
    let superblocks = superblocks(&request, options, &geometry, found.as_ref(), &metadata);
    let remark = remark(&request, found.as_ref(), &metadata);
    let has_old_slot = metadata.slots[1] != Slot::Absent;
    let opening = Opening { base, options, request, geometry, area: metadata.area, superblocks, has_old_slot };
    let loaded = opening.go_on(found.as_ref(), decision).await?;
    Ok(Loaded { remark, ..loaded })
}

fn examine_error(refusal: super::refusal::Refusal) -> Error {
    refusal.into_error()
}

fn request(base: &dyn Bdev, image: &dyn Image, options: &UbiOptions) -> Request {
    let identity = image.identity();
    let image = StoredImage { kind: identity.kind.into(), size_bytes: identity.size_bytes, tag: identity.tag };
    Request {
        base: base.info().name.clone(),
        image: Some(image),
        stripe_size_kb: options.stripe_size_kb,
        uuid: options.uuid,
        wipe: options.wipe,
        adopt: options.adopt,
        discard_unpublished: options.discard_unpublished,
        boot_id: options.host.boot_id(),
    }
}

/// The superblocks that are there, or those that a new or adopted volume will have.
fn superblocks(
    request: &Request,
    options: &UbiOptions,
    geometry: &Geometry,
    found: Option<&FoundVolume>,
    metadata: &Metadata,
) -> Superblocks {
    if let Some((slot, superblock)) = found.and_then(|found| found.superblock.clone()) {
        return Superblocks::found(slot, superblock, &metadata.slots);
    }
    Superblocks::new(Superblock {
        state: VolumeState::Formatting,
        sequence: 0,
        epoch: 0,
        uuid: request.uuid.filter(|uuid| !uuid.is_nil()).unwrap_or_else(|| options.host.new_uuid()),
        boot_id: Uuid::NIL,
        features: Default::default(),
        stripe_size_kb: geometry.stripe_size_kb,
        adopts_changed: false,
        image_end: geometry.image_end,
        image: request.image.clone().unwrap_or_default(),
        set_headers: 0,
        digests: Default::default(),
        map_path: Vec::new(),
    })
}

/// What is survived and should be known: a superblock slot that is damaged.
fn remark(request: &Request, found: Option<&FoundVolume>, metadata: &Metadata) -> Option<String> {
    found?.superblock.as_ref()?;
    let report = inspect::report(request, metadata, None);
    let slot = report.problems.into_iter().find(|problem| problem.name == super::refusal::Name::SuperblockSlot);
    slot.map(|problem| problem.message)
}

/// A volume while it is opened.
struct Opening<'a> {
    base: &'a dyn Bdev,
    options: &'a UbiOptions,
    request: Request,
    geometry: Geometry,
    area: Vec<u8>,
    superblocks: Superblocks,
    /// The slot that a format writes last holds something.
    has_old_slot: bool,
}

impl Opening<'_> {
    async fn go_on(mut self, found: Option<&FoundVolume>, decision: Decision) -> Result<Loaded> {
        let (mut recovery, mut map) = (None, None);
        let is_doubled = found.is_some_and(|found| found.is_doubled);
        match decision {
            Decision::Format => self.format().await?,
            Decision::Adopt { changed } => {
                // Not noted on disk: a repair would take what bdev_ubi has changed for damage.
                self.flush_found(false, None).await?;
                self.adopt(changed).await?;
            }
            Decision::Open { finish } => {
                self.flush_found(is_doubled, None).await?;
                if finish {
                    self.close().await?;
                }
            }
            Decision::Recover(how) => {
                map = self.continued_map(how).await?;
                recovery = Some(if map.is_some() { Recovery::WithMap } else { how });
                self.recover(is_doubled, map.as_ref()).await?;
                if recovery == Some(Recovery::Discarding) {
                    self.disown_map().await?;
                }
            }
        }
        let Self { geometry, area, superblocks, .. } = self;
        Ok(Loaded { geometry, area, superblocks, recovery, map, remark: None })
    }

    /// The map of this boot, if the superblock names one; None when the headers alone count.
    async fn continued_map(&self, how: Recovery) -> Result<Option<Continued>> {
        if how == Recovery::Headers {
            return Ok(None);
        }
        let (host, superblock) = (&*self.options.host, self.superblocks.current());
        match map_check::consult(self.base, host, &self.request, superblock, &self.area).await {
            Ok(continued) if continued.map.sync_failed() && !fault!(SyncFailedForgotten) => {
                Err(examine::sync_failed(&self.request.base).into_error())
            }
            Ok(continued) => {
                continued.map.hold();
                Ok(Some(continued))
            }
            Err(_) if how == Recovery::Discarding => Ok(None),
            Err(refusal) => Err(refusal.into_error()),
        }
    }

    /// Let what was found count from now on, beside the map that is continued.
    async fn recover(&mut self, is_doubled: bool, continued: Option<&Continued>) -> Result<()> {
        let is_durable = |continued: &&Continued| continued.map.is_marking_durable() || fault!(MarkingBelieved);
        if let Some(continued) = continued.filter(is_durable).filter(|_| is_doubled) {
            return self.take_over(continued).await;
        }
        if let Some(continued) = continued.filter(|_| !fault!(MarkingStays)) {
            continued.map.set_marking_durable(false);
        }
        // What a process left in the page cache when it died is read, but not durable yet.
        self.flush_found(is_doubled, continued).await?;
        if !is_doubled {
            let facts = self.superblocks.current().clone();
            self.change_state(facts, MINOR_OPEN).await?;
        }
        if let Some(continued) = continued {
            continued.map.set_marking_durable(true);
        }
        Ok(())
    }

    /// From now on the headers alone count: a map that was given up must not be believed when it turns up again, since
    /// guests have been told meanwhile that what only it knew is the image's.
    async fn disown_map(&mut self) -> Result<()> {
        let before = self.superblocks.current().clone();
        self.change_state(superblocks::disowned(&before), MINOR_OPEN).await?;
        self.forget_map(before).await;
        Ok(())
    }

    /// Go on where a process of this boot has ended, without waiting for the disk: guests wait meanwhile, and a flush
    /// takes as long as all that they have written. The marking is durable, so both superblocks and the minor version are.
    /// The pages are written again, as where they are flushed at once: the first flush then makes durable what a dead
    /// process has left, or fails for it. No header is written before that flush, and the map calls the found ones durable
    /// after it (INV-1, INV-5).
    async fn take_over(&self, continued: &Continued) -> Result<()> {
        if fault!(TakenForDurable) {
            self.note_durable(continued);
        }
        self.write_area(0).await
    }

    /// Make durable what was read, before it is believed to be: a dead process may have left it in the page cache, and a
    /// flush that failed and was told to nobody who remembers may have dropped it from there on. So the pages and the
    /// newest superblock are written once more as they are, which no tearing can harm. A failed flush is final, also for
    /// who opens the volume next.
    async fn flush_found(&mut self, is_doubled: bool, continued: Option<&Continued>) -> Result<()> {
        if fault!(FoundNotFlushed) {
            return Ok(());
        }
        self.write_area(0).await?;
        self.superblocks.write_again(self.base).await?;
        let Err(error) = self.base.flush().await else {
            if let Some(continued) = continued {
                self.note_durable(continued);
            }
            return Ok(());
        };
        if let Some(continued) = continued {
            continued.map.set_sync_failed();
        }
        // On disk as well, if both slots say the same: the newest is not durable now, the other one is.
        let is_served = self.superblocks.current().state != VolumeState::Formatting;
        if is_doubled && is_served && !fault!(SyncFailedForgotten) {
            let facts = Superblock {
                state: VolumeState::SyncFailed,
                boot_id: self.request.boot_id.unwrap_or_default(),
                ..self.superblocks.current().clone()
            };
            let page = self.first_page(MINOR_OPEN);
            let flush = async || self.base.flush().await;
            self.superblocks.trust_other();
            let _ = self.superblocks.change(self.base, facts, Some(page), flush).await;
        }
        Err(error)
    }

    /// The headers are durable: those of a round that was cut short as well.
    fn note_durable(&self, continued: &Continued) {
        continued.found(&self.area).into_iter().for_each(|stripe| continued.map.set(stripe, Mapped::Durable));
    }

    fn first_page(&self, minor: u16) -> IoData {
        let page = layout::page_bytes(&self.geometry);
        superblocks::first_page(&self.area, self.superblocks.current().uuid, minor, page)
    }

    async fn change_state(&mut self, facts: Superblock, minor: u16) -> Result<()> {
        let page = self.first_page(minor);
        self.area[..SECTOR].copy_from_slice(&page[..SECTOR]);
        self.superblocks.change(self.base, facts, Some(page), async || self.base.flush().await).await
    }

    /// As a clean close.
    async fn close(&mut self) -> Result<()> {
        let before = self.superblocks.current().clone();
        let facts = superblocks::closed(&before, &self.area, self.geometry.stripes);
        self.change_state(facts, MINOR_CLOSED).await?;
        self.forget_map(before).await;
        Ok(())
    }

    /// Remove the map that the disk named and names no more.
    async fn forget_map(&self, before: Superblock) {
        if !before.map_path.is_empty() {
            self.options.host.remove_map(before.map_path, before.uuid, self.base.identity()).await;
        }
    }

    /// Give every sector its check. What each says stays, so that a cut anywhere is gone on from.
    async fn adopt(&mut self, changed: bool) -> Result<()> {
        let digests = sectors::digests(&self.area, self.geometry.stripes);
        let before = self.superblocks.current().clone();
        let facts = Superblock {
            state: VolumeState::Adopting,
            boot_id: Uuid::NIL,
            adopts_changed: changed,
            digests,
            map_path: Vec::new(),
            ..before.clone()
        };
        if !fault!(AdoptionUnannounced) {
            self.change_state(facts, MINOR_OPEN).await?;
        }
        self.seal_all();
        self.write_area(0).await?;
        self.base.flush().await?;
        self.close().await
    }

    fn seal_all(&mut self) {
        let uuid = self.superblocks.current().uuid;
        let used = sectors::used(self.geometry.stripes);
        for (index, sector) in self.area.chunks_exact_mut(SECTOR).take(used).enumerate() {
            sectors::seal(uuid, index, sector);
        }
    }

    async fn write_area(&self, from: usize) -> Result<()> {
        for start in (from..self.area.len()).step_by(WRITE_PIECE) {
            let piece = &self.area[start..self.area.len().min(start + WRITE_PIECE)];
            self.base.write(start as u64, IoData::new(IoBuf::from_slice(piece)), false).await?;
        }
        Ok(())
    }

    /// Make a new volume: nothing that an earlier user of the base left may show (INV-2), and the magic comes last, so
    /// that a format that was cut short is done again.
    async fn format(&mut self) -> Result<()> {
        if !fault!(TailNotZeroed) {
            zero_past_image(self.base, &self.geometry).await?;
        }
        if self.has_old_slot {
            // Beside the magic a superblock of an earlier volume would contradict the new one.
            superblocks::clear(self.base, 1).await?;
            self.base.flush().await?;
        }
        self.area = vec![0; layout::used_bytes(&self.geometry)];
        self.seal_all();
        // Without the magic yet. Written, not punched: a header never fails for want of space.
        self.area[..SECTOR].fill(0);
        self.write_area(0).await?;
        layout::put_identity(&mut self.area, self.geometry.stripe_size_kb);
        sectors::seal(self.superblocks.current().uuid, 0, &mut self.area[..SECTOR]);
        let digests = sectors::digests(&self.area, self.geometry.stripes);
        let facts = Superblock { digests, ..self.superblocks.current().clone() };
        // One slot only: a cut tears no more than that, so that two damaged ones are never a format's work.
        self.superblocks.write(self.base, 0, &facts).await?;
        if !fault!(MagicTooEarly) {
            self.base.flush().await?;
        }
        self.superblocks.written(0, facts.clone());
        let sector = IoBuf::from_slice(&self.area[..self.geometry.block_bytes as usize]);
        self.base.write(0, IoData::new(sector), false).await?;
        // Without the magic the two slots together still tell of a format that was cut short.
        let facts = Superblock { state: VolumeState::Clean, ..facts };
        self.superblocks.write(self.base, 1, &facts).await?;
        self.base.flush().await?;
        self.superblocks.written(1, facts.clone());
        // The next flush makes it durable; until then the slot says the same of the headers.
        self.superblocks.write(self.base, 0, &facts).await
    }
}

/// Past the image end the base is the truth from now on; the image's part of a shared block is still missing.
async fn zero_past_image(base: &dyn Bdev, geometry: &Geometry) -> Result<()> {
    let start = geometry.image_end - geometry.image_end % geometry.block_bytes;
    zero_range(base, geometry.on_base(start)..geometry.on_base(geometry.volume_bytes)).await
}

/// Zero whole blocks of the base.
pub async fn zero_range(base: &dyn Bdev, range: Range<u64>) -> Result<()> {
    let mut position = range.start;
    while position < range.end {
        let len = (range.end - position).min(ZERO_PIECE);
        base.write_zeroes(position, len, ZeroFlags::default()).await?;
        position += len;
    }
    Ok(())
}
