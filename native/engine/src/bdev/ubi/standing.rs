//! How a volume stands on disk while it runs: closed, or marked open with a map or without.
//!
//! Before the first stripe becomes Present the volume is marked open: a volatile map is made, the superblocks say so,
//! minor version 2 keeps bdev_ubi off. With a map a write is acknowledged when its stripes are in it; without one, when
//! their headers are durable. A volume whose guests only use what is Present stays closed on disk, and that is true.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::examine::Recovery;
use super::geometry::StripeIndex;
use super::host::{MapIdentity, NewMap, VolatileMap};
use super::layout::{self, MINOR_CLOSED, MINOR_OPEN};
use super::map_check;
use super::sectors::SECTOR;
use super::stripes::{State, StripeMap};
use super::superblock::{Superblock, VolumeState};
use super::superblocks::{self, Superblocks};
use super::uuid::Uuid;
use super::volume::Volume;
use crate::error::Result;
use crate::events::Level;
use crate::reactor::sync::{Permits, lock};

/// See the module.
pub struct Standing {
    /// Who changes the superblocks.
    turn: Arc<Permits>,
    known: Mutex<Known>,
    is_marked: AtomicBool,
    /// The least state from which a write to a stripe may be acknowledged.
    acknowledged_from: AtomicU8,
    map: OnceLock<Arc<dyn VolatileMap>>,
    /// Somebody has cut the map short, or removed it.
    has_lost_map: AtomicBool,
    /// It was not closed cleanly before it was opened.
    pub recovery: Option<Recovery>,
    /// A write of stripes that were missing has failed: part of it may be on the base.
    has_failed_write: AtomicBool,
}

struct Known {
    superblocks: Superblocks,
    /// The disk is as a clean close leaves it.
    is_closed: bool,
    /// A map that was made for a marking that has not succeeded yet.
    pending: Option<Arc<NewMap>>,
}

impl Standing {
    /// As the volume was loaded; `map` is the one that is continued.
    pub fn new(superblocks: Superblocks, recovery: Option<Recovery>, map: Option<Arc<dyn VolatileMap>>) -> Self {
        let from = if map.is_some() { State::Present } else { State::Published };
        Self {
            turn: Permits::new(1),
            known: Mutex::new(Known { superblocks, is_closed: recovery.is_none(), pending: None }),
            is_marked: AtomicBool::new(map.is_some()),
            acknowledged_from: AtomicU8::new(from as u8),
            map: map.map_or_else(OnceLock::new, OnceLock::from),
            has_lost_map: AtomicBool::new(false),
            recovery,
            has_failed_write: AtomicBool::new(false),
        }
    }

    /// A write of stripes that were missing has failed: part of it may be on the base without their headers.
    pub fn note_failed_write(&self) {
        self.has_failed_write.store(true, Ordering::Release);
    }

    /// Whether stripes may become Present.
    pub fn is_marked(&self) -> bool {
        self.is_marked.load(Ordering::Acquire)
    }

    /// The map that a write to a stripe may be acknowledged by.
    pub fn map(&self) -> Option<&Arc<dyn VolatileMap>> {
        self.map.get().filter(|_| !self.has_lost_map())
    }

    pub fn has_lost_map(&self) -> bool {
        self.has_lost_map.load(Ordering::Acquire)
    }

    /// From now on writes wait for the headers of their stripes. True the first time.
    fn lose_map(&self) -> bool {
        self.acknowledged_from.store(State::Published as u8, Ordering::Relaxed);
        !self.has_lost_map.swap(true, Ordering::AcqRel)
    }

    /// Whether a write to stripes in this range may be acknowledged as soon as the base has it.
    #[inline]
    pub fn acknowledges(&self, states: &StripeMap, stripes: Range<StripeIndex>) -> bool {
        // The states first: who sees one that came after the loss of the map sees the loss.
        states.all_at_least(stripes, self.acknowledged_from()) && !self.has_lost_map()
    }

    /// The least state of all touched stripes from which a write may be acknowledged.
    #[inline]
    pub fn acknowledged_from(&self) -> State {
        match self.acknowledged_from.load(Ordering::Relaxed) {
            from if from == State::Present as u8 => State::Present,
            _ => State::Published,
        }
    }

    /// The superblocks are about to change: whoever continues the map waits for the disk again.
    fn unmark(&self) {
        if let Some(map) = self.map.get().filter(|_| !fault!(MarkingStays)) {
            map.set_marking_durable(false);
        }
    }

    /// The newest facts that are durable.
    pub fn superblock(&self) -> Superblock {
        lock(&self.known).superblocks.current().clone()
    }

    /// A flush of the base has failed: who opens the volume after this process must know.
    pub fn note_sync_failed(&self) {
        if fault!(SyncFailedForgotten) {
            return;
        }
        if let Some(map) = self.map() {
            map.set_sync_failed();
        }
        if let Some(pending) = &lock(&self.known).pending {
            pending.map.set_sync_failed();
        }
    }
}

impl Volume {
    /// Mark the volume open, if it is not yet: afterwards stripes may become Present.
    ///
    /// # Errors
    /// What the base said; nothing may become Present then, and the next one tries again.
    pub async fn mark_open(self: &Arc<Self>) -> Result<()> {
        if self.standing.is_marked() || fault!(NeverMarked) {
            return Ok(());
        }
        let _turn = self.standing.turn.acquire().await;
        if self.standing.is_marked() {
            return Ok(());
        }
        self.rounds.check()?;
        let before = self.standing.superblock();
        let pending = self.make_map(&before).await;
        let boot_id = self.options.host.boot_id().unwrap_or_default();
        let (epoch, map_path) = match &pending {
            Some(new) => (new.epoch, new.path.clone()),
            None => (before.epoch + 1, Vec::new()),
        };
        let facts = Superblock { state: VolumeState::Open, epoch, boot_id, map_path, ..before.clone() };
        if let Some(new) = pending.as_ref().filter(|_| fault!(MarkedTooEarly)) {
            new.map.set_marking_durable(true);
        }
        self.change_state(facts, MINOR_OPEN).await?;
        if let Some(new) = pending {
            new.map.set_marking_durable(true);
            let _ = self.standing.map.set(Arc::clone(&new.map));
            self.standing.acknowledged_from.store(State::Present as u8, Ordering::Relaxed);
            lock(&self.standing.known).pending = None;
        }
        self.standing.is_marked.store(true, Ordering::Release);
        self.forget_map(&before).await;
        Ok(())
    }

    /// A map for the next epoch: the one of a marking that failed, else a new one; None without a place for maps.
    async fn make_map(&self, before: &Superblock) -> Option<Arc<NewMap>> {
        if let Some(pending) = &lock(&self.standing.known).pending {
            return Some(Arc::clone(pending));
        }
        let why = match (self.options.host.boot_id(), self.base.identity()) {
            (None, _) => "the kernel does not say which boot this is".to_owned(),
            (_, None) => return None, // a base that dies with the process needs none
            (Some(boot_id), Some(base)) => {
                let (uuid, epoch, stripes) = (before.uuid, before.epoch + 1, self.geometry.stripes);
                let begin = self.rounds.with_area(|area| map_check::begin(area, stripes));
                match self.options.host.create_map(MapIdentity { boot_id, uuid, epoch, base, stripes }, begin).await {
                    Ok(new) => {
                        let new = Arc::new(new);
                        lock(&self.standing.known).pending = Some(Arc::clone(&new));
                        return Some(new);
                    }
                    Err(error) => error.message().to_owned(),
                }
            }
        };
        let message = format!("no volatile map ({why}): the first write to a stripe waits for its header");
        self.tell(Level::Warning, &message);
        None
    }

    /// The map is gone: nothing is acknowledged by it any more, and what was is published at once.
    pub fn lose_map(self: &Arc<Self>) {
        if fault!(LostMapBelieved) || !self.standing.lose_map() {
            return;
        }
        let path = String::from_utf8_lossy(&self.standing.superblock().map_path).into_owned();
        let message = format!(
            "{}: its volatile map {path} was cut short or removed while it was in use; from now on the first write to a \
             stripe waits for its header, and what only the map knew is published at once: until then a kill loses of it \
             what was not flushed",
            self.options.name
        );
        self.counters.note_error(Level::Error, &message);
        self.tell(Level::Error, &message);
        self.ask_for_any_round();
    }

    /// Once everything is published: let the disk say that the headers alone count. No round writes headers meanwhile.
    pub async fn disown_lost_map(self: &Arc<Self>) -> Result<()> {
        let _turn = self.standing.turn.acquire().await;
        let before = self.standing.superblock();
        if before.map_path.is_empty() {
            return Ok(()); // done, or closed meanwhile
        }
        self.change_state(superblocks::disowned(&before), MINOR_OPEN).await?;
        self.tell(Level::Warning, "all is published that only its volatile map knew; it goes on without one");
        self.forget_map(&before).await;
        Ok(())
    }

    /// Change what the disk says of the volume. Whoever calls it has the turn, and no round writes headers meanwhile.
    async fn change_state(self: &Arc<Self>, facts: Superblock, minor: u16) -> Result<()> {
        let mut superblocks = {
            let mut known = lock(&self.standing.known);
            known.is_closed = false;
            known.superblocks.clone()
        };
        self.standing.unmark();
        let page = self.rounds.first_page(facts.uuid, minor, layout::page_bytes(&self.geometry));
        let flush = async || self.flush_base().await;
        let result = superblocks.change(&*self.base, facts, Some(page.clone()), flush).await;
        if result.is_ok() {
            self.rounds.first_sector_is(&page[..SECTOR]);
        }
        let mut known = lock(&self.standing.known);
        known.superblocks = superblocks;
        known.is_closed = result.is_ok() && minor == MINOR_CLOSED;
        result
    }

    /// Write down that a flush of the base has failed, as far as the base takes it.
    pub async fn record_sync_failure(self: &Arc<Self>) {
        if fault!(SyncFailedForgotten) {
            return;
        }
        let _turn = self.standing.turn.acquire().await;
        self.standing.unmark();
        let mut superblocks = lock(&self.standing.known).superblocks.clone();
        let boot_id = self.options.host.boot_id().unwrap_or_default();
        let facts = Superblock { state: VolumeState::SyncFailed, boot_id, ..superblocks.current().clone() };
        // A marked volume has its minor version, and headers of the failed round that must not be taken back.
        let page = self.rounds.first_page(facts.uuid, MINOR_OPEN, layout::page_bytes(&self.geometry));
        let page = (self.rounds.with_area(layout::minor) != MINOR_OPEN).then_some(page);
        let flush = async || {
            let _turn = self.rounds.sync_turn().await;
            self.base.flush().await
        };
        let result = superblocks.change(&*self.base, facts, page, flush).await;
        let mut known = lock(&self.standing.known);
        (known.superblocks, known.is_closed) = (superblocks, false);
        drop(known);
        if let Err(error) = result {
            self.tell(Level::Error, &format!("the failed flush could not be noted on the base: {}", error.message()));
        }
    }

    /// Bring the disk to where bdev_ubi may have it; everything is published. Left open, and told of, when the image is
    /// needed for that and cannot be read: then the next open goes on.
    ///
    /// # Errors
    /// What the base said; the volume is recovered at the next open then.
    pub async fn close_on_disk(self: &Arc<Self>) -> Result<()> {
        if lock(&self.standing.known).is_closed {
            return Ok(());
        }
        if let Some(stripe) = self.tail_in_doubt() {
            if let Err(error) = self.fill_for_close(stripe).await {
                let message = format!("stays open on disk: its last stripe could not be copied ({})", error.message());
                self.tell(Level::Warning, &message);
                return self.rounds.check();
            }
            self.flush_round().await?;
        }
        let _turn = self.standing.turn.acquire().await;
        let before = self.standing.superblock();
        let facts = self.rounds.with_area(|area| superblocks::closed(&before, area, self.geometry.stripes));
        self.change_state(facts, MINOR_CLOSED).await?;
        self.forget_map(&before).await;
        Ok(())
    }

    /// The last stripe, when a cut or an error may have left bytes of a write past the image end in it without its header:
    /// they can be read, and bdev_ubi's own fetch of the stripe would overwrite them.
    fn tail_in_doubt(&self) -> Option<StripeIndex> {
        if self.standing.recovery.is_none() && !self.standing.has_failed_write.load(Ordering::Acquire) {
            return None;
        }
        let last = self.geometry.stripes.checked_sub(1)?;
        let has_tail = self.geometry.image_part(last).end < self.geometry.stripe_end(last);
        (has_tail && self.stripes.get(last) == State::Missing && !fault!(TailInDoubtClosed)).then_some(last)
    }

    async fn fill_for_close(self: &Arc<Self>, stripe: StripeIndex) -> Result<()> {
        match self.claim(stripe) {
            Some(claim) => self.start_fetch(claim).end.wait().await,
            None => Ok(()),
        }
    }

    /// Remove the map of a superblock that no longer counts.
    async fn forget_map(&self, before: &Superblock) {
        if !before.map_path.is_empty() && before.map_path != self.standing.superblock().map_path {
            self.options.host.remove_map(before.map_path.clone(), before.uuid, self.base.identity()).await;
        }
    }

    /// The volume's own UUID.
    pub fn uuid(&self) -> Uuid {
        self.standing.superblock().uuid
    }
}
