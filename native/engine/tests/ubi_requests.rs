//! Each kind of request over missing, present and published stripes, with images that end anywhere.

mod ubi_support;

use std::sync::Arc;

use ubi_engine::bdev::malloc::MallocBdev;
use ubi_engine::bdev::stat::Totals;
use ubi_engine::bdev::ubi::{self, UbiBdev, UbiOptions, layout};
use ubi_engine::bdev::{Bdev, ZeroFlags};
use ubi_support::*;

const STRIPE: u64 = 64 * KIB;

/// Three whole stripes and 700 bytes of a fourth; the volume goes on for two more.
fn image() -> Arc<MemImage> {
    MemImage::new(pattern(7, 3 * STRIPE + 700))
}

fn base(block_size: u32) -> Arc<MemBase> {
    MemBase::new(block_size, 6 * STRIPE)
}

/// What the volume must read as, before anything was written.
fn fresh(image: &MemImage) -> Vec<u8> {
    let mut all = image.content.clone();
    all.resize(6 * STRIPE as usize, 0);
    all
}

async fn all_of(bdev: &Arc<UbiBdev>) -> Vec<u8> {
    read(bdev, 0, 6 * STRIPE).await
}

/// Compare; whole buffers in a message help nobody.
fn same(got: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    if let Some(at) = (0..got.len()).find(|&at| got[at] != wanted[at]) {
        panic!("{what}: byte {at} is {:#x}, not {:#x}", got[at], wanted[at]);
    }
}

#[test]
fn every_read_of_a_fresh_volume_is_the_image_and_zeros() {
    for (block, copy_on_read) in [(512, true), (512, false), (4096, true), (4096, false)] {
        run(async move {
            let image = image();
            let (whole, end) = (fresh(&image), 3 * STRIPE);
            let ranges = [
                (0, 6 * STRIPE),
                (0, u64::from(block)),
                (STRIPE - u64::from(block), 2 * u64::from(block)),
                (end - 4096, 8192),
                (end, 4096),
                (end + 4096, STRIPE),
                (4 * STRIPE, 2 * STRIPE),
            ];
            for (offset, len) in ranges {
                let base = base(block);
                let bdev = opened(&base, &image, UbiOptions { copy_on_read, ..options() }).await;
                for turn in 0..3 {
                    let got = read(&bdev, offset, len).await;
                    same(&got, &whole[offset as usize..(offset + len) as usize], &format!("{len} at {offset}, {turn}"));
                    settle().await;
                }
                let copied = bdev.status().stripes_present;
                assert_eq!(copied > 0, copy_on_read && offset < end + 1024, "{len} at {offset}");
            }
        });
    }
}

#[test]
fn a_small_write_to_a_missing_stripe_keeps_the_rest_of_the_image() {
    for block in [512, 4096] {
        run(async move {
            let (image, base) = (image(), base(block));
            let bdev = opened(&base, &image, options()).await;
            let mut model = fresh(&image);
            for offset in [4096, STRIPE - 4096, 2 * STRIPE + 8192, 3 * STRIPE, 3 * STRIPE + 8192, 5 * STRIPE] {
                let bytes = pattern(offset, 4096);
                write(&bdev, offset, &bytes).await;
                model[offset as usize..offset as usize + 4096].copy_from_slice(&bytes);
                same(&all_of(&bdev).await, &model, "after a write");
            }
            bdev.close().await.expect("close");
            let again = opened(&base, &image, options()).await;
            same(&all_of(&again).await, &model, "after a reopen");
        });
    }
}

#[test]
fn a_write_of_a_whole_stripe_fetches_nothing() {
    run(async {
        let (image, base) = (image(), base(512));
        let bdev = opened(&base, &image, options()).await;
        image.take_reads();
        let bytes = pattern(9, 2 * STRIPE);
        write(&bdev, 0, &bytes).await;
        assert_eq!(base.bytes(DATA..DATA + 2 * STRIPE), bytes);
        // The image has 1024 bytes of the last stripe: to cover these is enough.
        write(&bdev, 3 * STRIPE, &pattern(10, 1024)).await;
        assert!(image.take_reads().is_empty());
        assert_eq!(bdev.status().stripes_published, 3);
        assert_eq!(bdev.status().fetched_bytes, 0);
    });
}

#[test]
fn a_write_past_the_image_end_in_the_last_stripe_fetches_its_image_part_first() {
    run(async {
        let (image, base) = (image(), base(512));
        let bdev = opened(&base, &image, options()).await;
        let end = 3 * STRIPE + 1024;
        write(&bdev, end + 4096, &[0x55; 512]).await;
        // bdev_ubi's own fetch would write the whole stripe over it, if the header were not set.
        assert_eq!(headers(&base, 4)[3], 1);
        assert_eq!(base.bytes(DATA + 3 * STRIPE..DATA + 3 * STRIPE + 700), image.content[3 * STRIPE as usize..]);
        assert!(base.bytes(DATA + 3 * STRIPE + 700..DATA + end + 4096).iter().all(|&byte| byte == 0));
        assert_eq!(base.bytes(DATA + end + 4096..DATA + end + 4608), [0x55; 512]);
    });
}

#[test]
fn a_write_in_stripes_past_the_image_goes_straight_to_the_base() {
    run(async {
        let (image, base) = (image(), base(512));
        let bdev = opened(&base, &image, options()).await;
        base.take_log();
        write(&bdev, 4 * STRIPE, &[0x55; 512]).await;
        let log = base.take_log();
        assert_eq!(log, [Op { access: Access::Write, range: DATA + 4 * STRIPE..DATA + 4 * STRIPE + 512 }]);
    });
}

#[test]
fn past_the_image_end_the_base_is_the_truth_whatever_the_header_says() {
    for (block, copy_on_read) in [(512, true), (4096, true), (4096, false)] {
        run(async move {
            let (image, base) = (image(), base(block));
            opened(&base, &image, options()).await.close().await.expect("close");
            // bdev_ubi writes there without a header.
            let written = DATA + 3 * STRIPE + 1024;
            for at in written..written + 4096 {
                base.poke(at, 0x66);
            }
            let bdev = opened(&base, &image, UbiOptions { copy_on_read, ..options() }).await;
            let mut model = fresh(&image);
            model[(written - DATA) as usize..(written - DATA) as usize + 4096].fill(0x66);
            for turn in 0..3 {
                same(&all_of(&bdev).await, &model, &format!("turn {turn}"));
                settle().await;
            }
            assert_eq!(bdev.status().stripes_present == 4, copy_on_read);
        });
    }
}

#[test]
fn zeroes_and_discards_read_as_they_must_on_every_state() {
    for (block, what) in [(512, "zero"), (512, "discard"), (4096, "zero"), (4096, "discard")] {
        run(async move {
            let (image, base) = (image(), base(block));
            let bdev = opened(&base, &image, options()).await;
            let mut model = fresh(&image);
            write(&bdev, 0, &pattern(1, 4096)).await;
            model[..4096].copy_from_slice(&pattern(1, 4096));
            // Part of a published stripe, a whole missing one, part of a missing one, past the image.
            for (offset, len) in [(0, 8192), (STRIPE, STRIPE), (2 * STRIPE + 4096, 4096), (4 * STRIPE, STRIPE)] {
                let fua = offset == 0;
                match what {
                    "zero" => {
                        bdev.write_zeroes(offset, len, ZeroFlags { fua, ..ZeroFlags::default() }).await.expect("zero")
                    }
                    _ => bdev.discard(offset, len, fua).await.expect("discard"),
                }
                let inside_missing = offset == 2 * STRIPE + 4096;
                if what == "zero" || !inside_missing {
                    model[offset as usize..(offset + len) as usize].fill(0);
                }
            }
            same(&all_of(&bdev).await, &model, what);
            assert_eq!(headers(&base, 4)[1], 1, "a whole stripe {what}ed is Present for ever");
            bdev.close().await.expect("close");
            same(&all_of(&opened(&base, &image, options()).await).await, &model, "after a reopen");
        });
    }
}

#[test]
fn a_request_over_everything_is_cut_at_stripes_and_image_end() {
    for (block, what) in [(512, "write"), (4096, "write"), (512, "zero"), (4096, "zero"), (512, "discard")] {
        run(async move {
            let (image, base) = (image(), base(block));
            let bdev = opened(&base, &image, options()).await;
            write(&bdev, STRIPE, &[1; 4096]).await;
            let (offset, len) = (4096, 6 * STRIPE - 8192);
            let mut model = fresh(&image);
            let bytes = if what == "write" { pattern(3, len) } else { vec![0; len as usize] };
            model[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
            match what {
                "write" => write(&bdev, offset, &bytes).await,
                "zero" => bdev.write_zeroes(offset, len, ZeroFlags::default()).await.expect("zero"),
                _ => {
                    bdev.discard(offset, len, false).await.expect("discard");
                    model[..STRIPE as usize].copy_from_slice(&image.content[..STRIPE as usize]);
                }
            }
            same(&all_of(&bdev).await, &model, what);
            bdev.close().await.expect("close");
            same(&all_of(&opened(&base, &image, options()).await).await, &model, "after a reopen");
        });
    }
}

#[test]
fn inv_2_a_base_whose_discards_do_not_zero_never_shows_its_old_bytes() {
    run(async {
        let image = image();
        let mut content = vec![0; DATA as usize];
        content.resize((DATA + 6 * STRIPE) as usize, POISON);
        let base = MemBase::made(512, content, |info| info.unmap_reads_zero = false);
        let bdev = opened(&base, &image, options()).await;
        base.take_log();
        bdev.discard(0, 2 * STRIPE, false).await.expect("discard");
        assert!(base.take_log().is_empty(), "a discard of missing stripes is nothing");
        bdev.write_zeroes(STRIPE, STRIPE, ZeroFlags::default()).await.expect("zero");
        let mut model = fresh(&image);
        model[STRIPE as usize..2 * STRIPE as usize].fill(0);
        same(&all_of(&bdev).await, &model, "zeroed");
        write(&bdev, 0, &[1; 4096]).await;
        bdev.discard(0, 4096, false).await.expect("discard");
        model[..4096].fill(0);
        same(&all_of(&bdev).await, &model, "discarded on the base: zeros are written");
    });
}

#[test]
fn holes_of_the_image_are_not_read_and_hide_the_base() {
    for block in [512, 4096] {
        run(async move {
            // Stripe 0 has data in its middle, stripe 1 none, stripe 2 all, the last 700 bytes none.
            let data = [16 * KIB..20 * KIB + 100, 2 * STRIPE..3 * STRIPE];
            let image = MemImage::sparse(pattern(4, 3 * STRIPE + 700), &data);
            let base = base(block);
            let bdev = opened(&base, &image, options()).await;
            image.take_reads();
            bdev.prefetch(0, 6 * STRIPE).await.expect("prefetch");
            let mut reads = image.take_reads();
            reads.sort_by_key(|range| range.start);
            let end = (20 * KIB + 100).next_multiple_of(u64::from(block));
            assert_eq!(reads, [16 * KIB..end, 2 * STRIPE..3 * STRIPE]);
            assert_eq!(bdev.status().fetched_bytes, end - 16 * KIB + STRIPE);
            same(&all_of(&bdev).await, &fresh(&image), "content");
            assert_eq!(base.bytes(DATA..DATA + 6 * STRIPE), fresh(&image), "and the base holds it");
        });
    }
}

#[test]
fn an_image_of_scattered_data_is_fetched_in_few_pieces() {
    run(async {
        let pieces: Vec<_> = (0..12).map(|index| index * 128 * KIB..index * 128 * KIB + 4096).collect();
        let image = MemImage::sparse(pattern(5, 2 * MIB), &pieces);
        let base = MemBase::new(512, 2 * MIB);
        let bdev = opened(&base, &image, UbiOptions { stripe_size_kb: Some(1024), ..options() }).await;
        image.take_reads();
        bdev.prefetch(0, 2 * MIB).await.expect("prefetch");
        assert_eq!(image.take_reads().len(), 8 + 4);
        assert_eq!(read(&bdev, 0, 2 * MIB).await, image.content);
    });
}

#[test]
fn a_fetch_writes_small_pieces_to_a_buffered_base_and_whole_stripes_past_the_cache() {
    for (buffered, pieces) in [(true, 8), (false, 1)] {
        run(async move {
            let image = MemImage::new(pattern(6, MIB));
            let base = MemBase::made(512, vec![0; 10 << 20], |info| info.buffered = buffered);
            let bdev = opened(&base, &image, UbiOptions { stripe_size_kb: Some(1024), ..options() }).await;
            base.take_log();
            bdev.prefetch(0, MIB).await.expect("prefetch");
            let log = base.take_log();
            let writes: Vec<_> = log.iter().filter(|op| op.is_data()).collect();
            assert_eq!(writes.len(), pieces);
            assert!(writes.iter().all(|op| op.range.end - op.range.start <= MIB / pieces as u64));
        });
    }
}

#[test]
fn a_prefetch_brings_stripes_in_whatever_copy_on_read_says_and_is_no_write() {
    run(async {
        let (image, base) = (image(), base(512));
        let bdev = opened(&base, &image, UbiOptions { copy_on_read: false, ..options() }).await;
        assert_eq!(read(&bdev, 0, 512).await, image.content[..512]);
        assert_eq!(bdev.status().stripes_present, 0);
        bdev.prefetch(4096, STRIPE).await.expect("prefetch");
        assert_eq!(bdev.status().stripes_present, 2);
        image.take_reads();
        assert_eq!(read(&bdev, 0, 2 * STRIPE).await, image.content[..2 * STRIPE as usize]);
        assert!(image.take_reads().is_empty());
    });
}

#[test]
fn inline_requests_are_declined_unless_the_base_has_it_all() {
    run(async {
        let (image, base) = (image(), base(512));
        base.be_random(Random::new(1), None);
        let bdev = opened(&base, &image, options()).await;
        let mut buf = [0; 512];
        for _ in 0..50 {
            assert!(bdev.try_read(0, &mut buf, None).is_none(), "INV-2: the stripe is missing");
            assert!(bdev.try_write(0, &buf, None).is_none());
        }
        read(&bdev, 0, 512).await;
        bdev.prefetch(0, 512).await.expect("prefetch");
        while bdev.status().stripes_present == 0 {
            settle().await;
        }
        for _ in 0..50 {
            assert!(bdev.try_write(0, &buf, None).is_none(), "its header is not durable");
        }
        let inline_read = (0..50).filter_map(|_| bdev.try_read(0, &mut buf, None)).count();
        assert!(inline_read > 0 && buf == image.content[..512]);
        bdev.flush().await.expect("flush");
        assert!((0..50).filter_map(|_| bdev.try_write(0, &[8; 512], None)).count() > 0);
        assert_eq!(read(&bdev, 0, 512).await, [8; 512]);
        assert!((0..50).filter_map(|_| bdev.try_write(4 * STRIPE, &[8; 512], None)).count() > 0, "past the image");
        assert!((0..50).all(|_| bdev.try_write(3 * STRIPE + 4096, &[8; 512], None).is_none()), "in the last stripe");
    });
}

#[test]
fn what_is_carried_out_in_place_counts_for_the_volume_and_its_base_and_for_the_base_alone_when_it_was_asked() {
    run(async {
        let blocks = (layout::METADATA_BYTES + 6 * STRIPE) / 512;
        let base: Arc<dyn Bdev> = Arc::new(MallocBdev::new("m", blocks, 512).expect("memory"));
        let volume = ubi::open(Arc::clone(&base), image(), options()).await.expect("volume");
        write(&volume, 0, &vec![2; (4 * STRIPE) as usize]).await;
        volume.flush().await.expect("flush");
        let (above, below) = (volume.iostat().totals(), base.iostat().totals());
        let mut buf = [0; 4096];
        assert!(matches!(volume.try_write(0, &[3; 512], None), Some(Ok(()))));
        assert!(matches!(volume.try_read(0, &mut buf, None), Some(Ok(()))));
        assert!(matches!(base.try_read(0, &mut buf, None), Some(Ok(()))), "an export of the base's own");
        let (volumes, bases) = (volume.iostat().totals(), base.iostat().totals());
        let read = |now: Totals, before: Totals| (now.read.ops - before.read.ops, now.read.bytes - before.read.bytes);
        let written =
            |now: Totals, before: Totals| (now.write.ops - before.write.ops, now.write.bytes - before.write.bytes);
        assert_eq!((read(volumes, above), written(volumes, above)), ((1, 4096), (1, 512)));
        assert_eq!((read(bases, below), written(bases, below)), ((2, 8192), (1, 512)));
        volume.read(0, 4096).await.expect("read");
        assert_eq!(read(volume.iostat().totals(), volumes), (1, 4096));
        assert_eq!(read(base.iostat().totals(), bases), (1, 4096), "once, whichever way it took");
        volume.close().await.expect("close");
    });
}

#[test]
fn counters_tell_what_was_done() {
    run(async {
        let (image, base) = (image(), base(512));
        let bdev = opened(&base, &image, options()).await;
        write(&bdev, 0, &[1; 512]).await;
        write(&bdev, STRIPE, &vec![2; STRIPE as usize]).await;
        bdev.write_zeroes(0, 1024, ZeroFlags::default()).await.expect("zero");
        bdev.discard(0, 512, false).await.expect("discard");
        bdev.flush().await.expect("flush");
        read(&bdev, 0, 4096).await;
        let status = bdev.status();
        assert_eq!((status.fetched_bytes, status.bytes_written_to_base), (STRIPE, 2 * STRIPE + 512));
        assert_eq!((status.syncs, status.metadata_bytes_written), (7, 8192), "two of them to mark it open");
        assert_eq!((status.image_path.as_str(), status.image_size_bytes), ("memory", 3 * STRIPE + 700));
        assert_eq!((status.stripe_size_kb, status.stripes_total, status.stripes_published), (64, 4, 2));
        assert!(!status.sync_failed && status.last_error.is_empty() && status.copy_on_read && !status.no_sync);
        let totals = bdev.iostat().totals();
        assert_eq!((totals.write.ops, totals.write.bytes), (3, 512 + STRIPE + 1024));
        assert_eq!((totals.read.ops, totals.read.bytes), (1, 4096));
        assert_eq!((totals.unmap.ops, totals.flushes, totals.errors), (1, 1, 0));
        assert!(bdev.ubi().is_some());
    });
}
