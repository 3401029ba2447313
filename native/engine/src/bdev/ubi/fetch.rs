//! Bringing a stripe from the image to the base.
//!
//! One task a stripe owns it from claim to end. Whoever needs the content has it as soon as it is read; whoever
//! needs it on the base waits for the end. A fetch writes what the image has and nothing past its end.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::geometry::StripeIndex;
use super::status::Counters;
use super::volume::{Claim, Volume};
use crate::bdev::ZeroFlags;
use crate::error::Result;
use crate::reactor::exec;
use crate::reactor::sync::{Permits, Promise, lock};
use crate::sys::buf::{IoBuf, IoData};

/// Fetches of one volume that run at once; each holds a stripe in memory (16 MiB in all at most).
const FETCHES_MAX: usize = 16;
/// Longest write to a buffered base: larger ones leave large folios, which make later small writes dear.
const BUFFERED_PIECE: u64 = 128 << 10;
/// A stripe with more pieces of data than this is read and written as one.
const SEGMENTS_MAX: usize = 8;
/// For this long after the base took no copy (it is full, as a rule) reads do not try to copy: each would read a
/// whole stripe for nothing.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Failed stripes that are remembered for clients that ask; an image that is gone must not cost memory without end.
const FAILED_MAX: usize = 1 << 16;

/// A fetch in progress.
#[derive(Default)]
pub struct Fetch {
    /// The content, before it is on the base.
    pub content: Promise<Result<Arc<Content>>>,
    /// Whether it is on the base.
    pub end: Promise<Result<()>>,
}

/// The fetches of a volume.
pub struct Fetches {
    permits: Arc<Permits>,
    running: Mutex<HashMap<StripeIndex, Arc<Fetch>>>,
    /// Stripes whose last fetch failed; at most [`FAILED_MAX`] of them.
    failed: Mutex<BTreeSet<StripeIndex>>,
    rest_until: Mutex<Option<Instant>>,
}

impl Fetches {
    pub fn new() -> Self {
        let (running, failed, rest_until) = Default::default();
        Self { permits: Permits::new(FETCHES_MAX), running, failed, rest_until }
    }

    /// The fetch that owns this stripe just now, if it is a fetch.
    pub fn running(&self, stripe: StripeIndex) -> Option<Arc<Fetch>> {
        lock(&self.running).get(&stripe).cloned()
    }

    /// Those stripes of a range whose last fetch failed.
    pub fn failed(&self, stripes: Range<StripeIndex>) -> BTreeSet<StripeIndex> {
        lock(&self.failed).range(stripes).copied().collect()
    }

    fn note_end(&self, stripe: StripeIndex, is_ok: bool) {
        let mut failed = lock(&self.failed);
        if is_ok {
            failed.remove(&stripe);
        } else if failed.len() < FAILED_MAX {
            failed.insert(stripe);
        }
    }

    /// Whether a copy failed so recently that one more is not worth it for a read.
    pub fn are_resting(&self) -> bool {
        let mut rest_until = lock(&self.rest_until);
        let rests = rest_until.is_some_and(|until| exec::now() < until);
        if !rests {
            *rest_until = None;
        }
        rests
    }

    fn rest(&self) {
        *lock(&self.rest_until) = Some(exec::now() + REST_AFTER_FAILURE);
    }
}

/// What the image has in one stripe: pieces of data, zeros between and after them.
pub struct Content {
    segments: SmallVec<[(Range<u64>, IoData); 2]>,
}

impl Content {
    /// Fill `buf` with the bytes at `position` of the volume.
    pub fn copy_to(&self, position: u64, buf: &mut [u8]) {
        buf.fill(0);
        let end = position + buf.len() as u64;
        for (range, data) in &self.segments {
            let (from, to) = (range.start.max(position), range.end.min(end));
            if from < to {
                let source = &data[(from - range.start) as usize..(to - range.start) as usize];
                buf[(from - position) as usize..(to - position) as usize].copy_from_slice(source);
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|(range, _)| range.end - range.start).sum()
    }
}

impl Volume {
    /// Start to fetch a claimed stripe.
    pub fn start_fetch(self: &Arc<Self>, claim: Claim) -> Arc<Fetch> {
        let fetch = Arc::new(Fetch::default());
        lock(&self.fetches.running).insert(claim.stripe(), Arc::clone(&fetch));
        let (volume, running) = (Arc::clone(self), Arc::clone(&fetch));
        self.spawn(async move { volume.fetch(claim, &running).await });
        fetch
    }

    async fn fetch(self: &Arc<Self>, claim: Claim, fetch: &Fetch) {
        let _permit = self.fetches.permits.acquire().await;
        let stripe = claim.stripe();
        let content = self.read_content(stripe).await.map(Arc::new);
        fetch.content.set(content.clone());
        let result = match content {
            Ok(content) => self.mark_and_fill(stripe, &content).await.inspect_err(|_| self.fetches.rest()),
            Err(error) => Err(error),
        };
        lock(&self.fetches.running).remove(&stripe);
        self.fetches.note_end(stripe, result.is_ok());
        match &result {
            Ok(()) => claim.present(),
            Err(error) => {
                self.note_fetch_error(error);
                if fault!(FailedFetchKeepsClaim) {
                    std::mem::forget(claim);
                    return;
                }
                drop(claim);
            }
        }
        fetch.end.set(result);
    }

    async fn mark_and_fill(self: &Arc<Self>, stripe: StripeIndex, content: &Content) -> Result<()> {
        self.mark_open().await?;
        self.fill(stripe, content).await
    }

    /// Read what the image has in a stripe, in whole blocks of the base where the image does not end.
    async fn read_content(&self, stripe: StripeIndex) -> Result<Content> {
        self.image.recheck_elsewhere().await?; // a stripe of holes reads nothing
        let mut segments = SmallVec::new();
        for range in self.plan_segments(stripe) {
            let data = self.read_image(range.clone()).await?;
            segments.push((range, data));
        }
        Ok(Content { segments })
    }

    /// The ranges of a stripe to copy: the image's data in whole blocks, cut at the image end.
    fn plan_segments(&self, stripe: StripeIndex) -> SmallVec<[Range<u64>; SEGMENTS_MAX]> {
        let part = self.geometry.image_part(stripe);
        let mut segments: SmallVec<[Range<u64>; SEGMENTS_MAX]> = SmallVec::new();
        for data in self.image.data_extents().within(part.clone()) {
            let blocks = self.geometry.to_blocks(&data);
            let range = blocks.start..blocks.end.min(part.end);
            match segments.last_mut() {
                Some(last) if range.start <= last.end => last.end = range.end,
                _ => segments.push(range),
            }
        }
        if let (Some(first), Some(last)) = (segments.first(), segments.last())
            && segments.len() > SEGMENTS_MAX
        {
            return SmallVec::from_elem(first.start..last.end, 1);
        }
        segments
    }

    /// Read from the image; what lies between its last byte and the end of that sector is zero.
    pub async fn read_image(&self, range: Range<u64>) -> Result<IoData> {
        let len = (range.end - range.start) as usize;
        let end = range.end.min(self.geometry.image_bytes);
        let data = self.image.read(range.start, (end - range.start) as usize).await?;
        if data.len() == len {
            return Ok(data);
        }
        let mut padded = IoBuf::zeroed(len);
        if fault!(StaleTail) {
            padded.fill(0xa5);
        }
        padded[..data.len()].copy_from_slice(&data);
        Ok(IoData::new(padded))
    }

    /// Make the image part of a stripe on the base what the image has: data written, the rest zero.
    async fn fill(&self, stripe: StripeIndex, content: &Content) -> Result<()> {
        let part = self.geometry.image_part(stripe);
        let mut position = part.start;
        for (range, data) in &content.segments {
            self.zero_part(position..range.start).await?;
            self.write_part(range, data).await?;
            position = range.end;
        }
        self.zero_part(position..part.end).await?;
        Counters::add(&self.counters.fetched_bytes, content.bytes());
        Ok(())
    }

    async fn write_part(&self, range: &Range<u64>, data: &IoData) -> Result<()> {
        let mut position = range.start;
        while position < range.end {
            let rest = range.end - position;
            let whole_blocks = rest - rest % self.geometry.block_bytes;
            if whole_blocks == 0 {
                let tail = data.slice((position - range.start) as usize, rest as usize);
                return self.write_last_block(position, &tail).await;
            }
            let piece = if self.info.buffered { whole_blocks.min(BUFFERED_PIECE) } else { whole_blocks };
            let piece = piece.next_multiple_of(self.geometry.block_bytes);
            let data = data.slice((position - range.start) as usize, piece as usize);
            self.base.write(self.geometry.on_base(position), data, false).await?;
            position += piece;
        }
        Ok(())
    }

    async fn zero_part(&self, range: Range<u64>) -> Result<()> {
        let whole = range.end - range.end % self.geometry.block_bytes;
        if range.start < whole {
            let at = self.geometry.on_base(range.start);
            self.base.write_zeroes(at, whole - range.start, ZeroFlags::default()).await?;
        }
        let rest = range.start.max(whole)..range.end;
        if rest.is_empty() {
            return Ok(());
        }
        let zeros = IoData::new(IoBuf::zeroed((rest.end - rest.start) as usize));
        self.write_last_block(rest.start, &zeros).await
    }

    /// Write the block in which the image ends: its first bytes are the image's, the others stay the base's.
    async fn write_last_block(&self, position: u64, data: &[u8]) -> Result<()> {
        let at = self.geometry.on_base(position);
        let mut block = self.base.read(at, self.geometry.block_bytes as usize).await?;
        block[..data.len()].copy_from_slice(data);
        self.base.write(at, IoData::new(block), false).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_zero_where_it_has_no_data() {
        let data = |byte, len| IoData::new(IoBuf::from_slice(&vec![byte; len]));
        let content = Content { segments: SmallVec::from_vec(vec![(100..103, data(1, 3)), (105..106, data(2, 1))]) };
        let mut buf = [9; 8];
        content.copy_to(101, &mut buf);
        assert_eq!(buf, [1, 1, 0, 0, 2, 0, 0, 0]);
        content.copy_to(0, &mut buf);
        assert_eq!(buf, [0; 8]);
        assert_eq!(content.bytes(), 4);
    }
}
