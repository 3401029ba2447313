//! Errors of the image and of the base: who gets them, what is as before, and what is final.
#![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

mod ubi_support;

use std::sync::Arc;

use ubi_engine::bdev::ubi::{UbiBdev, UbiOptions};
use ubi_engine::bdev::{Bdev, ZeroFlags};
use ubi_engine::events::{Events, Level};
use ubi_support::*;

const STRIPE: u64 = 64 * KIB;
const ALL_DATA: std::ops::Range<u64> = DATA..u64::MAX;

async fn volume(image: &Arc<MemImage>) -> (Arc<MemBase>, Arc<UbiBdev>) {
    let base = MemBase::new(512, 4 * STRIPE);
    let bdev = opened(&base, image, options()).await;
    (base, bdev)
}

fn image() -> Arc<MemImage> {
    MemImage::new(pattern(7, 4 * STRIPE))
}

fn errno<T>(result: Result<T, ubi_engine::error::Error>) -> i32 {
    result.err().expect("an error").errno()
}

#[test]
fn an_image_error_fails_its_request_and_nothing_for_ever() {
    run(async {
        let image = image();
        let (_base, bdev) = volume(&image).await;
        image.fail(1);
        assert_eq!(errno(bdev.read(0, 512).await), libc::EIO);
        settle().await;
        assert_eq!(bdev.status().fetch_errors, 1);
        assert!(bdev.status().last_error.contains("image read at 0"));
        assert_eq!(read(&bdev, 0, 512).await, image.content[..512]);
        image.fail(1);
        assert_eq!(errno(bdev.write(STRIPE, data(&[1; 512]), false).await), libc::EIO);
        write(&bdev, STRIPE, &[1; 512]).await;
        assert_eq!(read(&bdev, STRIPE + 512, 512).await, image.content[STRIPE as usize + 512..STRIPE as usize + 1024]);
    });
}

#[test]
fn one_failed_fetch_lets_the_other_writers_try_for_themselves() {
    run(async {
        let image = image();
        let (_base, bdev) = volume(&image).await;
        image.fail(1);
        let held = image.hold();
        let first = start_write(&bdev, 0, vec![1; 512]);
        let second = start_write(&bdev, 512, vec![2; 512]);
        settle().await;
        held.set(());
        assert_eq!(errno(first.wait().await), libc::EIO);
        second.wait().await.expect("the second fetches again");
        assert_eq!(read(&bdev, 512, 512).await, [2; 512]);
    });
}

#[test]
fn a_full_base_fails_writes_and_no_reads() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        base.fail(Access::Write, ALL_DATA, 0, libc::ENOSPC, usize::MAX);
        for turn in 0..3 {
            image.take_reads();
            assert_eq!(read(&bdev, 512, 512).await, image.content[512..1024], "turn {turn}");
            settle().await;
            let whole_stripe = vec![0..STRIPE];
            let wanted = vec![512..1024];
            assert_eq!(image.take_reads(), if turn == 0 { whole_stripe } else { wanted }, "it does not try each time");
        }
        ubi_engine::reactor::exec::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(read(&bdev, 512, 512).await, image.content[512..1024]);
        settle().await;
        assert_eq!(bdev.status().fetch_errors, 2, "but now and then");
        assert_eq!(errno(bdev.write(0, data(&[1; 512]), false).await), libc::ENOSPC);
        assert_eq!(errno(bdev.write(STRIPE, data(&vec![1; STRIPE as usize]), false).await), libc::ENOSPC);
        let status = bdev.status();
        assert_eq!((status.stripes_present, status.stripes_filling), (0, 0));
        assert_eq!(status.fetch_errors, 3);
        assert!(read(&bdev, 0, 4 * STRIPE).await == image.content, "INV-3: half a stripe on the base is not believed");
        bdev.flush().await.expect("flush");
    });
}

#[test]
fn a_failed_owner_gives_the_stripe_back_for_every_kind_of_change() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        for access in [Access::Write, Access::Zero, Access::Discard] {
            base.fail(access, ALL_DATA, 0, libc::EIO, 1);
        }
        assert_eq!(errno(bdev.write(0, data(&vec![1; 2 * STRIPE as usize]), false).await), libc::EIO);
        assert_eq!(errno(bdev.write_zeroes(0, STRIPE, ZeroFlags::default()).await), libc::EIO);
        assert_eq!(errno(bdev.discard(STRIPE, STRIPE, false).await), libc::EIO);
        assert_eq!(bdev.status().stripes_present, 0);
        assert!(read(&bdev, 0, 2 * STRIPE).await == image.content[..2 * STRIPE as usize]);
        write(&bdev, 0, &vec![1; 2 * STRIPE as usize]).await;
        assert_eq!(read(&bdev, STRIPE, 512).await, [1; 512]);
    });
}

#[test]
fn what_a_failed_write_left_past_the_image_end_is_there_for_bdev_ubi_after_a_clean_close() {
    run(async {
        let image_bytes = 3 * STRIPE + 16 * KIB;
        let image = MemImage::new(pattern(7, image_bytes));
        let (base, bdev) = volume(&image).await;
        base.fail(Access::Write, ALL_DATA, 0, libc::EIO, 1);
        assert_eq!(errno(bdev.write(3 * STRIPE, data(&vec![1; STRIPE as usize]), false).await), libc::EIO);
        // Half of it has landed, as it may, and past the image end the base is the truth.
        assert_eq!(read(&bdev, image_bytes, 512).await, [1; 512]);
        bdev.close().await.expect("closed");
        // Without the header bdev_ubi would fetch the stripe and write zeros there.
        assert_eq!(headers(&base, 4), [0, 0, 0, 1]);
        assert_eq!(base.bytes(DATA + 3 * STRIPE..DATA + image_bytes), image.content[3 * STRIPE as usize..]);
        assert_eq!(base.bytes(DATA + image_bytes..DATA + image_bytes + 512), [1; 512]);
    });
}

#[test]
fn a_fault_in_one_stripe_of_a_request_leaves_the_others_done() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        // The parts of the request: the end of stripe 0, stripes 1 and 2, the start of stripe 3.
        base.fail(Access::Write, DATA..DATA + STRIPE, 1, libc::EIO, 1);
        let request = bdev.write(4096, data(&vec![1; 4 * STRIPE as usize - 8192]), false).await;
        assert_eq!(errno(request), libc::EIO, "INV-7");
        write(&bdev, 4096, &vec![1; 4 * STRIPE as usize - 8192]).await;
        assert!(read(&bdev, 4096, 4 * STRIPE - 8192).await.iter().all(|&byte| byte == 1));
    });
}

#[test]
fn a_failed_flush_is_final_for_writes_and_flushes_but_not_for_reads() {
    run(async {
        let image = image();
        let base = MemBase::new(512, 4 * STRIPE);
        let events = Events::new().expect("eventfd");
        let options = UbiOptions { events: Some(Arc::clone(&events)), ..options() };
        let bdev = opened(&base, &image, options.clone()).await;
        write(&bdev, 0, &[1; 512]).await;
        base.fail(Access::Flush, 0..1, 0, libc::EIO, 1);
        base.be_random(Random::new(1), None); // now and then it takes requests inline
        assert_eq!(errno(bdev.flush().await), libc::EIO);
        settle().await;
        base.take_log();
        for turn in 0..3 {
            assert_eq!(errno(bdev.flush().await), libc::EIO, "no retry reports success, turn {turn}");
            assert_eq!(errno(bdev.write(0, data(&[2; 512]), false).await), libc::EIO);
            assert_eq!(errno(bdev.write_zeroes(0, 512, ZeroFlags::default()).await), libc::EIO);
            assert_eq!(errno(bdev.discard(0, 512, false).await), libc::EIO);
            assert!((0..20).all(|_| bdev.try_write(0, &[2; 512], None).is_none()), "inline neither");
            assert_eq!(read(&bdev, 0, 512).await, [1; 512]);
            assert_eq!(read(&bdev, STRIPE, 512).await, image.content[STRIPE as usize..STRIPE as usize + 512]);
        }
        let status = bdev.status();
        assert!(status.sync_failed && status.last_error.contains("flush of the base failed"));
        assert_eq!(errno(bdev.close().await), libc::EIO, "close tells it");
        let only_reads = base.take_log().iter().all(|op| op.access == Access::Read);
        assert!(only_reads, "nothing is copied or published any more");
        let errors: Vec<_> = events.drain().into_iter().filter(|event| event.level == Level::Error).collect();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].object, "ubi0");
        let refused = open(&base, &image, options.clone()).await.err().expect("INV-5: remembered across processes");
        assert!(refused.message().contains("failed to flush"), "{refused}");
        let again = opened_or_repaired(&base, &image, options).await;
        assert_eq!(read(&again, 0, 512).await, [1; 512]);
    });
}

#[test]
fn a_flush_that_fails_in_a_round_fails_the_write_that_asked_for_it() {
    for failing_flush in [0, 1] {
        run(async move {
            let image = image();
            let (base, bdev) = volume(&image).await;
            mark_open(&bdev, 3).await;
            base.fail(Access::Flush, 0..1, failing_flush, libc::EIO, 1);
            assert_eq!(errno(bdev.write(0, data(&[1; 512]), false).await), libc::EIO);
            assert_eq!(errno(bdev.write(0, data(&[1; 512]), false).await), libc::EIO);
            assert_eq!(bdev.status().stripes_published, 1);
            assert_eq!(headers(&base, 1)[0] == 1, failing_flush == 1, "INV-1: no header before the data is flushed");
            assert_eq!(errno(bdev.close().await), libc::EIO);
        });
    }
}

#[test]
fn a_fua_write_whose_sync_fails_is_as_final_as_a_flush() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        write(&bdev, 0, &[1; 512]).await;
        base.fail(Access::Flush, 0..1, 0, libc::EIO, 1);
        assert_eq!(errno(bdev.write(512, data(&[2; 512]), true).await), libc::EIO);
        assert!(bdev.status().sync_failed);
        assert_eq!(errno(bdev.flush().await), libc::EIO, "the kernel told of the lost writes only once");
    });
}

#[test]
fn a_fua_write_that_cannot_be_written_fails_alone() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        write(&bdev, 0, &[1; 512]).await;
        base.fail(Access::Write, ALL_DATA, 0, libc::ENOSPC, 1);
        assert_eq!(errno(bdev.write(512, data(&[2; 512]), true).await), libc::ENOSPC);
        assert!(!bdev.status().sync_failed);
        bdev.write(512, data(&[2; 512]), true).await.expect("there is space again");
    });
}

#[test]
fn a_flush_fails_with_no_sync_too_once_a_round_has_failed() {
    run(async {
        let image = image();
        let base = MemBase::new(512, 4 * STRIPE);
        let bdev = opened(&base, &image, UbiOptions { no_sync: true, ..options() }).await;
        base.fail(Access::Flush, 0..1, 0, libc::EIO, 1);
        assert_eq!(errno(bdev.write(0, data(&[1; 512]), false).await), libc::EIO);
        assert_eq!(errno(bdev.flush().await), libc::EIO);
    });
}

#[test]
fn a_header_page_that_cannot_be_written_is_tried_again() {
    run(async {
        let image = image();
        let (base, bdev) = volume(&image).await;
        mark_open(&bdev, 3).await;
        base.fail(Access::Write, 0..DATA, 0, libc::ENOSPC, 1);
        assert_eq!(errno(bdev.write(0, data(&[1; 512]), false).await), libc::ENOSPC);
        assert_eq!((bdev.status().stripes_present, bdev.status().stripes_published), (2, 1));
        write(&bdev, 512, &[2; 512]).await;
        assert_eq!(bdev.status().stripes_published, 2);
        assert_eq!(headers(&base, 1), [1]);
        base.fail(Access::Write, 0..DATA, 0, libc::EIO, 1);
        assert_eq!(errno(bdev.write(STRIPE, data(&[1; 512]), false).await), libc::EIO);
        ubi_engine::reactor::exec::sleep(std::time::Duration::from_secs(6)).await;
        assert_eq!(bdev.status().stripes_published, 3, "at the latest after five seconds");
    });
}

#[test]
fn a_changed_image_fails_what_needs_it_and_says_so_once() {
    run(async {
        let image = MemImage::sparse(pattern(7, 4 * STRIPE), &[0..3 * STRIPE]);
        let base = MemBase::new(512, 4 * STRIPE);
        let events = Events::new().expect("eventfd");
        let options = UbiOptions { events: Some(Arc::clone(&events)), ..options() };
        let bdev = opened(&base, &image, options).await;
        write(&bdev, 0, &[1; 512]).await;
        image.change();
        assert_eq!(read(&bdev, 0, 512).await, [1; 512], "what is Present needs no image");
        for _ in 0..10 {
            let error = bdev.read(STRIPE, 512).await.expect_err("changed");
            assert!(error.message().contains("has changed"), "{error}");
        }
        assert!(bdev.read(3 * STRIPE, 512).await.is_err(), "holes of the old image are no longer believed");
        write(&bdev, 2 * STRIPE, &vec![2; STRIPE as usize]).await;
        settle().await;
        let told: Vec<_> = events.drain().into_iter().filter(|event| event.message.contains("changed")).collect();
        assert_eq!(told.len(), 1, "rate-limited");
        assert_eq!(told[0].level, Level::Warning);
    });
}

#[test]
fn an_error_at_every_single_operation_is_reported_or_does_no_harm() {
    let mut points = 0;
    for access in [Access::Read, Access::Write, Access::Zero, Access::Flush] {
        for nth in 0..40 {
            let reached = run(async move {
                let image =
                    MemImage::sparse(pattern(7, 3 * STRIPE + 700), &[0..2 * STRIPE + 4096, 3 * STRIPE..4 * STRIPE]);
                let base = MemBase::new(4096, 6 * STRIPE);
                base.fail(access, 0..u64::MAX, nth, libc::EIO, 1);
                let (errors, model) = script(&base, &image).await;
                let reached = base.was_hit();
                base.heal();
                assert!(errors > 0 || !reached, "INV-7: {access:?} {nth}");
                let again = opened_or_repaired(&base, &image, options()).await;
                let content = read(&again, 0, 6 * STRIPE).await;
                for (sector, allowed) in content.chunks(4096).zip(model) {
                    assert!(allowed.iter().any(|bytes| sector == bytes), "{access:?} {nth}");
                }
                reached
            });
            points += usize::from(reached);
        }
    }
    assert!(points > 30, "{points} points were reached");
}

/// Some of everything. Returns how many requests failed and what each block may hold afterwards.
async fn script(base: &Arc<MemBase>, image: &Arc<MemImage>) -> (usize, Vec<Vec<Vec<u8>>>) {
    let mut whole = image.content.clone();
    whole.resize(6 * STRIPE as usize, 0);
    let mut model: Vec<Vec<Vec<u8>>> = whole.chunks(4096).map(|block| vec![block.to_vec()]).collect();
    let Ok(bdev) = open(base, image, options()).await else { return (1, model) };
    let mut errors = 0;
    let requests =
        [(0, 4096), (4096, 4096), (STRIPE, STRIPE), (2 * STRIPE, 2 * STRIPE), (3 * STRIPE + 8192, 3 * STRIPE - 8192)];
    for (index, (offset, len)) in requests.into_iter().enumerate() {
        let is_zero = index == 3;
        let bytes = if is_zero { vec![0; len as usize] } else { pattern(index as u64, len) };
        let result = if is_zero {
            bdev.write_zeroes(offset, len, ZeroFlags::default()).await
        } else {
            bdev.write(offset, data(&bytes), index % 2 == 0).await
        };
        for (block, bytes) in model[(offset / 4096) as usize..].iter_mut().zip(bytes.chunks(4096)) {
            if result.is_ok() {
                block.clear();
            } else {
                // A failed write may have changed a part of a block; the base double writes the first half.
                let torn = [&bytes[..2048], &block[0][2048..]].concat();
                block.push(torn);
            }
            block.push(bytes.to_vec());
        }
        errors += usize::from(result.is_err());
        errors += usize::from(bdev.read(0, 6 * STRIPE as usize).await.is_err());
    }
    errors += usize::from(bdev.flush().await.is_err());
    errors += usize::from(bdev.close().await.is_err());
    // A stripe that could not be copied fails no read, but is told.
    errors += bdev.status().fetch_errors as usize;
    (errors, model)
}
