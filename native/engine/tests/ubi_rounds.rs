//! When headers become durable, when a write is acknowledged, what a FLUSH costs, and what a death leaves.
#![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

mod ubi_support;

use std::sync::Arc;
use std::time::Duration;

use ubi_engine::bdev::ubi::{UbiBdev, UbiOptions};
use ubi_engine::bdev::{Bdev, ZeroFlags};
use ubi_engine::reactor::exec;
use ubi_support::*;

const STRIPE: u64 = 64 * KIB;

fn image() -> Arc<MemImage> {
    MemImage::new(pattern(7, 9 * STRIPE))
}

/// A volume of nine stripes that is marked open without a map: its last stripe is Present, the others are Missing.
async fn volume(options: UbiOptions) -> (Arc<MemBase>, Arc<UbiBdev>) {
    let base = MemBase::new(512, 9 * STRIPE);
    let bdev = opened(&base, &image(), options).await;
    bdev.write(8 * STRIPE, data(&[8; 512]), true).await.expect("write");
    base.take_log();
    (base, bdev)
}

fn kinds(log: &[Op]) -> String {
    let letter = |op: &Op| match op.access {
        Access::Flush => 'F',
        Access::Read => 'r',
        _ if op.is_metadata() => 'H',
        _ => 'D',
    };
    log.iter().map(letter).collect()
}

#[test]
fn inv_1_a_first_write_is_data_flush_header_flush() {
    run(async {
        let (base, bdev) = volume(options()).await;
        write(&bdev, 0, &[1; 512]).await;
        assert_eq!(kinds(&base.take_log()), "DDFHF", "fetch, write, round");
        write(&bdev, STRIPE, &vec![1; STRIPE as usize]).await;
        assert_eq!(kinds(&base.take_log()), "DFHF", "no fetch");
        write(&bdev, 512, &[2; 512]).await;
        assert_eq!(kinds(&base.take_log()), "D", "its header is durable");
        assert_eq!(headers(&base, 2), [1, 1]);
    });
}

#[test]
fn a_header_page_is_one_page_and_headers_of_live_states_stay_out() {
    run(async {
        let (base, bdev) = volume(options()).await;
        let held = base.hold(Access::Flush, 0..1);
        let first = start_write(&bdev, 0, vec![1; STRIPE as usize]);
        settle().await;
        // Present after the freeze: its data is not covered by the flush that runs.
        let second = start_write(&bdev, STRIPE, vec![2; STRIPE as usize]);
        settle().await;
        assert_eq!(bdev.status().stripes_present, 3);
        let held_header = base.hold(Access::Write, 0..DATA);
        held.set(());
        settle().await;
        let held = base.hold(Access::Flush, 0..1);
        held_header.set(());
        settle().await;
        assert_eq!(headers(&base, 2), [1, 0], "INV-1: only what was frozen");
        assert!(!first.is_done(), "its header is not flushed");
        held.set(());
        first.wait().await.expect("write");
        second.wait().await.expect("write");
        let log = base.take_log();
        assert_eq!(kinds(&log), "DFDHFFHF", "{log:?}");
        assert!(log.iter().filter(|op| op.is_metadata()).all(|op| op.range == (0..4096)));
        assert_eq!(headers(&base, 2), [1, 1]);
    });
}

#[test]
fn a_write_is_acknowledged_only_when_its_header_is_durable() {
    run(async {
        let (base, bdev) = volume(options()).await;
        read(&bdev, 0, 512).await;
        settle().await;
        assert_eq!(bdev.status().stripes_present, 2);
        let held = base.hold(Access::Write, 0..DATA);
        let write = start_write(&bdev, 0, vec![1; 512]);
        settle().await;
        assert!(!write.is_done(), "written, but a process death would lose it");
        assert_eq!(read(&bdev, 0, 512).await, [1; 512], "reads never wait for rounds");
        held.set(());
        write.wait().await.expect("write");
        assert_eq!(headers(&base, 1), [1]);
    });
}

#[test]
fn writes_that_arrive_together_share_rounds() {
    run(async {
        let (base, bdev) = volume(options()).await;
        let held = base.hold(Access::Flush, 0..1);
        let writes: Vec<_> =
            (0..8).map(|stripe| start_write(&bdev, stripe * STRIPE, vec![1; STRIPE as usize])).collect();
        settle().await;
        held.set(());
        for write in &writes {
            write.wait().await.expect("write");
        }
        assert_eq!(kinds(&base.take_log()), "DDDDDDDDFHF");
    });
}

#[test]
fn flushes_that_arrive_together_share_one_and_those_of_a_running_round_get_the_next() {
    run(async {
        let (base, bdev) = volume(options()).await;
        write(&bdev, 0, &vec![1; STRIPE as usize]).await;
        base.take_log();
        let held = base.hold(Access::Flush, 0..1);
        let flush = || {
            let bdev = Arc::clone(&bdev);
            start(async move { bdev.flush().await })
        };
        let first = flush();
        settle().await;
        write(&bdev, 0, &[2; 512]).await;
        let later: Vec<_> = (0..10).map(|_| flush()).collect();
        settle().await;
        held.set(());
        first.wait().await.expect("flush");
        for flush in later {
            flush.wait().await.expect("flush");
        }
        assert_eq!(kinds(&base.take_log()), "FDF", "one for the first, one for all the others");
    });
}

#[test]
fn inv_5_a_flush_covers_every_write_acknowledged_before_it() {
    run(async {
        let (base, bdev) = volume(options()).await;
        write(&bdev, 0, &[1; 512]).await;
        write(&bdev, 512, &[2; 512]).await;
        bdev.flush().await.expect("flush");
        write(&bdev, 1024, &[3; 512]).await;
        for seed in 0..20 {
            let cut = base.after_power_cut(&mut Random::new(seed));
            let again = opened(&cut, &image(), options()).await;
            assert_eq!(read(&again, 0, 512).await, [1; 512]);
            assert_eq!(read(&again, 512, 512).await, [2; 512]);
            let third = read(&again, 1024, 512).await;
            assert!(third == [3; 512] || third == image().content[1024..1536]);
        }
    });
}

#[test]
fn an_acknowledged_write_outlives_the_process_without_a_flush() {
    run(async {
        let (base, bdev) = volume(options()).await;
        write(&bdev, 0, &[1; 512]).await;
        write(&bdev, 512, &[2; 512]).await;
        bdev.discard(STRIPE, STRIPE, false).await.expect("discard");
        bdev.write_zeroes(2 * STRIPE, 512, ZeroFlags::default()).await.expect("zero");
        let left = base.after_process_death(&mut Random::new(1));
        let again = opened(&left, &image(), options()).await;
        assert_eq!(read(&again, 0, 512).await, [1; 512]);
        assert_eq!(read(&again, 512, 512).await, [2; 512]);
        assert!(read(&again, STRIPE, STRIPE).await.iter().all(|&byte| byte == 0));
        assert_eq!(read(&again, 2 * STRIPE, 512).await, [0; 512]);
    });
}

#[test]
fn fua_is_durable_on_return_with_its_header() {
    run(async {
        let (base, bdev) = volume(options()).await;
        read(&bdev, 0, 512).await;
        settle().await;
        for (offset, byte) in [(0, 1), (STRIPE, 2), (512, 3)] {
            bdev.write(offset, data(&[byte; 512]), true).await.expect("write");
            for seed in 0..8 {
                let cut = base.after_power_cut(&mut Random::new(seed));
                let again = opened(&cut, &image(), options()).await;
                assert_eq!(read(&again, offset, 512).await, [byte; 512]);
            }
        }
        bdev.write_zeroes(2 * STRIPE, 512, ZeroFlags { fua: true, ..ZeroFlags::default() }).await.expect("zero");
        bdev.discard(3 * STRIPE, STRIPE, true).await.expect("discard");
        let again = opened(&base.after_power_cut(&mut Random::new(9)), &image(), options()).await;
        assert_eq!(read(&again, 2 * STRIPE, 512).await, [0; 512]);
        assert_eq!(read(&again, 3 * STRIPE, 512).await, [0; 512]);
    });
}

#[test]
fn fua_during_a_round_that_publishes_its_stripe_still_flushes_its_data() {
    run(async {
        let (base, bdev) = volume(options()).await;
        let held = base.hold(Access::Flush, 0..1);
        let first = start_write(&bdev, 0, vec![1; STRIPE as usize]);
        settle().await;
        let fua = {
            let bdev = Arc::clone(&bdev);
            start(async move { bdev.write(512, data(&[9; 512]), true).await })
        };
        settle().await;
        held.set(());
        first.wait().await.expect("write");
        fua.wait().await.expect("write");
        for seed in 0..8 {
            let again = opened(&base.after_power_cut(&mut Random::new(seed)), &image(), options()).await;
            assert_eq!(read(&again, 512, 512).await, [9; 512]);
        }
    });
}

#[test]
fn copied_stripes_are_published_five_seconds_after_the_oldest() {
    run(async {
        let (base, bdev) = volume(options()).await;
        read(&bdev, 0, 512).await;
        exec::sleep(Duration::from_secs(3)).await;
        read(&bdev, STRIPE, 512).await;
        exec::sleep(Duration::from_millis(1900)).await;
        assert_eq!(headers(&base, 2), [0; 2]);
        exec::sleep(Duration::from_millis(200)).await;
        assert_eq!(headers(&base, 2), [1, 1]);
        // The next one has five seconds of its own.
        exec::sleep(Duration::from_secs(60)).await;
        read(&bdev, 2 * STRIPE, 512).await;
        exec::sleep(Duration::from_millis(4900)).await;
        assert_eq!(bdev.status().stripes_published, 3);
        exec::sleep(Duration::from_millis(200)).await;
        assert_eq!(bdev.status().stripes_published, 4);
    });
}

#[test]
fn an_idle_volume_does_nothing() {
    run(async {
        let (base, bdev) = volume(options()).await;
        write(&bdev, 0, &[1; 512]).await;
        base.take_log();
        exec::sleep(Duration::from_secs(3600)).await;
        assert!(base.take_log().is_empty());
        drop(bdev);
        settle().await;
        assert_eq!(Arc::strong_count(&base), 1);
    });
}

#[test]
fn a_timer_does_not_keep_a_volume() {
    run(async {
        let (base, bdev) = volume(options()).await;
        read(&bdev, 0, 512).await;
        settle().await;
        bdev.close().await.expect("close");
        assert_eq!(headers(&base, 1), [1], "a close publishes at once");
        drop(bdev);
        settle().await;
        assert_eq!(Arc::strong_count(&base), 1);
        exec::sleep(Duration::from_secs(10)).await;
    });
}

#[test]
fn no_sync_waives_the_flush_and_nothing_else() {
    run(async {
        let (base, bdev) = volume(UbiOptions { no_sync: true, ..options() }).await;
        write(&bdev, 0, &[1; 512]).await;
        assert_eq!(kinds(&base.take_log()), "DDFHF", "the order and the acknowledgement stay");
        write(&bdev, 0, &[2; 512]).await;
        base.take_log();
        bdev.flush().await.expect("flush");
        assert!(base.take_log().is_empty());
        bdev.write(0, data(&[3; 512]), true).await.expect("FUA is no FLUSH");
        let again = opened(&base.after_power_cut(&mut Random::new(1)), &image(), options()).await;
        assert_eq!(read(&again, 0, 512).await, [3; 512]);
        read(&bdev, STRIPE, 512).await;
        bdev.close().await.expect("close");
        assert_eq!(headers(&base, 2), [1, 1], "a close publishes");
    });
}

#[test]
fn a_flush_publishes_what_was_copied() {
    run(async {
        let (base, bdev) = volume(options()).await;
        read(&bdev, 0, 512).await;
        settle().await;
        base.take_log();
        bdev.flush().await.expect("flush");
        assert_eq!(kinds(&base.take_log()), "FHF");
        bdev.flush().await.expect("flush");
        assert_eq!(kinds(&base.take_log()), "F");
    });
}

#[test]
fn a_round_writes_only_the_pages_that_changed() {
    run(async {
        let stripes = 5000; // 14 + 2 * 5000 bytes: three pages
        let (base, image) = (BigBase::new(stripes * STRIPE, vec![0; DATA as usize]), BigImage(stripes * STRIPE));
        let bdev = ubi_engine::bdev::ubi::open(base.clone(), Arc::new(image), options()).await.expect("opens");
        bdev.discard(3 * STRIPE, STRIPE, false).await.expect("discard");
        base.take_metadata_writes();
        for stripe in [4999, 0, 2042, 1, 2041] {
            bdev.prefetch(stripe * STRIPE, 512).await.expect("prefetch");
        }
        bdev.flush().await.expect("flush");
        assert_eq!(base.take_metadata_writes(), [0..12288], "neighbours in one write");
        bdev.discard(4998 * STRIPE, STRIPE, false).await.expect("discard");
        bdev.discard(2 * STRIPE, STRIPE, false).await.expect("discard");
        assert_eq!(base.take_metadata_writes(), [8192..12288, 0..4096]);
        let headers = &base.area()[14..14 + 2 * stripes as usize];
        let set: Vec<_> = (0..stripes).filter(|&stripe| headers[2 * stripe as usize] == 1).collect();
        assert_eq!(set, [0, 1, 2, 3, 2041, 2042, 4998, 4999]);
    });
}
