//! Opening a volume: what a format leaves on the base byte for byte, what is opened again, what is refused and left alone.

mod ubi_support;

use std::sync::Arc;

use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::ubi::UbiOptions;
use ubi_engine::bdev::ubi::superblock::{Slot, Superblock, VolumeState};
use ubi_engine::bdev::ubi::uuid::Uuid;
use ubi_engine::error::ErrorKind;
use ubi_support::*;

const IDENTITY_64K: [u8; 14] = [0x42, 0x44, 0x45, 0x56, 0x5f, 0x55, 0x42, 0x49, 0x00, 0, 0, 1, 0, 0x40];

/// A base that holds a volume of 64 KiB stripes whose first headers are `headers`, and data of 0x77.
fn volume(block_size: u32, volume_bytes: u64, headers: &[u8]) -> Vec<u8> {
    let mut content = vec![0; DATA as usize];
    content[..14].copy_from_slice(&IDENTITY_64K);
    content[14..14 + headers.len()].copy_from_slice(headers);
    content.resize((DATA + volume_bytes) as usize, 0x77);
    assert_eq!(content.len() % block_size as usize, 0);
    content
}

#[test]
fn a_format_writes_the_identity_zero_headers_and_zeros_past_the_image() {
    for block_size in [512, 4096] {
        run(async move {
            let image = MemImage::new(pattern(1, 3 * 64 * KIB + 700));
            let volume_bytes = 384 * KIB;
            let mut dirty = vec![POISON; (DATA + volume_bytes) as usize];
            dirty[..9].fill(0); // only the magic counts
            let base = MemBase::with_content(block_size, dirty.clone());
            let bdev = opened(&base, &image, options()).await;
            assert_eq!(bdev.info().num_blocks.get(), volume_bytes / u64::from(block_size));
            assert_eq!(bdev.info().block_size, block_size);
            let content = base.content();
            assert_eq!(content[..14], IDENTITY_64K);
            assert!(headers(&base, 2041).iter().all(|&byte| byte == 0), "headers of the used page");
            let is_slot =
                |at: usize| [0x60_0000..0x60_1000, 0x70_0000..0x70_1000].iter().any(|slot| slot.contains(&at));
            let mut rest = (4096..DATA as usize).filter(|&at| !is_slot(at));
            assert!(rest.all(|at| content[at] == dirty[at]), "the rest of the area is not touched");
            for slot in [0x60_0000, 0x70_0000] {
                let Slot::Valid(superblock) = Superblock::decode(&content[slot..slot + 4096]) else { panic!("a slot") };
                assert_eq!((superblock.state, superblock.epoch), (VolumeState::Clean, 0));
                assert_eq!(superblock.uuid, options().uuid.expect("given"));
            }
            let image_end = 3 * 64 * KIB + 1024;
            let tail = (DATA + image_end) as usize;
            assert!(content[tail..].iter().all(|&byte| byte == 0), "past the image end");
            let log = base.take_log();
            let magic = log.iter().rposition(|op| op.access == Access::Write && op.range == (0..u64::from(block_size)));
            let magic = magic.expect("the magic is written in one sector");
            assert!(log[magic - 1].access == Access::Flush && log[magic + 2].access == Access::Flush);
            assert_eq!(log.iter().filter(|op| op.access == Access::Flush).count(), 2, "as few as the order needs");
            let later = log[magic..].iter().filter(|op| op.range.end > 0 && op.range.start < 0x60_0000);
            assert_eq!(later.count(), 1, "nothing but superblocks comes after it");
        });
    }
}

#[test]
fn a_format_cut_short_is_done_again() {
    let steps = [(Access::Zero, 0), (Access::Write, 0), (Access::Flush, 0), (Access::Write, 1), (Access::Flush, 1)];
    for (access, after) in steps {
        run(async move {
            let image = MemImage::new(pattern(2, 100 * KIB));
            let base = MemBase::new(512, 256 * KIB);
            base.fail(access, 0..u64::MAX, after, libc::EIO, 1);
            let error = open(&base, &image, options()).await.err();
            assert_eq!(error.expect("INV-7: an error is reported").errno(), libc::EIO, "{access:?} {after}");
            for seed in 0..8 {
                let after_cut = base.after_power_cut(&mut Random::new(seed));
                let bdev = opened(&after_cut, &image, options()).await;
                assert_eq!(read(&bdev, 0, 100 * KIB).await, image.content);
                assert!(read(&bdev, 100 * KIB, 156 * KIB).await.iter().all(|&byte| byte == 0));
            }
        });
    }
}

#[test]
fn a_wipe_cut_short_can_be_done_again() {
    for after in 0..5 {
        run(async move {
            let image = MemImage::new(pattern(2, 100 * KIB));
            let base = MemBase::new(512, 256 * KIB);
            let old = opened(&base, &image, options()).await;
            write(&old, 0, &[7; 512]).await;
            old.close().await.expect("closed");
            let mut content = base.content();
            content[..512].fill(0);
            let base = MemBase::with_content(512, content);
            let wiping = UbiOptions { wipe: true, uuid: Some(Uuid([9; 16])), ..options() };
            base.fail(Access::Flush, 0..u64::MAX, after, libc::EIO, 1);
            let _ = open(&base, &image, wiping.clone()).await;
            for seed in 0..16 {
                let after_cut = base.after_power_cut(&mut Random::new(seed));
                let is_zeroed = after_cut.content()[..9] == [0; 9];
                let bdev = opened(&after_cut, &image, UbiOptions { wipe: is_zeroed, ..wiping.clone() }).await;
                assert_eq!(read(&bdev, 0, 100 * KIB).await, image.content, "nothing of the earlier volume");
            }
        });
    }
}

#[test]
fn a_volume_of_bdev_ubi_is_adopted_and_read_by_its_headers() {
    run(async {
        let image = MemImage::new(vec![0x11; 4 * 64 * 1024]);
        let content = volume(512, 512 * KIB, &[1, 0, 0, 0, 1, 0]);
        let base = MemBase::with_content(512, content.clone());
        let bdev = opened(&base, &image, options()).await;
        assert!(base.take_log().iter().all(|op| !op.is_data()), "adopted: only metadata is written");
        assert_eq!(base.bytes(0..14), IDENTITY_64K, "bdev_ubi may still have it");
        let status = bdev.status();
        assert_eq!((status.stripes_total, status.stripes_present, status.stripes_published), (4, 2, 2));
        for (stripe, byte) in [(0, 0x77), (1, 0x11), (2, 0x77), (3, 0x11), (4, 0x77)] {
            assert_eq!(read(&bdev, stripe * 64 * KIB + 512, 512).await, [byte; 512], "stripe {stripe}");
        }
    });
}

/// A process dies between a header's write and its flush: the next one reads it from the page cache and must not take
/// it for durable, else a FUA write that it acknowledges is gone after a power cut, with its header.
#[test]
fn a_header_that_is_only_in_the_page_cache_is_made_durable_before_it_is_trusted() {
    run(async {
        let image = MemImage::new(vec![0x11; 4 * 64 * 1024]);
        let base = MemBase::new(512, 512 * KIB);
        let bdev = opened(&base, &image, options()).await;
        mark_open(&bdev, 3).await;
        base.hold(Access::Write, 0..4096);
        let first = start_write(&bdev, 0, vec![0x22; 64 << 10]);
        settle().await;
        assert!(!first.is_done(), "not acknowledged: its header is on the way");
        let mut deaths = (0..64).map(|seed| base.after_process_death(&mut Random::new(seed)));
        let base = deaths.find(|base| base.bytes(14..15) == [1]).expect("the header has landed in one of them");
        opened(&base, &image, options()).await;
        for seed in 0..32 {
            assert_eq!(base.after_power_cut(&mut Random::new(seed)).bytes(14..15), [1], "seed {seed}");
        }
    });
}

#[test]
fn headers_on_many_pages_are_kept_with_the_padding_behind_them() {
    run(async {
        // 2,097,152 stripes: the last seven headers share their page with the padding.
        let stripes = 2_097_152;
        let mut area = vec![0; DATA as usize];
        area[..14].copy_from_slice(&IDENTITY_64K);
        area[14 + 2 * 2_097_151] = 1;
        area[14 + 2 * 2_097_000] = 1;
        area[4_194_318..].fill(0xaa);
        let base = BigBase::new(stripes * 64 * KIB, area.clone());
        let image = Arc::new(BigImage(stripes * 64 * KIB));
        let bdev = ubi_engine::bdev::ubi::open(base.clone(), image, options()).await.expect("opens");
        assert_eq!(bdev.status().stripes_published, 2);
        let last = (stripes - 2) * 64 * KIB;
        bdev.write(last, data(&vec![5; 64 << 10]), false).await.expect("write");
        area[14 + 2 * 2_097_150] = 1;
        let found = base.area();
        let is_ours = |at: usize| {
            at < 4_194_320 || [0x60_0000..0x60_1000, 0x70_0000..0x70_1000].iter().any(|slot| slot.contains(&at))
        };
        assert!((0..DATA as usize).all(|at| is_ours(at) || found[at] == area[at]), "the padding is kept");
        assert!((0..2_097_152).all(|stripe| found[14 + 2 * stripe] == area[14 + 2 * stripe]), "one header changed");
        assert_eq!(bdev.status().metadata_bytes_written, 4096);
    });
}

#[test]
fn inv_6_what_is_not_known_is_refused_by_name_and_left_alone() {
    let patched = |at: usize, bytes: &[u8]| {
        let mut content = volume(512, 512 * KIB, &[1, 0]);
        content[at..at + bytes.len()].copy_from_slice(bytes);
        content
    };
    let qcow2 = {
        let mut content = vec![0; (DATA + 512 * KIB) as usize];
        content[..4].copy_from_slice(b"QFI\xfb");
        content
    };
    let cases: Vec<(&str, Vec<u8>, ErrorKind)> = vec![
        ("qcow2", qcow2, ErrorKind::InvalidParams),
        ("zero its first 8 MiB", patched(8, &[1]), ErrorKind::InvalidParams),
        ("bdev_ubi 0.1 release (stripes of 1 MiB", patched(13, &[1]), ErrorKind::InvalidParams),
        ("stripes of 128 KiB, not 64", patched(13, &[0x80]), ErrorKind::InvalidParams),
        ("256, 512 or 1024 KiB, not 64", patched(13, &[0]), ErrorKind::InvalidParams),
        ("byte 13 is 0x20", patched(13, &[0x20]), ErrorKind::Corrupt),
        ("ubiblk", patched(9, &[2, 0, 0, 0]), ErrorKind::InvalidParams),
        ("ubiblk", patched(11, &[0]), ErrorKind::InvalidParams),
        ("version 0.2", patched(11, &[2]), ErrorKind::Corrupt),
        ("version 0.3", patched(11, &[3]), ErrorKind::InvalidParams),
        ("stripe 1 is 0x02", patched(16, &[2]), ErrorKind::Corrupt),
        ("sectors with checks (0)", patched(21, &[1]), ErrorKind::Corrupt),
        ("stripe 4 is set, past the end of the image", patched(22, &[1]), ErrorKind::Corrupt),
        ("stripe 2040 is set, past the end of the image", patched(4094, &[1]), ErrorKind::Corrupt),
    ];
    for (what, content, kind) in cases {
        run(async move {
            let image = MemImage::new(vec![0x11; 4 * 64 * 1024]);
            let base = MemBase::with_content(512, content.clone());
            let error = open(&base, &image, options()).await.err().unwrap_or_else(|| panic!("{what}: opened"));
            assert!(error.message().contains(what) && error.message().contains("base0"), "{what}: {error}");
            assert_eq!((error.kind(), error.errno()), (kind, libc::EINVAL));
            assert!(base.content() == content, "{what}: nothing is written");
            assert!(base.take_log().iter().all(|op| op.access == Access::Read), "{what}: only read");
        });
    }
}

#[test]
fn headers_beyond_the_used_pages_are_not_looked_at() {
    run(async {
        let image = MemImage::new(vec![0x11; 64 << 10]);
        let mut content = volume(512, 512 * KIB, &[]);
        content[4096..0x60_0000].fill(0xee);
        let base = MemBase::with_content(512, content.clone());
        let bdev = opened(&base, &image, options()).await;
        write(&bdev, 0, &[3; 512]).await;
        bdev.close().await.expect("close");
        assert!(base.content()[4096..0x60_0000] == content[4096..0x60_0000]);
    });
}

#[test]
fn sizes_that_do_not_fit_are_refused_and_nothing_is_written() {
    run(async {
        let image = MemImage::new(vec![0x11; 64 << 10]);
        let refused = async |base: Arc<MemBase>, stripe_size_kb| {
            let before = base.content();
            let error = open(
                &base,
                &image,
                ubi_engine::bdev::ubi::UbiOptions { stripe_size_kb: Some(stripe_size_kb), ..options() },
            )
            .await;
            let error = error.err().expect("refused");
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(base.content() == before && base.take_log().is_empty());
            error.message().to_owned()
        };
        assert!(refused(MemBase::new(512, 64 * KIB - 512), 64).await.contains("8454144"));
        assert!(refused(MemBase::new(512, MIB), 96).await.contains("96"));
        assert!(refused(MemBase::new(512, MIB), 2048).await.contains("2048"));
        let read_only = MemBase::made(512, vec![0; 9 << 20], |info| info.readonly = true);
        assert!(refused(read_only, 64).await.contains("read-only"));
        opened(&MemBase::new(512, 64 * KIB), &image, options()).await;
    });
}

#[test]
fn an_empty_image_is_a_volume_without_stripes() {
    run(async {
        let image = MemImage::new(Vec::new());
        let base = MemBase::new(512, 128 * KIB);
        let bdev = opened(&base, &image, options()).await;
        assert_eq!(bdev.status().stripes_total, 0);
        assert!(read(&bdev, 0, 128 * KIB).await.iter().all(|&byte| byte == 0), "the base's old bytes are gone");
        write(&bdev, 512, &[9; 512]).await;
        bdev.flush().await.expect("flush");
        bdev.close().await.expect("close");
        let again = opened(&base, &image, options()).await;
        assert_eq!(read(&again, 512, 512).await, [9; 512]);
    });
}

#[test]
fn every_stripe_size_is_written_and_opened_again() {
    for (kb, byte) in [(64, 0x40), (128, 0x80), (256, 0), (512, 0), (1024, 0)] {
        run(async move {
            let image = MemImage::new(pattern(3, 1500 * KIB));
            let base = MemBase::new(4096, 2 * MIB);
            let options = ubi_engine::bdev::ubi::UbiOptions { stripe_size_kb: Some(kb), ..options() };
            let bdev = opened(&base, &image, options.clone()).await;
            assert_eq!(base.bytes(13..14), [byte]);
            write(&bdev, 1024 * KIB, &[7; 4096]).await;
            bdev.close().await.expect("close");
            let stripe = 1024 / u64::from(kb);
            assert_eq!(base.bytes(14 + 2 * stripe..15 + 2 * stripe), [1]);
            let again = opened(&base, &image, options).await;
            assert_eq!(again.status().stripes_published, 1);
            assert_eq!(read(&again, 1024 * KIB, 4096).await, [7; 4096]);
            assert_eq!(read(&again, 1028 * KIB, 4096).await, image.content[1028 << 10..1032 << 10]);
        });
    }
}
