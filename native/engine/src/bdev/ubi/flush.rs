//! Rounds: how headers become durable, and how a FLUSH is answered.
//!
//! One publisher a volume, one round at a time: freeze the set of stripes that are Present but not Published →
//! flush the base → write the header pages built from what is durable and what is frozen → flush the base → the
//! frozen stripes are Published → answer everybody who asked before the freeze. So a header is durable only after
//! the data of its stripe is (INV-1), and a FLUSH covers every write acknowledged before it (INV-5). With nothing
//! frozen a round is one flush. Who asks during a round gets the next one; all of them together get one.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::geometry::StripeIndex;
use super::host::Mapped;
use super::layout;
use super::sectors::{self, SECTOR};
use super::status::Counters;
use super::superblocks;
use super::uuid::Uuid;
use super::volume::Volume;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Level;
use crate::reactor::exec;
use crate::reactor::sync::{Permit, Permits, Promise, lock};
use crate::sys::buf::{IoBuf, IoData};

/// A stripe that nobody waits for (copied on a read) is published at the latest after this.
const PUBLISH_AFTER: Duration = Duration::from_secs(5);
/// Longest single write of header pages.
const HEADER_WRITE_MAX: usize = 128 << 10;

/// The end of a round: what it says to those who asked for it.
type Round = Promise<Result<()>>;

/// The rounds of a volume.
pub struct Rounds {
    state: Mutex<State>,
    /// What the used pages of the metadata area hold on stable storage, byte for byte.
    durable: Mutex<Vec<u8>>,
    /// Stripes whose headers a dead process has written: durable with the first flush.
    found: Mutex<Vec<StripeIndex>>,
    /// A flush of the base has failed, for good.
    failed: AtomicBool,
    /// Flushes of the base never overlap: the kernel tells of a lost write only once, to whichever asks first.
    syncing: Arc<Permits>,
}

struct State {
    /// Present stripes that no round has frozen.
    unpublished: Vec<StripeIndex>,
    /// When the first of them became Present, or was found.
    oldest: Option<Instant>,
    timer_runs: bool,
    publisher_runs: bool,
    /// The round in progress and its frozen stripes, ascending.
    current: Option<(Arc<Round>, Arc<Vec<StripeIndex>>)>,
    /// The round after it, when somebody has asked for it.
    next: Option<Arc<Round>>,
    failure: Option<Error>,
}

impl Rounds {
    /// `durable`: the used pages of the metadata area as they were read.
    /// `unpublished`: stripes that are Present already, known from a map.
    /// `found`: stripes whose headers the first flush makes durable, which the map has to be told.
    pub fn new(durable: Vec<u8>, unpublished: Vec<StripeIndex>, found: Vec<StripeIndex>) -> Self {
        let state = State {
            oldest: (!unpublished.is_empty() || !found.is_empty()).then(exec::now),
            unpublished,
            timer_runs: false,
            publisher_runs: false,
            current: None,
            next: None,
            failure: None,
        };
        let (state, durable) = (Mutex::new(state), Mutex::new(durable));
        let found = Mutex::new(found);
        Self { state, durable, found, failed: AtomicBool::new(false), syncing: Permits::new(1) }
    }

    /// The right to flush the base.
    pub async fn sync_turn(&self) -> Permit {
        self.syncing.acquire().await
    }

    /// Look at the used pages of the metadata area as they are on stable storage.
    pub fn with_area<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&lock(&self.durable))
    }

    /// The first page with another minor version.
    pub fn first_page(&self, uuid: Uuid, minor: u16, page: usize) -> IoData {
        superblocks::first_page(&lock(&self.durable), uuid, minor, page)
    }

    /// The first sector is durable with another minor version.
    pub fn first_sector_is(&self, sector: &[u8]) {
        lock(&self.durable)[..SECTOR].copy_from_slice(sector);
    }

    /// Whether a flush of the base has failed: nothing that is written from then on can be promised.
    #[inline]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Fail once a flush of the base has failed.
    ///
    /// # Errors
    /// `Io` with EIO, always the same.
    pub fn check(&self) -> Result<()> {
        if !self.has_failed() {
            return Ok(());
        }
        match &lock(&self.state).failure {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

impl Volume {
    /// Mark a filled stripe Present and note that its header has to be published.
    pub fn add_unpublished(self: &Arc<Self>, stripe: StripeIndex) {
        let mut state = lock(&self.rounds.state);
        assert!(self.standing.is_marked() || fault!(NeverMarked), "a stripe becomes Present on a marked volume");
        // The map first: who sees Present may acknowledge.
        let map = self.standing.map().filter(|_| !fault!(MapAfterAnswer));
        let is_lost = map.is_some_and(|map| {
            map.set(stripe, Mapped::OnBase);
            map.is_broken()
        });
        if is_lost {
            drop(state);
            self.lose_map(); // before anybody sees Present
            state = lock(&self.rounds.state);
        }
        // Under the lock of the freeze: who sees Present finds the stripe in a set.
        self.stripes.set_present(stripe);
        state.unpublished.push(stripe);
        if state.oldest.is_none() {
            state.oldest = Some(exec::now());
        }
        self.ensure_timer(&mut state);
    }

    /// Make every write that was acknowledged before this call durable with its header (INV-5).
    ///
    /// # Errors
    /// What the round said; EIO for ever once a flush of the base has failed.
    pub async fn flush_round(self: &Arc<Self>) -> Result<()> {
        let round = {
            let mut state = lock(&self.rounds.state);
            if let Some(error) = &state.failure {
                return Err(error.clone());
            }
            match &state.current {
                Some((round, _)) if fault!(FlushJoinsRound) => Arc::clone(round),
                _ => self.ask_for_round(&mut state),
            }
        };
        round.wait().await
    }

    /// Wait until a write to the range may be acknowledged: at once with a map, else when no stripe is left Present.
    ///
    /// # Errors
    /// What the round said that should have published them.
    pub async fn publish(self: &Arc<Self>, stripes: Range<StripeIndex>) -> Result<()> {
        while self.standing.map().is_none() && self.stripes.any_unpublished(stripes.clone()) {
            let round = {
                let mut state = lock(&self.rounds.state);
                if let Some(error) = &state.failure {
                    return Err(error.clone());
                }
                match &state.current {
                    Some((round, frozen)) if self.all_frozen(stripes.clone(), frozen) => Arc::clone(round),
                    _ => self.ask_for_round(&mut state),
                }
            };
            round.wait().await?;
        }
        Ok(())
    }

    /// Whether the round in progress publishes all that there is to publish in the range.
    fn all_frozen(&self, mut stripes: Range<StripeIndex>, frozen: &[StripeIndex]) -> bool {
        let is_covered = |stripe| frozen.binary_search(&stripe).is_ok();
        stripes.all(|stripe| self.stripes.get(stripe) != super::stripes::State::Present || is_covered(stripe))
    }

    /// The next round; starts the publisher if it does not run.
    fn ask_for_round(self: &Arc<Self>, state: &mut State) -> Arc<Round> {
        let round = Arc::clone(state.next.get_or_insert_with(Promise::new));
        if !state.publisher_runs {
            state.publisher_runs = true;
            let volume = Arc::clone(self);
            self.spawn(async move { while volume.run_next_round().await {} });
        }
        round
    }

    /// Carry out the next round; false when nobody has asked for one.
    async fn run_next_round(self: &Arc<Self>) -> bool {
        // What a map alone has acknowledged before it was lost is frozen by now, or published.
        let is_map_lost = self.standing.has_lost_map();
        let Some((round, frozen)) = self.freeze() else { return false };
        self.look_at_map(&frozen).await;
        let mut result = self.carry_out(&frozen).await;
        if result.is_ok() && !frozen.is_empty() {
            self.note_durable(&frozen);
        }
        {
            let mut state = lock(&self.rounds.state);
            state.current = None;
            match &result {
                Ok(()) => frozen.iter().for_each(|&stripe| self.stripes.set_published(stripe)),
                Err(_) if fault!(FailedRoundPublishes) => {
                    frozen.iter().for_each(|&stripe| self.stripes.set_published(stripe));
                }
                Err(_) => self.thaw(&mut state, &frozen),
            }
        }
        if result.is_ok() && is_map_lost {
            result = self.disown_lost_map().await;
        }
        round.set(result);
        true
    }

    fn freeze(&self) -> Option<(Arc<Round>, Arc<Vec<StripeIndex>>)> {
        let mut state = lock(&self.rounds.state);
        let Some(round) = state.next.take() else {
            state.publisher_runs = false;
            return None;
        };
        let mut frozen = std::mem::take(&mut state.unpublished);
        frozen.sort_unstable();
        let frozen = Arc::new(frozen);
        state.oldest = None;
        state.current = Some((Arc::clone(&round), Arc::clone(&frozen)));
        Some((round, frozen))
    }

    /// Headers are durable: from now on a base without them is not the one that the map is of.
    fn note_durable(self: &Arc<Self>, stripes: &[StripeIndex]) {
        if let Some(map) = self.standing.map().filter(|_| !fault!(DurableNotNoted)) {
            stripes.iter().for_each(|&stripe| map.set(stripe, Mapped::Durable));
            if map.is_broken() {
                self.lose_map();
            }
        }
    }

    /// Before stripes are published that perhaps only the map knows: whether it still is where a next process looks.
    async fn look_at_map(self: &Arc<Self>, frozen: &[StripeIndex]) {
        if let Some(map) = self.standing.map().filter(|_| !frozen.is_empty()).cloned()
            && !map.is_in_place().await
        {
            self.lose_map();
        }
    }

    /// Have a round that nobody waits for.
    pub fn ask_for_any_round(self: &Arc<Self>) {
        let mut state = lock(&self.rounds.state);
        if state.failure.is_none() {
            self.ask_for_round(&mut state);
        }
    }

    /// A round failed before its headers were durable: another one may publish its stripes, unless it was final.
    fn thaw(self: &Arc<Self>, state: &mut State, frozen: &[StripeIndex]) {
        state.unpublished.extend_from_slice(frozen);
        if state.failure.is_none() && !state.unpublished.is_empty() {
            state.oldest = Some(exec::now());
            self.ensure_timer(state);
        }
    }

    async fn carry_out(self: &Arc<Self>, frozen: &[StripeIndex]) -> Result<()> {
        self.rounds.check()?;
        if !fault!(NoFirstSync) || frozen.is_empty() {
            self.flush_base().await?;
        }
        if frozen.is_empty() {
            return Ok(());
        }
        let pages = self.plan_pages(frozen);
        for (offset, data) in &pages {
            if let Err(error) = self.base.write(*offset, data.clone(), false).await {
                self.note_error(Level::Error, &error);
                return Err(error);
            }
            Counters::add(&self.counters.metadata_bytes, data.len() as u64);
        }
        if fault!(DurableTooEarly) {
            self.note_durable(frozen);
        }
        if !fault!(NoSecondSync) {
            self.flush_base().await?;
        }
        if fault!(DurableForgotten) {
            return Ok(());
        }
        let mut durable = lock(&self.rounds.durable);
        for (offset, data) in &pages {
            durable[*offset as usize..*offset as usize + data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    /// The pages to write, with their offsets: durable ∪ frozen, never the live states (INV-1).
    fn plan_pages(&self, frozen: &[StripeIndex]) -> Vec<(u64, IoData)> {
        let page_bytes = layout::page_bytes(&self.geometry);
        let mut runs: Vec<Range<usize>> = Vec::new();
        for &stripe in frozen {
            let page = layout::header_at(stripe) / page_bytes * page_bytes;
            match runs.last_mut() {
                Some(run) if page < run.end => {}
                Some(run) if page == run.end && run.len() + page_bytes <= HEADER_WRITE_MAX => run.end += page_bytes,
                _ => runs.push(page..page + page_bytes),
            }
        }
        let durable = lock(&self.rounds.durable);
        let mut pages: Vec<_> = runs.into_iter().map(|run| (run.start, IoBuf::from_slice(&durable[run]))).collect();
        for &stripe in frozen {
            let at = layout::header_at(stripe);
            let page = pages.partition_point(|(start, _)| *start <= at) - 1;
            let (start, bytes) = &mut pages[page];
            bytes[at - *start] = 1;
        }
        if fault!(PagesFromLiveStates) {
            let is_ready = |&stripe: &StripeIndex| self.stripes.get(stripe).is_ready();
            (0..self.geometry.stripes).filter(is_ready).for_each(|stripe| pages[0].1[layout::header_at(stripe)] = 1);
        }
        self.seal(&mut pages);
        pages.into_iter().map(|(start, bytes)| (start as u64, IoData::new(bytes))).collect()
    }

    /// Give the used sectors of pages their checks.
    fn seal(&self, pages: &mut [(usize, IoBuf)]) {
        if fault!(ChecksStay) {
            return;
        }
        let (uuid, used) = (self.uuid(), sectors::used(self.geometry.stripes));
        for (start, bytes) in pages {
            let first = *start / SECTOR;
            for (index, sector) in bytes.chunks_exact_mut(SECTOR).enumerate().take_while(|(at, _)| first + at < used) {
                sectors::seal(uuid, first + index, sector);
            }
        }
    }

    /// Flush the base. A failure is final: the kernel may have dropped what it could not write, and a second
    /// call would report success for it.
    pub async fn flush_base(self: &Arc<Self>) -> Result<()> {
        let _turn = self.rounds.sync_turn().await;
        self.rounds.check()?;
        Counters::add(&self.counters.syncs, 1);
        let Err(error) = self.base.flush().await else {
            self.note_durable(&std::mem::take(&mut *lock(&self.rounds.found)));
            return Ok(());
        };
        if fault!(FailedSyncRetried) {
            return Err(error);
        }
        let message = format!(
            "{}: a flush of the base failed ({error}); writes and flushes fail from now on, since what was written \
             before may be lost",
            self.options.name
        );
        let failure = Error::new(ErrorKind::Io, message);
        lock(&self.rounds.state).failure = Some(failure.clone());
        self.rounds.failed.store(true, Ordering::Release);
        self.standing.note_sync_failed();
        let volume = Arc::clone(self);
        self.spawn(async move { volume.record_sync_failure().await });
        self.counters.note_error(Level::Error, failure.message());
        self.tell(Level::Error, failure.message());
        Err(failure)
    }

    /// Publish what a map knew, and make durable what was found, at the usual time.
    pub fn start_timer(self: &Arc<Self>) {
        let mut state = lock(&self.rounds.state);
        if state.oldest.is_some() {
            self.ensure_timer(&mut state);
        }
    }

    fn ensure_timer(self: &Arc<Self>, state: &mut State) {
        if state.timer_runs || self.is_closing() {
            return;
        }
        state.timer_runs = true;
        let volume = Arc::downgrade(self);
        exec::spawn(async move {
            while let Some(deadline) = due(&volume) {
                exec::sleep_until(deadline).await;
            }
        });
    }
}

/// Ask for a round if the oldest unpublished stripe is old enough; else say when it will be. None ends the timer.
fn due(volume: &Weak<Volume>) -> Option<Instant> {
    let volume = volume.upgrade()?;
    let mut state = lock(&volume.rounds.state);
    let deadline = state.oldest.map(|oldest| oldest + PUBLISH_AFTER);
    match deadline {
        Some(deadline) if deadline > exec::now() => return Some(deadline),
        Some(_) if !volume.is_closing() && state.failure.is_none() => drop(volume.ask_for_round(&mut state)),
        _ => {}
    }
    state.timer_runs = false;
    None
}
