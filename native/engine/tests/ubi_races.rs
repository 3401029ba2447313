//! Requests that meet on one stripe, and requests that must not notice each other.
#![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

mod ubi_support;

use std::sync::Arc;

use ubi_engine::bdev::ubi::{UbiBdev, UbiOptions};
use ubi_engine::bdev::{Bdev, ZeroFlags};
use ubi_engine::reactor::exec;
use ubi_support::*;

const STRIPE: u64 = 64 * KIB;

fn image() -> Arc<MemImage> {
    MemImage::new(pattern(7, 8 * STRIPE))
}

async fn volume(image: &Arc<MemImage>) -> (Arc<MemBase>, Arc<UbiBdev>) {
    let base = MemBase::new(512, 8 * STRIPE);
    let bdev = opened(&base, image, options()).await;
    base.take_log();
    (base, bdev)
}

#[test]
fn inv_3_a_write_that_races_a_fetch_is_never_overwritten() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        mark_open(&bdev, 7).await;
        base.take_log();
        let held_image = image.hold();
        let reader = start_read(&bdev, 0, 512);
        settle().await;
        let writer = start_write(&bdev, 4096, vec![0xee; 512]);
        let whole = start_write(&bdev, 0, vec![0xab; STRIPE as usize]);
        settle().await;
        assert!(!writer.is_done() && !whole.is_done() && !reader.is_done());
        assert!(base.take_log().is_empty(), "nothing reaches the base before the fetch has read");
        let held_base = base.hold(Access::Write, DATA..DATA + STRIPE);
        held_image.set(());
        settle().await;
        assert!(reader.is_done(), "a read does not wait for the base");
        assert!(!writer.is_done() && !whole.is_done());
        let fetch_only: Vec<_> = base.take_log();
        assert_eq!(fetch_only.len(), 1, "writes wait while the fetch writes: {fetch_only:?}");
        held_base.set(());
        writer.wait().await.expect("write");
        whole.wait().await.expect("write");
        let got = read(&bdev, 4096, 512).await;
        assert!(got == [0xee; 512] || got == [0xab; 512], "one of the writes, not the image");
        assert_eq!(read(&bdev, 8192, 512).await, [0xab; 512]);
    });
}

#[test]
fn while_a_stripe_fills_reads_come_from_the_image() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        let held = base.hold(Access::Write, DATA..DATA + STRIPE);
        let whole = start_write(&bdev, 0, vec![0xab; STRIPE as usize]);
        let zero = {
            let bdev = Arc::clone(&bdev);
            start(async move { bdev.write_zeroes(STRIPE, STRIPE, ZeroFlags::default()).await })
        };
        settle().await;
        assert_eq!(read(&bdev, 512, 512).await, image.content[512..1024], "INV-2: not the base");
        assert!(!whole.is_done());
        zero.wait().await.expect("another stripe is not held up");
        held.set(());
        whole.wait().await.expect("write");
        assert_eq!(read(&bdev, 512, 512).await, [0xab; 512]);
    });
}

#[test]
fn one_fetch_serves_everybody_who_asks_for_the_stripe() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        let held = image.hold();
        let readers: Vec<_> = (0..20).map(|index| start_read(&bdev, index * 512, 512)).collect();
        let writer = start_write(&bdev, STRIPE - 512, vec![1; 512]);
        settle().await;
        held.set(());
        for (index, reader) in readers.iter().enumerate() {
            assert_eq!(reader.wait().await.expect("read"), image.content[index * 512..index * 512 + 512]);
        }
        writer.wait().await.expect("write");
        assert_eq!(image.take_reads(), [0..STRIPE]);
        let fetched =
            base.take_log().iter().filter(|op| op.is_data() && op.range.end - op.range.start == STRIPE).count();
        assert_eq!(fetched, 1);
    });
}

#[test]
fn requests_that_wait_for_a_stripe_hold_up_nobody_else() {
    run(async {
        let image = image();
        let (_base, bdev) = volume(&image).await;
        write(&bdev, 3 * STRIPE, &[3; 512]).await;
        let held = image.hold();
        let stuck = [start_write(&bdev, 0, vec![1; 512]), start_write(&bdev, 512, vec![1; 512])];
        settle().await;
        image.hold_no_more();
        assert_eq!(read(&bdev, 3 * STRIPE, 512).await, [3; 512], "a ready stripe");
        assert_eq!(read(&bdev, STRIPE, 512).await, image.content[STRIPE as usize..STRIPE as usize + 512]);
        write(&bdev, 2 * STRIPE, &[2; 512]).await;
        bdev.flush().await.expect("flush");
        assert!(stuck.iter().all(|write| !write.is_done()));
        held.set(());
        for write in &stuck {
            write.wait().await.expect("INV-4: it ends when the fault clears");
        }
    });
}

#[test]
fn requests_over_several_stripes_in_opposite_order_do_not_lock_each_other_up() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        base.be_random(Random::new(3), None);
        image.be_random(Random::new(4), None);
        let writes: Vec<_> = (0..12)
            .map(|index| {
                let (offset, len) = ((index % 4) * STRIPE / 2, (3 + index % 3) * STRIPE);
                start_write(&bdev, offset, vec![index as u8 + 1; len as usize])
            })
            .collect();
        for write in &writes {
            write.wait().await.expect("write");
        }
        for sector in read(&bdev, 0, 6 * STRIPE).await.chunks(512) {
            assert!(sector.iter().all(|&byte| byte == sector[0]), "sectors are whole");
        }
    });
}

#[test]
fn at_most_sixteen_fetches_run_at_once() {
    run(async {
        let image = MemImage::new(pattern(8, 64 * STRIPE));
        let base = MemBase::new(512, 64 * STRIPE);
        let bdev = opened(&base, &image, options()).await;
        let held = image.hold();
        let reader = start_read(&bdev, 0, 64 * STRIPE);
        settle().await;
        assert_eq!(image.take_reads().len(), 16);
        held.set(());
        assert!(reader.wait().await.expect("read") == image.content);
        assert_eq!(image.most_in_flight(), 16);
    });
}

#[test]
fn close_waits_for_what_still_writes_to_the_base() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        let held = base.hold(Access::Write, DATA..DATA + STRIPE);
        read(&bdev, 0, 512).await;
        let closing = {
            let bdev = Arc::clone(&bdev);
            start(async move { bdev.close().await })
        };
        settle().await;
        assert!(!closing.is_done());
        held.set(());
        closing.wait().await.expect("close");
        assert_eq!(headers(&base, 1), [1], "what was copied is published");
        drop(bdev);
        settle().await;
        assert_eq!(Arc::strong_count(&base), 1, "nothing keeps the base");
    });
}

#[test]
fn a_volume_is_used_from_several_threads_at_once() {
    let image = MemImage::new(pattern(9, 32 * STRIPE));
    let base = MemBase::new(512, 32 * STRIPE);
    let bdev = {
        let (base, image) = (Arc::clone(&base), Arc::clone(&image));
        exec::block_on(async move { opened(&base, &image, options()).await })
    };
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let (bdev, image) = (Arc::clone(&bdev), Arc::clone(&image));
            std::thread::spawn(move || {
                exec::block_on(async move {
                    let mut random = Random::new(thread);
                    for _ in 0..200 {
                        // Each thread has its own sectors in every stripe.
                        let offset = random.below(32) * STRIPE + (random.below(32) * 4 + thread) * 512;
                        let bytes = [thread as u8 + 1; 512];
                        write(&bdev, offset, &bytes).await;
                        assert_eq!(read(&bdev, offset, 512).await, bytes);
                        let other = offset / STRIPE * STRIPE + (random.below(32) * 4 + thread) * 512;
                        let got = read(&bdev, other, 512).await;
                        let from_image = &image.content[other as usize..other as usize + 512];
                        assert!(got == bytes || got == from_image, "INV-2");
                    }
                    bdev.flush().await.expect("flush");
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a thread");
    }
    let status = bdev.status();
    assert_eq!((status.stripes_filling, status.stripes_present), (0, status.stripes_published));
    exec::block_on(async move { bdev.close().await.expect("close") });
}

#[test]
fn without_copy_on_read_a_read_of_many_missing_stripes_is_one_read_of_the_image() {
    run(async {
        let image = image();
        let base = MemBase::new(512, 8 * STRIPE);
        let bdev = opened(&base, &image, UbiOptions { copy_on_read: false, ..options() }).await;
        write(&bdev, 4 * STRIPE, &vec![1; STRIPE as usize]).await;
        image.take_reads();
        let mut model = image.content.clone();
        model[4 * STRIPE as usize..5 * STRIPE as usize].fill(1);
        assert!(read(&bdev, 0, 8 * STRIPE).await == model);
        assert_eq!(image.take_reads(), [0..4 * STRIPE, 5 * STRIPE..8 * STRIPE]);
    });
}
