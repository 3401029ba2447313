//! Whether a volatile map is to be believed beside the base that names it.
//!
//! Before a header is written the map says that the base holds its stripe, and once the header is durable the map says
//! that as well. So each finds out when the other is an older state than it was last used with (INV-2, INV-6).

use std::sync::Arc;

use super::examine::{self, Request};
use super::geometry::StripeIndex;
use super::host::{Host, MapIdentity, Mapped, VolatileMap};
use super::layout::{self, Identity, MINOR_CLOSED};
use super::refusal::{Name, Refusal, listed_ranges, ranges};
use super::sectors::SECTOR;
use super::superblock::{Superblock, VolumeState};
use crate::bdev::Bdev;

/// A map that goes with its base.
pub struct Continued {
    pub map: Arc<dyn VolatileMap>,
    /// What it says of each stripe.
    pub mapped: Vec<Mapped>,
}

impl Continued {
    /// Stripes whose headers are on the base, and not known to be durable: a round was cut short. `area`: the used pages.
    pub fn found(&self, area: &[u8]) -> Vec<StripeIndex> {
        let is_found = |mapped: Mapped, stripe| mapped == Mapped::OnBase && area[layout::header_at(stripe)] == 1;
        let stripes = (0..).zip(&self.mapped).filter(|&(stripe, &mapped)| is_found(mapped, stripe));
        stripes.map(|(stripe, _)| stripe).collect()
    }
}

impl std::fmt::Debug for Continued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Continued").field("mapped", &self.mapped.len()).finish_non_exhaustive()
    }
}

/// Whether the map that a superblock names counts: the volume is open, and was marked so in this boot. `area`: at least
/// the first page.
pub fn is_used(request: &Request, superblock: &Superblock, area: &[u8]) -> bool {
    let is_open = matches!(superblock.state, VolumeState::Open | VolumeState::SyncFailed);
    let is_of_boot = request.boot_id.is_none_or(|boot| boot == superblock.boot_id);
    // Cut short while it was marked: nothing was Present yet, and bdev_ubi may have had it since.
    let is_marked = !matches!(layout::identify(area), Identity::Volume { minor: MINOR_CLOSED, .. });
    is_open && is_of_boot && is_marked && !superblock.map_path.is_empty()
}

/// Open the map that a superblock names, and hold it against the headers. What damaged sectors say is left out.
///
/// # Errors
/// Why it is not to be believed: `map_missing`, `base_older_than_map`, `map_older_than_base`.
pub async fn consult(
    base: &dyn Bdev,
    host: &dyn Host,
    request: &Request,
    superblock: &Superblock,
    area: &[u8],
) -> Result<Continued, Refusal> {
    let path = &superblock.map_path;
    let missing = |why: &str| examine::map_missing(&request.base, path, why);
    let boot_id =
        request.boot_id.ok_or_else(|| missing("cannot be believed: the kernel does not say which boot this is"))?;
    let identity = base.identity().ok_or_else(|| missing("cannot be believed: the base has no identity"))?;
    let (uuid, epoch, stripes) = (superblock.uuid, superblock.epoch, superblock.stripes());
    let wanted = MapIdentity { boot_id, uuid, epoch, base: identity, stripes };
    let map = host.open_map(path.clone(), wanted).await.map_err(|why| missing(&why))?;
    let mapped: Option<Vec<_>> = (0..stripes).map(|stripe| map.get(stripe)).collect();
    let mapped = mapped.filter(|_| !map.is_broken()).ok_or_else(|| missing("is damaged"))?;
    if !fault!(MapNotCompared) {
        compare(request, superblock, &mapped, area)?;
    }
    Ok(Continued { map, mapped })
}

fn compare(request: &Request, superblock: &Superblock, mapped: &[Mapped], area: &[u8]) -> Result<(), Refusal> {
    let wrong = examine::wrong_sectors(superblock.uuid, area, superblock.stripes());
    let is_header = |stripe: StripeIndex, value: u8| {
        let at = layout::header_at(stripe);
        area[at] == value && wrong.binary_search(&((at / SECTOR) as u32)).is_err()
    };
    let contradicting = |says: Mapped, header: u8| {
        let stripes = mapped.iter().zip(0..).filter(|(mapped, stripe)| **mapped == says && is_header(*stripe, header));
        ranges(&stripes.map(|(_, stripe)| stripe).collect::<Vec<_>>())
    };
    let (base, path) = (&request.base, String::from_utf8_lossy(&superblock.map_path));
    let advice = "or give recover \"discard_unpublished\" to go by the headers of the base alone, as after a power cut";
    let older = contradicting(Mapped::Durable, 0);
    if !older.is_empty() {
        let message = format!(
            "base {base} is older than its volatile map {path}: the headers of the stripes {} were durable and are not \
             set, so an earlier state of the base (a backup, a snapshot) is in its place. Put the newer one back, {advice}",
            listed_ranges(&older)
        );
        return Err(Refusal { stripes: older, ..Refusal::new(Name::BaseOlderThanMap, message) });
    }
    let newer = contradicting(Mapped::Missing, 1);
    if !newer.is_empty() {
        let message = format!(
            "base {base} is newer than its volatile map {path}, which does not know the stripes {} that have headers: \
             an earlier state of the map is in its place. Put the newer one back, {advice}",
            listed_ranges(&newer)
        );
        return Err(Refusal { stripes: newer, ..Refusal::new(Name::MapOlderThanBase, message) });
    }
    Ok(())
}

/// What a map made now begins with: headers that are durable.
pub fn begin(area: &[u8], stripes: u32) -> Vec<Mapped> {
    let mapped = |stripe| if area[layout::header_at(stripe)] == 1 { Mapped::Durable } else { Mapped::Missing };
    (0..stripes).map(mapped).collect()
}
