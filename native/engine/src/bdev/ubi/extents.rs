//! What is known of a range of the volume, told from the stripe map and never by fetching.

use std::collections::BTreeSet;
use std::ops::Range;

use super::geometry::StripeIndex;
use super::stripes::State;
use super::volume::Volume;
use crate::bdev::extent::{Extent, ExtentList, ExtentState, FetchState, Source};
use crate::error::Result;
use crate::reactor::exec;

/// Stripes that are looked at before other tasks get a turn.
const WINDOW_STRIPES: u32 = 8192;

/// The states of some stripes at one moment.
struct Snapshot {
    first: StripeIndex,
    states: Vec<State>,
    failed: BTreeSet<StripeIndex>,
}

impl Snapshot {
    fn get(&self, stripe: StripeIndex) -> (State, bool) {
        (self.states[(stripe - self.first) as usize], self.failed.contains(&stripe))
    }
}

impl Volume {
    /// Tell what is known of a range; see `Bdev::extents`.
    ///
    /// # Errors
    /// What the base said.
    pub async fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        let mut list = ExtentList::new(max);
        let mut position = range.start;
        while position < range.end {
            let window = position..self.extents_window_end(position).min(range.end);
            let reached = self.push_window(&mut list, window.clone(), max).await?;
            if !reached {
                break;
            }
            position = range.start + list.len();
            if position < range.end {
                exec::yield_now().await;
            }
        }
        Ok(list.into_vec())
    }

    fn extents_window_end(&self, position: u64) -> u64 {
        match self.geometry.stripe_at(position) {
            Some(stripe) => self.geometry.stripe_start(stripe.saturating_add(WINDOW_STRIPES)),
            None => u64::MAX,
        }
    }

    /// Describe a window, or as much of it as the base told; false when the list is full.
    async fn push_window(&self, list: &mut ExtentList, window: Range<u64>, max: usize) -> Result<bool> {
        // The states first: a stripe that is ready by now is told as the base has it from then on.
        let snapshot = self.snapshot(&window);
        let image_end = self.image_end_in_blocks();
        let needs_base = window.end > image_end || snapshot.states.iter().any(|state| state.is_ready());
        let base = if needs_base {
            let len = window.end - window.start;
            self.base.extents(self.geometry.on_base(window.start), len, max).await?
        } else {
            Vec::new()
        };
        let base = to_ranges(window.start, &base);
        let end = if needs_base { base.last().map_or(window.start, |(range, _)| range.end) } else { window.end };
        let mut position = window.start;
        while position < end {
            let part_end = self.extent_part_end(position, end, image_end);
            if !self.push_part(list, position..part_end, &snapshot, &base) {
                return Ok(false);
            }
            position = part_end;
        }
        Ok(end > window.start)
    }

    fn snapshot(&self, window: &Range<u64>) -> Snapshot {
        let stripes = self.stripes_of(window);
        Snapshot {
            first: stripes.start,
            failed: self.fetches.failed(stripes.clone()),
            states: stripes.map(|stripe| self.stripes.get(stripe)).collect(),
        }
    }

    /// The image's end in whole blocks: the block that it shares with the base is told as the image's.
    fn image_end_in_blocks(&self) -> u64 {
        self.geometry.image_end.next_multiple_of(self.geometry.block_bytes)
    }

    fn extent_part_end(&self, position: u64, end: u64, image_end: u64) -> u64 {
        let stripe_end = self.geometry.stripe_at(position).map_or(end, |stripe| self.geometry.stripe_end(stripe));
        let border = if position < image_end { stripe_end.min(image_end) } else { end };
        border.min(end)
    }

    /// Describe a part that lies in one stripe or past the image.
    fn push_part(
        &self,
        list: &mut ExtentList,
        part: Range<u64>,
        snapshot: &Snapshot,
        base: &[(Range<u64>, ExtentState)],
    ) -> bool {
        let is_image = part.start < self.image_end_in_blocks();
        let stripe = self.geometry.stripe_at(part.start).filter(|_| is_image);
        match stripe.map(|stripe| snapshot.get(stripe)) {
            Some((State::Missing, has_failed)) => self.push_image(list, part, false, has_failed),
            Some((State::Filling, has_failed)) => self.push_image(list, part, true, has_failed),
            Some((State::Present | State::Published, _)) => push_base(list, part, base, true),
            None => push_base(list, part, base, false),
        }
    }

    fn push_image(&self, list: &mut ExtentList, part: Range<u64>, is_filling: bool, has_failed: bool) -> bool {
        let fetch = FetchState { is_here: false, is_filling, has_failed };
        let data = ExtentState { is_zero: false, is_hole: false, source: Source::Image, fetch };
        let hole = ExtentState { is_zero: true, is_hole: true, ..data };
        // Where the image ends inside a block, the rest of that block is the base's and may hold anything.
        let shared = self.geometry.image_end..self.image_end_in_blocks();
        let shared = Some(shared).filter(|shared| !shared.is_empty() && shared.start < part.end);
        let data_ranges = self.image.data_extents().within(part.clone()).chain(shared);
        list.push_data(part, self.geometry.block_bytes, data_ranges, (data, hole))
    }
}

/// The base's extents as ranges of the volume.
fn to_ranges(start: u64, extents: &[Extent]) -> Vec<(Range<u64>, ExtentState)> {
    let mut position = start;
    let next = |extent: &Extent| {
        let range = position..position + extent.len;
        position = range.end;
        (range, extent.state)
    };
    extents.iter().map(next).collect()
}

/// Describe a part that is the base's; `is_copy` where the image had a part in it, so that even a hole is local.
fn push_base(list: &mut ExtentList, part: Range<u64>, base: &[(Range<u64>, ExtentState)], is_copy: bool) -> bool {
    let first = base.partition_point(|(range, _)| range.end <= part.start);
    base[first..].iter().take_while(|(range, _)| range.start < part.end).all(|(range, state)| {
        let source = if is_copy || !state.is_hole { Source::Local } else { Source::Nowhere };
        let len = range.end.min(part.end) - range.start.max(part.start);
        list.push(len, ExtentState { source, fetch: FetchState::HERE, ..*state })
    })
}
