//! A look at a base that nobody has open, for tools: what is on it, what an open would do, what is wrong. Writes nothing.

use std::ops::Range;

use super::examine::{self, Decision, Found, Recovery, Request};
use super::geometry::StripeIndex;
use super::host::Host;
use super::layout::{self, Identity};
use super::map_check::{self, Continued};
use super::refusal::{Name, Refusal};
use super::sectors;
use super::superblock::{SLOT_BYTES, SLOTS_AT, Slot, Superblock, VolumeState};
use crate::bdev::Bdev;
use crate::error::{Error, ErrorKind, Result};

/// One read of the metadata area.
const READ_PIECE: usize = 1 << 20;

/// The metadata of a base as it was read.
pub struct Metadata {
    /// The used pages, or the first one when it is not known how many are used.
    pub area: Vec<u8>,
    pub slots: [Slot; 2],
}

/// What an open would do with a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Format it.
    New,
    Clean,
    /// Recover it: it was not closed, or an adoption or a format was cut short.
    Unclean,
    /// Give checks to a volume of bdev_ubi's.
    Adoptable,
    /// Refuse it; the first problem says why.
    Refused,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::New => "new",
            Verdict::Clean => "clean",
            Verdict::Unclean => "unclean",
            Verdict::Adoptable => "adoptable",
            Verdict::Refused => "refused",
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub name: Name,
    pub message: String,
    pub sectors: Vec<u32>,
    pub stripes: Vec<Range<StripeIndex>>,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let Refusal { name, message, sectors, stripes } = refusal;
        Self { name, message, sectors, stripes }
    }
}

/// What is on a base.
#[derive(Debug, Clone)]
pub struct Report {
    pub verdict: Verdict,
    /// How a recovery would tell which stripes are on the base.
    pub recovery: Option<Recovery>,
    /// 1 or 2 behind the dot; None without our magic.
    pub minor: Option<u16>,
    pub slots: [&'static str; 2],
    pub superblock: Option<Superblock>,
    pub stripe_size_kb: Option<u32>,
    /// Stripes of the image; None when neither a superblock nor the caller says it.
    pub stripes_total: Option<u32>,
    /// Headers whose byte 0 is set.
    pub stripes_set: Option<u64>,
    pub problems: Vec<Problem>,
}

/// Read the first page and the slots.
///
/// # Errors
/// `InvalidParams` for a base that has no room for a volume, and what reading it said.
pub async fn read_metadata(base: &dyn Bdev) -> Result<Metadata> {
    let page = page_bytes(base);
    let info = base.info();
    if info.size_bytes() <= layout::METADATA_BYTES || !layout::METADATA_BYTES.is_multiple_of(page as u64) {
        let message = format!("base {} has {} bytes; the metadata alone takes 8 MiB", info.name, info.size_bytes());
        return Err(Error::new(ErrorKind::InvalidParams, message));
    }
    let area = base.read(0, page).await?.to_vec();
    let [first, second] = SLOTS_AT.map(|at| base.read(at, page.max(SLOT_BYTES)));
    Ok(Metadata { area, slots: [Superblock::decode(&first.await?), Superblock::decode(&second.await?)] })
}

/// Read the rest of the used pages of a volume of so many stripes.
pub async fn read_headers(base: &dyn Bdev, metadata: &mut Metadata, stripes: u32) -> Result<()> {
    let used = layout::used_bytes_of(stripes, page_bytes(base));
    while metadata.area.len() < used {
        let piece = (used - metadata.area.len()).min(READ_PIECE);
        metadata.area.extend_from_slice(&base.read(metadata.area.len() as u64, piece).await?);
    }
    Ok(())
}

fn page_bytes(base: &dyn Bdev) -> usize {
    (base.info().block_size as usize).max(SLOT_BYTES)
}

/// Look at a base. The request's image and stripe size are only needed for a volume without a superblock.
///
/// # Errors
/// What reading the base said; everything that is wrong with its content is in the report.
pub async fn inspect(base: &dyn Bdev, host: &dyn Host, request: &Request) -> Result<Report> {
    let mut metadata = read_metadata(base).await?;
    let stripes = stripes_of(request, &metadata);
    if let Some(stripes) = stripes {
        read_headers(base, &mut metadata, stripes).await?;
    }
    let mut report = report(request, &metadata, stripes);
    consult_map(base, host, request, &metadata, &mut report).await;
    Ok(report)
}

/// Look at the volatile map of an open volume as an open does, and add what is wrong with it to the report. The map is
/// returned when it goes with the base, also where a flush has failed.
pub async fn consult_map(
    base: &dyn Bdev,
    host: &dyn Host,
    request: &Request,
    metadata: &Metadata,
    report: &mut Report,
) -> Option<Continued> {
    let superblock = report.superblock.as_ref()?;
    if !map_check::is_used(request, superblock, &metadata.area) {
        return None;
    }
    let consulted = map_check::consult(base, host, request, superblock, &metadata.area).await;
    let is_told = superblock.state == VolumeState::SyncFailed; // which refuses it whatever the map says
    let problem = match &consulted {
        Ok(continued) if continued.map.sync_failed() && !is_told => Some(examine::sync_failed(&request.base)),
        Err(refusal) if !is_told => Some(refusal.clone()),
        Ok(_) | Err(_) => None,
    };
    if let Some(problem) = problem {
        (report.verdict, report.recovery) = (Verdict::Refused, None);
        report.problems.push(problem.into());
        // What an open survives comes last: the first problem decides.
        report.problems.sort_by_key(|problem| problem.name == Name::SuperblockSlot);
    }
    consulted.ok()
}

/// How many stripes the image has, from the superblock or from the request.
pub fn stripes_of(request: &Request, metadata: &Metadata) -> Option<u32> {
    if let Some(superblock) = newest(metadata) {
        return Some(superblock.stripes());
    }
    let (image, stripe_size_kb) = (request.image.as_ref()?, request.stripe_size_kb?);
    let stripes = image.size_bytes.div_ceil((u64::from(stripe_size_kb) << 10).max(1));
    u32::try_from(stripes).ok().filter(|&stripes| stripes <= layout::STRIPES_MAX)
}

/// The superblock that counts, whatever else is wrong.
pub fn newest(metadata: &Metadata) -> Option<&Superblock> {
    metadata.slots.iter().filter_map(Slot::valid).max_by_key(|superblock| superblock.sequence)
}

/// Say what has been read. Pure.
pub fn report(request: &Request, metadata: &Metadata, stripes: Option<u32>) -> Report {
    let superblock = newest(metadata).cloned();
    let minor = match layout::identify(&metadata.area) {
        Identity::Volume { minor, .. } => Some(minor),
        _ => None,
    };
    let decided = examine::find(request, &metadata.area, &metadata.slots).and_then(|found| match (found, stripes) {
        (Found::New, _) => Ok(Decision::Format),
        (Found::Volume(found), Some(stripes)) => examine::judge(request, &found, &metadata.area, stripes),
        (Found::Volume(_), None) => {
            let message = format!("base {} holds a volume of bdev_ubi: give its image and stripe size", request.base);
            Err(Refusal::new(Name::StripeSizeNeeded, message))
        }
    });
    let mut problems = Vec::new();
    let (verdict, recovery) = match decided {
        Ok(decision) => (verdict(&decision), recovery(&decision)),
        Err(refusal) => {
            problems.push(refusal.into());
            (Verdict::Refused, None)
        }
    };
    problems.extend(more_problems(request, metadata, superblock.as_ref()));
    let is_volume = minor.is_some() && stripes.is_some();
    Report {
        verdict,
        recovery,
        minor,
        slots: [metadata.slots[0].as_str(), metadata.slots[1].as_str()],
        stripe_size_kb: superblock.as_ref().map(|superblock| superblock.stripe_size_kb).or(request.stripe_size_kb),
        stripes_total: stripes,
        stripes_set: stripes.filter(|_| is_volume).map(|stripes| sectors::count_set(&metadata.area, stripes)),
        superblock,
        problems,
    }
}

fn verdict(decision: &Decision) -> Verdict {
    match decision {
        Decision::Format => Verdict::New,
        Decision::Open { .. } => Verdict::Clean,
        Decision::Adopt { changed: false } => Verdict::Adoptable,
        Decision::Adopt { changed: true } | Decision::Recover(_) => Verdict::Unclean,
    }
}

fn recovery(decision: &Decision) -> Option<Recovery> {
    match decision {
        Decision::Recover(recovery) => Some(*recovery),
        Decision::Format | Decision::Open { .. } | Decision::Adopt { .. } => None,
    }
}

/// What an open would survive, or does not come to.
fn more_problems(request: &Request, metadata: &Metadata, superblock: Option<&Superblock>) -> Vec<Problem> {
    let Some(superblock) = superblock else { return Vec::new() };
    let mut problems = Vec::new();
    for (slot, at) in metadata.slots.iter().zip(SLOTS_AT) {
        if slot.valid().is_none() {
            let message = format!(
                "base {}: the superblock slot at {at:#x} is {}; the other one is whole, and the next change of state \
                 writes both",
                request.base,
                slot.as_str()
            );
            problems.push(Refusal::new(Name::SuperblockSlot, message).into());
        }
    }
    if superblock.state == VolumeState::SyncFailed {
        let wrong = examine::wrong_sectors(superblock.uuid, &metadata.area, superblock.stripes());
        if let Some(refusal) = examine::sector_damage(&request.base, wrong, superblock.stripes()) {
            problems.push(refusal.into());
        }
    }
    problems
}
