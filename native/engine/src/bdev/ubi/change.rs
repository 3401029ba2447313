//! Requests that change the volume: write, write zeroes, discard.
//!
//! A request is cut where the states of its stripes differ, and its parts run at once, each for itself: no part
//! holds a stripe while it waits for another. It is acknowledged when all parts are done and each touched
//! stripe is in the volatile map or has a durable header. FUA is a change and a round: syncs of one base never overlap, since the kernel tells of
//! a lost write only once, to whichever sync asks first (docs/decisions/fua-is-a-round.md).

use std::ops::Range;
use std::sync::Arc;

use super::geometry::StripeIndex;
use super::status::Counters;
use super::stripes::State;
use super::volume::{Claim, Volume};
use crate::bdev::{Bdev, LocalFuture, ZeroFlags};
use crate::error::Result;
use crate::reactor::exec;
use crate::sys::buf::IoData;

/// Stripes that one request works on at a time.
const WINDOW_STRIPES: u32 = 256;

/// What is done to a range of the volume.
#[derive(Clone)]
pub enum Change {
    /// `data` belongs at position `origin` of the volume.
    Write {
        data: IoData,
        origin: u64,
    },
    Zero(ZeroFlags),
    Discard,
}

impl Change {
    /// Do it on the base, for a part of the request's range.
    async fn apply(&self, base: &dyn Bdev, at: u64, range: &Range<u64>) -> Result<()> {
        let len = range.end - range.start;
        match self {
            Change::Write { data, origin } => {
                let part = data.slice((range.start - origin) as usize, len as usize);
                base.write(at, part, false).await
            }
            Change::Zero(flags) => base.write_zeroes(at, len, ZeroFlags { fua: false, ..*flags }).await,
            Change::Discard if base.info().unmap_reads_zero || fault!(DiscardLeavesOld) => {
                base.discard(at, len, false).await
            }
            // What unmapped space reads there may be bytes of an earlier volume (INV-2).
            Change::Discard => base.write_zeroes(at, len, ZeroFlags::default()).await,
        }
    }
}

/// A part of a request.
enum Part {
    /// On the base already, or past the image.
    Ready(Range<u64>),
    /// Covers all that the image has in these stripes: claimed, nothing has to be fetched.
    Owned(Range<u64>, Vec<Claim>),
    /// Inside one stripe that is not on the base.
    Inside(Range<u64>, StripeIndex),
}

impl Volume {
    /// Change a range and wait until that may be acknowledged.
    ///
    /// # Errors
    /// What the first failed operation said; parts of the range may have been changed then.
    pub async fn change(self: &Arc<Self>, range: Range<u64>, change: Change, fua: bool) -> Result<()> {
        self.rounds.check()?;
        if range.is_empty() {
            return Ok(());
        }
        let stripes = self.stripes_of(&range);
        let is_known = self.stripes.is_complete() || self.standing.acknowledges(&self.stripes, stripes.clone());
        if is_known {
            self.apply(&range, &change).await?;
        } else {
            self.change_stripes(range, &change).await?;
        }
        if fua && !fault!(FuaIgnored) {
            self.flush_round().await?;
        }
        // A map that was lost meanwhile acknowledges nothing.
        let is_known = is_known && !self.standing.has_lost_map();
        if is_known || fault!(AnsweredBeforeRound) { Ok(()) } else { self.publish(stripes).await }
    }

    /// Refuse zeros that would have to wait for the image: of a part of a stripe that is missing, or that is being
    /// read from the image just now.
    ///
    /// # Errors
    /// `Unsupported`; nothing was changed.
    pub fn check_fast_zero(&self, range: &Range<u64>) -> Result<()> {
        let is_fast = |stripe| match self.stripes.get(stripe) {
            State::Present | State::Published => true,
            State::Missing => self.geometry.covers_image_part(stripe, range.start, range.end),
            State::Filling => self.fetches.running(stripe).is_none_or(|fetch| fetch.content.get().is_some()),
        };
        if self.stripes.is_complete() || range.is_empty() || self.stripes_of(range).all(is_fast) {
            return Ok(());
        }
        Err(ZeroFlags::not_fast(&self.options.name))
    }

    async fn change_stripes(self: &Arc<Self>, range: Range<u64>, change: &Change) -> Result<()> {
        let mut position = range.start;
        while position < range.end {
            let window = position..self.window_end(position).min(range.end);
            position = window.end;
            let parts = self.plan_parts(window, change);
            let futures = parts.into_iter().map(|part| Box::pin(self.change_part(part, change)) as LocalFuture<'_, _>);
            exec::join_all(futures.collect()).await.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    fn window_end(&self, position: u64) -> u64 {
        match self.geometry.stripe_at(position) {
            Some(stripe) => self.geometry.stripe_start(stripe.saturating_add(WINDOW_STRIPES)),
            None => u64::MAX,
        }
    }

    /// Cut a range where the states of its stripes differ, claiming what needs no fetch. Does not wait.
    fn plan_parts(self: &Arc<Self>, window: Range<u64>, change: &Change) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut position = window.start;
        while position < window.end {
            let stripe = self.geometry.stripe_at(position);
            let end = stripe.map_or(window.end, |stripe| self.geometry.stripe_end(stripe).min(window.end));
            let part = self.plan_part(position..end, stripe, change);
            position = end;
            match (parts.last_mut(), part) {
                (Some(Part::Ready(last)), Part::Ready(next)) => last.end = next.end,
                (Some(Part::Owned(last, claims)), Part::Owned(next, more)) => {
                    last.end = next.end;
                    claims.extend(more);
                }
                (_, part) => parts.push(part),
            }
        }
        parts
    }

    fn plan_part(self: &Arc<Self>, range: Range<u64>, stripe: Option<StripeIndex>, change: &Change) -> Part {
        let Some(stripe) = stripe.filter(|&stripe| !self.stripes.get(stripe).is_ready()) else {
            return Part::Ready(range);
        };
        let covers = fault!(WriteWithoutFetch) || self.geometry.covers_image_part(stripe, range.start, range.end);
        let may_own = covers && self.fills(change);
        match may_own.then(|| self.claim(stripe)).flatten() {
            Some(claim) => Part::Owned(range, vec![claim]),
            None => Part::Inside(range, stripe),
        }
    }

    /// Whether it may bring a missing stripe to the base: a discard only where that costs no writing of zeros.
    fn fills(&self, change: &Change) -> bool {
        !matches!(change, Change::Discard) || self.base.info().unmap_reads_zero
    }

    async fn change_part(self: &Arc<Self>, part: Part, change: &Change) -> Result<()> {
        match part {
            Part::Ready(range) => self.apply(&range, change).await,
            Part::Owned(range, claims) => self.change_owned(range, claims, change).await,
            Part::Inside(range, stripe) => self.change_inside(range, stripe, change).await,
        }
    }

    async fn apply(&self, range: &Range<u64>, change: &Change) -> Result<()> {
        change.apply(&*self.base, self.geometry.on_base(range.start), range).await
    }

    /// A task of its own: the stripes are given back only when the base is done with them.
    async fn change_owned(self: &Arc<Self>, range: Range<u64>, mut claims: Vec<Claim>, change: &Change) -> Result<()> {
        let (volume, change) = (Arc::clone(self), change.clone());
        self.run(async move {
            volume.mark_open().await?;
            if fault!(PresentAtSubmission) {
                claims.drain(..).for_each(Claim::present);
            }
            let applied = volume.apply(&range, &change).await;
            if applied.is_err() {
                volume.standing.note_failed_write();
            }
            if !fault!(ErrorBecomesSuccess) {
                applied?;
            }
            claims.into_iter().for_each(Claim::present);
            Ok(())
        })
        .await
    }

    async fn change_inside(self: &Arc<Self>, range: Range<u64>, stripe: StripeIndex, change: &Change) -> Result<()> {
        loop {
            match self.stripes.get(stripe) {
                State::Present | State::Published => return self.apply(&range, change).await,
                State::Filling if fault!(WriteDuringFetch) => return self.apply(&range, change).await,
                State::Filling => self.stripes.wait_while_filling(stripe).await,
                State::Missing => match self.plan_part(range.clone(), Some(stripe), change) {
                    Part::Owned(range, claims) => return self.change_owned(range, claims, change).await,
                    _ if matches!(change, Change::Discard) => return self.discard_past_image(range).await,
                    _ => {
                        if let Some(claim) = self.claim(stripe) {
                            self.start_fetch(claim).end.wait().await?;
                        }
                    }
                },
            }
        }
    }

    /// A discard inside a missing stripe leaves the image's part alone; past the image the base is the truth.
    async fn discard_past_image(&self, range: Range<u64>) -> Result<()> {
        let past = self.geometry.image_end.next_multiple_of(self.geometry.block_bytes);
        let range = range.start.max(past)..range.end;
        if range.is_empty() { Ok(()) } else { self.apply(&range, &Change::Discard).await }
    }

    /// Note zeros that guests asked for, which the base counts as written.
    pub fn count_zeroed(&self, len: u64) {
        Counters::add(&self.counters.zeroed_bytes, len);
    }
}
