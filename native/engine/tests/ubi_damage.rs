//! Damaged metadata through the whole of an open, on a base that counts writes: refused by name with nothing written,
//! or opened as what it was. `ubi_examine` asks the same of the decision alone.

mod ubi_support;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use ubi_engine::bdev::ubi::refusal::Name;
use ubi_engine::bdev::ubi::{self, UbiBdev};
use ubi_engine::bdev::{Bdev, BdevInfo, IoStat, LocalFuture, ZeroFlags};
use ubi_engine::error::{ErrorKind, Result};
use ubi_engine::sys::buf::{IoBuf, IoData};
use ubi_support::*;

const PAGE: usize = 4096;
const STRIPE: u64 = 64 * KIB;
/// Eight used sectors, the last of them not full.
const STRIPES: u64 = 249 + 6 * 256 + 50;
const SLOTS: [usize; 2] = [0x60_0000, 0x70_0000];
const USED: usize = 8 * 512;

/// The pages that are not zero.
type Pages = HashMap<usize, [u8; PAGE]>;

/// A base of which the metadata exist; data are dropped.
struct Base {
    info: BdevInfo,
    pages: Mutex<Pages>,
    metadata_writes: AtomicUsize,
    stat: IoStat,
}

impl Base {
    fn new(pages: Pages) -> Arc<Self> {
        static INFO: OnceLock<BdevInfo> = OnceLock::new();
        let info = INFO.get_or_init(|| MemBase::new(512, 512).info().clone()).clone();
        info.num_blocks.set((DATA + STRIPES * STRIPE) / 512);
        Arc::new(Self { info, pages: Mutex::new(pages), metadata_writes: AtomicUsize::new(0), stat: IoStat::default() })
    }

    fn pages(&self) -> Pages {
        self.pages.lock().expect("not poisoned").clone()
    }
}

impl Bdev for Base {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        let pages = self.pages.lock().expect("not poisoned");
        let mut buf = IoBuf::zeroed(len);
        for (page, range) in pieces(offset, len) {
            if let Some(content) = pages.get(&page) {
                buf[range.clone()].copy_from_slice(&content[..range.len()]);
            }
        }
        Box::pin(std::future::ready(Ok(buf)))
    }

    fn write(&self, offset: u64, data: IoData, _fua: bool) -> LocalFuture<'_, Result<()>> {
        if offset < DATA {
            self.metadata_writes.fetch_add(1, Ordering::Relaxed);
            let mut pages = self.pages.lock().expect("not poisoned");
            let start = offset as usize % PAGE;
            assert!(start + data.len() <= PAGE || start == 0, "a piece of a page, or pages");
            for (page, range) in pieces(offset - start as u64, start + data.len()) {
                let content = pages.entry(page).or_insert([0; PAGE]);
                let from = range.start.max(start);
                content[from - range.start..range.len()].copy_from_slice(&data[from - start..range.end - start]);
            }
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn discard(&self, _offset: u64, _len: u64, _fua: bool) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }
}

/// The pages that a range touches that begins at one, and what of the range is in each.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let first = offset as usize / PAGE;
    (0..len.div_ceil(PAGE)).map(move |index| (first + index, index * PAGE..((index + 1) * PAGE).min(len)))
}

async fn open_on(base: &Arc<Base>) -> Result<Arc<UbiBdev>> {
    let image = Arc::new(BigImage(STRIPES * STRIPE));
    ubi::open(Arc::clone(base) as Arc<dyn Bdev>, image, options()).await
}

/// Byte 0 of every header.
fn states(pages: &Pages) -> Vec<u8> {
    pages[&0][14..USED].iter().step_by(2).copied().collect()
}

/// The metadata of a volume with every third stripe on the base, as the engine itself wrote them.
async fn whole(is_clean: bool) -> Pages {
    let base = Base::new(Pages::new());
    let volume = open_on(&base).await.expect("formatted");
    for stripe in (0..STRIPES).step_by(3) {
        volume.write_zeroes(stripe * STRIPE, STRIPE, ZeroFlags::default()).await.expect("zeroes");
    }
    volume.flush().await.expect("flush");
    if is_clean {
        volume.close().await.expect("close");
    }
    let pages = base.pages();
    assert_eq!(states(&pages).iter().filter(|&&state| state == 1).count() as u64, STRIPES.div_ceil(3));
    pages
}

/// Open what was damaged: None when it is refused, as it must be, else what the volume holds.
async fn attempt(damaged: &Pages, what: &str) -> Option<Vec<u8>> {
    let base = Base::new(damaged.clone());
    match open_on(&base).await {
        Ok(volume) => {
            let present = volume.status().stripes_present;
            let found = states(&base.pages());
            assert_eq!(present, found.iter().map(|&state| u64::from(state)).sum::<u64>(), "{what}");
            Some(found)
        }
        Err(error) => {
            assert!(error.message().contains("base"), "{what}: {error}");
            let kinds = [ErrorKind::Corrupt, ErrorKind::InvalidParams, ErrorKind::InvalidState];
            assert!(kinds.contains(&error.kind()), "{what}: {error}");
            assert_eq!(base.metadata_writes.load(Ordering::Relaxed), 0, "{what}: written to, and refused");
            None
        }
    }
}

#[test]
fn every_bit_of_eight_used_sectors_keeps_a_volume_closed() {
    let step = if cfg!(debug_assertions) { 61 } else { 1 };
    for is_clean in [true, false] {
        run(async move {
            let whole = whole(is_clean).await;
            assert!(attempt(&whole, "whole").await.is_some());
            for bit in (0..8 * USED).step_by(step) {
                let mut damaged = whole.clone();
                damaged.get_mut(&0).expect("headers")[bit / 8] ^= 1 << (bit % 8);
                let opened = attempt(&damaged, &format!("bit {bit}")).await;
                assert!(opened.is_none(), "clean {is_clean}, bit {bit}");
            }
        });
    }
}

#[test]
fn swapped_sectors_keep_a_volume_closed() {
    for is_clean in [true, false] {
        run(async move {
            let whole = whole(is_clean).await;
            for first in 0..8 {
                for second in first + 1..8 {
                    let mut damaged = whole.clone();
                    let (left, right) = damaged.get_mut(&0).expect("headers").split_at_mut(second * 512);
                    left[first * 512..(first + 1) * 512].swap_with_slice(&mut right[..512]);
                    let opened = attempt(&damaged, "swapped").await;
                    assert!(opened.is_none(), "sectors {first} and {second}");
                }
            }
        });
    }
}

#[test]
fn a_slot_of_the_superblock_may_be_lost_and_not_both() {
    for is_clean in [true, false] {
        run(async move {
            let whole = whole(is_clean).await;
            let expected = states(&whole);
            for byte in (0..PAGE).step_by(if cfg!(debug_assertions) { 37 } else { 1 }) {
                let mut damaged = whole.clone();
                for slot in SLOTS {
                    damaged.get_mut(&(slot / PAGE)).expect("a slot")[byte] ^= 0x10;
                    let opened = attempt(&damaged, &format!("byte {byte} of slot {slot:#x}")).await;
                    match slot == SLOTS[0] {
                        true => assert!(opened.is_some_and(|states| states == expected), "byte {byte}"),
                        false => assert!(opened.is_none(), "byte {byte} of both"),
                    }
                }
            }
        });
    }
}

/// 200,000 random changes of headers, slots or both: refused, or opened as what was there.
#[test]
fn random_changes_are_refused_or_change_nothing() {
    run(async {
        let mut random = Random::new(0xda3a9e);
        let volumes = [whole(true).await, whole(false).await];
        let changes = if cfg!(debug_assertions) { 2_000 } else { 200_000 };
        let (mut opened, mut refused) = (0, 0);
        for number in 0..changes {
            let whole = &volumes[random.below(2) as usize];
            let mut damaged = whole.clone();
            for _ in 0..=random.below(4) {
                let page = [0, 0, SLOTS[0] / PAGE, SLOTS[1] / PAGE][random.below(4) as usize];
                change(damaged.get_mut(&page).expect("a page"), &mut random);
            }
            match attempt(&damaged, &format!("change {number}")).await {
                Some(found) => {
                    assert!(found == states(whole), "change {number} was accepted as something else");
                    opened += 1;
                }
                None => refused += 1,
            }
        }
        println!("{changes} random changes: {refused} refused, {opened} opened as they were");
        assert!(opened > 0 && refused > opened);
    });
}

fn change(page: &mut [u8; PAGE], random: &mut Random) {
    let at = random.below(PAGE as u64) as usize;
    let end = (at + 1 + random.below(64) as usize).min(PAGE);
    match random.below(4) {
        0 => page[at..end].fill(random.below(256) as u8),
        1 => page[at] ^= 1 << random.below(8),
        2 => page[at..end].iter_mut().for_each(|byte| *byte = random.below(256) as u8),
        _ => page.copy_within(at..end, random.below((PAGE - (end - at) + 1) as u64) as usize),
    }
}

#[test]
fn every_name_of_damage_is_a_word_for_programs() {
    for (_, text) in Name::ALL {
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'), "{text}");
    }
}
