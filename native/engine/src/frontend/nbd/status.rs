//! BLOCK_STATUS: what a bdev tells of a range, as the chosen metadata contexts say it.

use std::ops::Range;

use super::batch::Append;
use super::context::{Context, Contexts};
use super::proto;
use crate::bdev::Bdev;
use crate::bdev::extent::Extent;
use crate::error::Result;

/// Most extents of one reply and context; a client asks again for what is left. NBD allows 2^20.
const EXTENTS_MAX: usize = 1 << 15;
/// Extents that are looked at where one is wanted: those with one value in one context may differ in another.
const REQ_ONE_EXTENTS: usize = 64;
/// Longest payload that can choose from the contexts: a length and an id each, bytes.
pub const FILTER_MAX: u64 = 8 + 4 * Context::ALL.len() as u64;
/// Memory that a request may hold, for the connection's account.
pub const MEMORY_MAX: usize = EXTENTS_MAX * size_of::<Extent>();

/// What is known of a range, which need not be in whole blocks; the extents lie inside it and start where it does.
///
/// # Errors
/// What the bdev said.
pub async fn query(bdev: &dyn Bdev, range: Range<u64>, only_one: bool) -> Result<Vec<Extent>> {
    let block = u64::from(bdev.info().block_size);
    let blocks = range.start - range.start % block..range.end.next_multiple_of(block);
    let max = if only_one { REQ_ONE_EXTENTS } else { EXTENTS_MAX };
    let mut extents = bdev.extents(blocks.start, blocks.end - blocks.start, max).await?;
    cut(&mut extents, &blocks, &range);
    Ok(extents)
}

/// Take off what whole blocks have more than the range at its two ends.
fn cut(extents: &mut [Extent], blocks: &Range<u64>, range: &Range<u64>) {
    let total: u64 = extents.iter().map(|extent| extent.len).sum();
    if let Some(first) = extents.first_mut() {
        first.len -= range.start - blocks.start;
    }
    if let Some(last) = extents.last_mut() {
        last.len -= (blocks.start + total).saturating_sub(range.end);
    }
}

/// What a BLOCK_STATUS with a payload is about: some bytes, and some of the contexts that were agreed on.
///
/// None for a payload that is malformed or names a context that was not agreed on, or one twice.
pub fn parse_filter(payload: &[u8], agreed: Contexts) -> Option<(u64, Contexts)> {
    let (length, ids) = proto::parse_status_filter(payload)?;
    let mut wanted = Contexts::default();
    for id in ids {
        let context = agreed.iter().find(|context| context.id() == id && !wanted.contains(*context))?;
        wanted = wanted.with(context);
    }
    Some((length, wanted))
}

/// Append the chunks of a reply, one for each context.
pub fn reply(out: &mut impl Append, to: proto::To, contexts: Contexts, extents: &[Extent], only_one: bool) {
    let mut contexts = contexts.iter().peekable();
    while let Some(context) = contexts.next() {
        let runs = runs(context, extents, only_one);
        proto::block_status(out, to, context.id(), &runs, contexts.peek().is_none());
    }
}

/// The extents as one context tells them apart.
fn runs(context: Context, extents: &[Extent], only_one: bool) -> Vec<(u64, u32)> {
    let mut runs: Vec<(u64, u32)> = Vec::new();
    for extent in extents {
        let value = context.value(&extent.state);
        match runs.last_mut() {
            Some(last) if last.1 == value => last.0 += extent.len,
            Some(_) if only_one => break,
            _ => runs.push((extent.len, value)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::extent::{ExtentState, Source};

    const LOCAL_ZEROS: ExtentState = ExtentState { source: Source::Local, ..ExtentState::HOLE };

    fn extents(list: &[(u64, ExtentState)]) -> Vec<Extent> {
        list.iter().map(|&(len, state)| Extent { len, state }).collect()
    }

    #[test]
    fn each_context_merges_what_it_does_not_tell_apart() {
        let list = extents(&[(1, ExtentState::HOLE), (2, LOCAL_ZEROS), (3, ExtentState::DATA), (4, LOCAL_ZEROS)]);
        assert_eq!(runs(Context::Allocation, &list, false), [(3, 3), (3, 0), (4, 3)]);
        assert_eq!(runs(Context::AllocationDepth, &list, false), [(1, 0), (9, 1)]);
        assert_eq!(runs(Context::Fetch, &list, false), [(10, 1)]);
        assert_eq!(runs(Context::Allocation, &list, true), [(3, 3)]);
        assert_eq!(runs(Context::Fetch, &list, true), [(10, 1)]);
    }

    /// CVE-2025-47711, CVE-2025-47712: lengths of almost 4 GiB at unaligned offsets.
    #[test]
    fn a_filter_names_agreed_contexts_once() {
        let payload = |ids: &[u32]| {
            [&9u64.to_be_bytes()[..], &ids.iter().flat_map(|id| id.to_be_bytes()).collect::<Vec<_>>()].concat()
        };
        let agreed = Contexts::default().with(Context::Allocation).with(Context::Fetch);
        let wanted = |ids: &[u32]| {
            parse_filter(&payload(ids), agreed).map(|(length, found)| (length, found.iter().map(Context::id).collect()))
        };
        assert_eq!(wanted(&[3]), Some((9, vec![3])));
        assert_eq!(wanted(&[3, 1]), Some((9, vec![1, 3])));
        for ids in [&[][..], &[2], &[0], &[1, 1], &[1, 2], &[u32::MAX]] {
            assert_eq!(wanted(ids), None, "{ids:?}");
        }
    }

    #[test]
    fn extents_are_cut_to_a_range_that_is_not_in_whole_blocks() {
        for (range, blocks) in [
            (0..0xffff_ffff, 0..1u64 << 32),
            (0..0xffff_fe00, 0..0xffff_fe00),
            (1..0x1_0000_0000, 0..1 << 32),
            (513..514, 512..1024),
        ] {
            let mut list = extents(&[(blocks.end - blocks.start, ExtentState::DATA)]);
            cut(&mut list, &blocks, &range);
            assert_eq!(list[0].len, range.end - range.start, "{range:?}");
        }
        let mut list = extents(&[(512, ExtentState::DATA), (512, ExtentState::HOLE)]);
        cut(&mut list, &(0..1536), &(100..1500));
        assert_eq!((list[0].len, list[1].len), (412, 512), "a list that ends early is not cut at its end");
    }
}
