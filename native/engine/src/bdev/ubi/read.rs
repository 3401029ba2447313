//! Reads, and fetches for the sake of later reads.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::geometry::StripeIndex;
use super::stripes::State;
use super::volume::Volume;
use crate::bdev::{LocalFuture, PartialRead};
use crate::error::Result;
use crate::events::Level;
use crate::reactor::exec;
use crate::sys::buf::{IoBuf, IoData};

/// Fetches that one prefetch request keeps going.
const PREFETCH_FETCHES: u32 = 4;

/// A part of a read.
enum Part {
    Base(Range<u64>),
    /// Inside one stripe that is not on the base.
    Stripe(Range<u64>, StripeIndex),
    /// Stripes that are not on the base and are not to be copied.
    Image(Range<u64>),
}

impl Volume {
    /// Whether every byte of a range may be read from the base (INV-2).
    #[inline]
    pub fn is_on_base(&self, start: u64, end: u64) -> bool {
        if self.stripes.is_complete() || start >= self.geometry.image_end {
            return true;
        }
        let stripes = self.geometry.stripes_of(start, end.min(self.geometry.image_end));
        self.stripes.all_at_least(stripes, State::Present)
    }

    /// Read a range, whatever its stripes' states.
    ///
    /// # Errors
    /// What the first failed part said.
    pub async fn read_range(self: &Arc<Self>, range: Range<u64>) -> Result<IoBuf> {
        let PartialRead { buf, failures } = self.read_range_partly(range).await;
        match failures.into_iter().next() {
            None => Ok(buf),
            Some((_, error)) => Err(error),
        }
    }

    /// Read a range and tell which parts of it failed.
    pub async fn read_range_partly(self: &Arc<Self>, range: Range<u64>) -> PartialRead {
        let len = (range.end - range.start) as usize;
        if range.is_empty() || self.is_on_base(range.start, range.end) {
            return match self.base.read(self.geometry.on_base(range.start), len).await {
                Ok(buf) => PartialRead { buf, failures: Vec::new() },
                Err(error) => PartialRead::failed(range.start, len, error),
            };
        }
        let mut buf = IoBuf::new(len);
        let mut rest: &mut [u8] = &mut buf;
        let (mut ranges, mut reads): (Vec<_>, Vec<LocalFuture<'_, Result<()>>>) = (Vec::new(), Vec::new());
        for part in self.plan_read(range) {
            let (Part::Base(range) | Part::Stripe(range, _) | Part::Image(range)) = &part;
            let (target, after) = rest.split_at_mut((range.end - range.start) as usize);
            rest = after;
            ranges.push(range.clone());
            reads.push(Box::pin(self.read_part(part, target)));
        }
        assert!(rest.is_empty(), "INV-7: every byte of the answer is read");
        let results = exec::join_all(reads).await;
        let failed = |(range, result): (_, Result<()>)| result.err().map(|error| (range, error));
        PartialRead { failures: ranges.into_iter().zip(results).filter_map(failed).collect(), buf }
    }

    /// Cut a range where its bytes come from different places.
    fn plan_read(&self, range: Range<u64>) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut position = range.start;
        while position < range.end {
            let (end, part) = self.plan_read_part(position..range.end);
            match (parts.last_mut(), part) {
                (Some(Part::Base(last)), Part::Base(_)) | (Some(Part::Image(last)), Part::Image(_)) => last.end = end,
                (_, part) => parts.push(part),
            }
            position = end;
        }
        parts
    }

    fn plan_read_part(&self, range: Range<u64>) -> (u64, Part) {
        if range.start >= self.geometry.image_end {
            return (range.end, Part::Base(range));
        }
        let stripe = self.geometry.stripe_at(range.start).expect("the image covers this stripe");
        let end = range.end.min(self.geometry.image_part(stripe).end);
        let range = range.start..end;
        let part = match self.stripes.get(stripe) {
            State::Present | State::Published => Part::Base(range),
            State::Filling if fault!(ReadWhileFilling) => Part::Base(range),
            State::Missing if !self.copies_on_read() => Part::Image(range),
            State::Missing | State::Filling => Part::Stripe(range, stripe),
        };
        (end, part)
    }

    /// A volume that cannot promise anything any more is not filled further, nor one whose base takes nothing.
    fn copies_on_read(&self) -> bool {
        self.options.copy_on_read && self.may_fetch_ahead() && !self.fetches.are_resting()
    }

    fn may_fetch_ahead(&self) -> bool {
        !self.closing.load(Ordering::Relaxed) && !self.rounds.has_failed()
    }

    async fn read_part(self: &Arc<Self>, part: Part, target: &mut [u8]) -> Result<()> {
        match part {
            Part::Base(range) => copy(&self.read_base(range).await?, target),
            Part::Image(range) => copy(&self.read_image_directly(range).await?, target),
            Part::Stripe(range, stripe) => return self.read_stripe(range, stripe, target).await,
        }
        Ok(())
    }

    /// Read inside a stripe that was not on the base: fetch it or join the fetch, answer from what was read.
    async fn read_stripe(self: &Arc<Self>, range: Range<u64>, stripe: StripeIndex, target: &mut [u8]) -> Result<()> {
        if self.copies_on_read()
            && let Some(claim) = self.claim(stripe)
        {
            let fetch = self.start_fetch(claim);
            fetch.content.wait().await?.copy_to(range.start, target);
            return Ok(());
        }
        if let Some(fetch) = self.fetches.running(stripe)
            && let Ok(content) = fetch.content.wait().await
        {
            content.copy_to(range.start, target);
            return Ok(());
        }
        if self.stripes.get(stripe).is_ready() {
            copy(&self.read_base(range).await?, target);
        } else {
            copy(&self.read_image_directly(range).await?, target);
        }
        Ok(())
    }

    /// Read what a guest asked for, not for a fetch.
    async fn read_image_directly(&self, range: Range<u64>) -> Result<IoData> {
        self.read_image(range).await.inspect_err(|error| self.note_error(Level::Warning, error))
    }

    /// Bring the missing stripes of a range to the base, a few at a time, then let the base read ahead.
    ///
    /// # Errors
    /// What the first failed fetch said; later requests try again.
    pub async fn prefetch_range(self: &Arc<Self>, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let stripes = self.stripes_of(&range);
        let mut first = stripes.start;
        while first < stripes.end && !self.stripes.is_complete() {
            let last = first.saturating_add(PREFETCH_FETCHES).min(stripes.end);
            let fetches = (first..last).map(|stripe| Box::pin(self.prefetch_stripe(stripe)) as LocalFuture<'_, _>);
            exec::join_all(fetches.collect()).await.into_iter().collect::<Result<()>>()?;
            first = last;
        }
        self.base.prefetch(self.geometry.on_base(range.start), range.end - range.start).await
    }

    async fn prefetch_stripe(self: &Arc<Self>, stripe: StripeIndex) -> Result<()> {
        if !self.may_fetch_ahead() {
            return Ok(());
        }
        match self.claim(stripe) {
            Some(claim) => self.start_fetch(claim).end.wait().await,
            None => Ok(()),
        }
    }
}

/// INV-7: exactly as many bytes as are asked for.
fn copy(data: &IoData, target: &mut [u8]) {
    target.copy_from_slice(data);
}
