//! A volume whose process has died, opened again on the same boot: guests wait for that, so it waits for no disk.

mod ubi_support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ubi_engine::bdev::aio::{AioBdev, AioOptions, Cache};
use ubi_engine::bdev::ubi::state_dir::StateDir;
use ubi_engine::bdev::ubi::{self, UbiBdev, UbiOptions};
use ubi_engine::bdev::{Bdev, IoStat};
use ubi_engine::image::file::FileImage;
use ubi_engine::reactor::exec::{self, block_on};
use ubi_engine::sys::buf::{IoBuf, IoData};

const STRIPE: u64 = 64 << 10;
const STRIPES: u64 = 8;
const METADATA: u64 = 8 << 20;
const MARKING_DURABLE_AT: u64 = 93;
const MAP_HEADER: u64 = 4096;

fn base(folder: &Path) -> Arc<AioBdev> {
    let options = AioOptions {
        name: "base".into(),
        path: folder.join("base"),
        block_size: Some(512),
        readonly: false,
        cache: Cache::Writeback,
        fallocate: true,
        lock_wait: Duration::ZERO,
    };
    Arc::new(AioBdev::open(&options).expect("base"))
}

async fn volume(folder: &Path, base: &Arc<AioBdev>) -> Arc<UbiBdev> {
    let image = FileImage::open(&folder.join("image"), false).expect("image");
    let host = Arc::new(StateDir::new(Some(&folder.join("state"))));
    let options = UbiOptions { stripe_size_kb: Some(64), ..UbiOptions::new("volume", host) };
    ubi::open(Arc::clone(base) as Arc<dyn Bdev>, image, options).await.expect("volume")
}

fn flushes(stat: &IoStat) -> u64 {
    stat.totals().flushes
}

fn data(byte: u8) -> IoData {
    IoData::new(IoBuf::from_slice(&vec![byte; STRIPE as usize]))
}

/// The header bytes on the base.
fn headers(folder: &Path) -> Vec<u8> {
    let area = std::fs::read(folder.join("base")).expect("base");
    (0..STRIPES as usize).map(|stripe| area[14 + 2 * stripe]).collect()
}

/// The one volatile map.
fn map(folder: &Path) -> std::fs::File {
    let mut found = std::fs::read_dir(folder.join("state")).expect("state");
    let path = found.next().expect("a map").expect("entry").path();
    assert!(found.next().is_none(), "one map");
    std::fs::File::options().read(true).write(true).open(path).expect("map")
}

fn map_byte(folder: &Path, at: u64) -> u8 {
    let mut byte = [0];
    map(folder).read_exact_at(&mut byte, at).expect("a byte of the map");
    byte[0]
}

fn set_map_byte(folder: &Path, at: u64, byte: u8) {
    map(folder).write_all_at(&[byte], at).expect("a byte of the map");
}

fn is_marking_durable(folder: &Path) -> bool {
    map_byte(folder, MARKING_DURABLE_AT) == 1
}

/// An image, a base, a place for maps, and a process that has died: stripe 0 is published, stripe 1 is only in the map.
async fn left_by_the_dead(folder: &Path) -> Arc<AioBdev> {
    std::fs::write(folder.join("image"), vec![0x11; (STRIPES * STRIPE) as usize]).expect("image");
    let file = std::fs::File::create(folder.join("base")).expect("base");
    file.set_len(METADATA + STRIPES * STRIPE).expect("length");
    std::fs::create_dir(folder.join("state")).expect("state");
    let base = base(folder);
    let dying = volume(folder, &base).await;
    dying.write(0, data(0x22), false).await.expect("write");
    dying.flush().await.expect("round");
    dying.write(STRIPE, data(0x33), false).await.expect("write");
    assert_eq!(headers(folder)[..3], [1, 0, 0]);
    drop(dying); // as a dead process leaves it: nothing is closed
    base
}

/// Run `test` with the folder and the base that a dead process has left.
fn after_a_death(test: impl AsyncFnOnce(PathBuf, Arc<AioBdev>) + 'static) {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().to_owned();
    block_on(async move {
        let base = left_by_the_dead(&path).await;
        test(path, base).await;
    });
}

async fn check_content(volume: &UbiBdev) {
    let status = volume.status();
    assert_eq!((status.recovered, status.stripes_published), ("map", 1));
    for (stripe, byte) in [(0, 0x22), (1, 0x33), (2, 0x11)] {
        let found = volume.read(stripe * STRIPE, 512).await.expect("read");
        assert!(found.iter().all(|&one| one == byte), "stripe {stripe}");
    }
}

#[test]
fn a_takeover_flushes_nothing_and_its_first_round_publishes_what_is_not_known_to_be_durable() {
    after_a_death(async |path, base| {
        assert!(is_marking_durable(&path));
        let before = flushes(base.iostat());
        let next = volume(&path, &base).await;
        assert_eq!(flushes(base.iostat()), before, "nobody waits for the disk");
        check_content(&next).await;
        next.flush().await.expect("round");
        assert_eq!(headers(&path)[..2], [1, 1]);
        next.close().await.expect("close");
    });
}

#[test]
fn a_takeover_of_a_marking_that_is_not_known_to_be_durable_flushes_once() {
    after_a_death(async |path, base| {
        set_map_byte(&path, MARKING_DURABLE_AT, 0);
        let before = flushes(base.iostat());
        let next = volume(&path, &base).await;
        assert_eq!(flushes(base.iostat()), before + 1, "the marking is flushed before it counts");
        assert!(is_marking_durable(&path), "for whoever is next");
        check_content(&next).await;
        next.close().await.expect("close");
    });
}

#[test]
fn a_takeover_tells_the_map_of_found_headers_once_they_are_flushed() {
    after_a_death(async |path, base| {
        let says = |stripe| map_byte(&path, MAP_HEADER + stripe);
        // As where the process died after it had written the header, and before the flush behind it.
        set_map_byte(&path, MAP_HEADER, 1);
        let next = volume(&path, &base).await;
        assert_eq!((says(0), says(1)), (1, 1), "on the base, and no more is known");
        next.flush().await.expect("round");
        assert_eq!((says(0), says(1)), (2, 2), "durable");
        next.close().await.expect("close");
    });
}

#[test]
fn found_headers_are_flushed_after_five_seconds_although_nobody_asks() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().to_owned();
    ubi_support::run_with_threads(async move {
        let base = left_by_the_dead(&path).await;
        // The process died before the flush behind the header of stripe 0, and nothing else is left to publish.
        set_map_byte(&path, MAP_HEADER, 1);
        set_map_byte(&path, MAP_HEADER + 1, 0);
        let next = volume(&path, &base).await;
        let before = flushes(base.iostat());
        exec::sleep(Duration::from_millis(4_900)).await;
        assert_eq!((flushes(base.iostat()), map_byte(&path, MAP_HEADER)), (before, 1), "not yet");
        exec::sleep(Duration::from_millis(200)).await;
        assert_eq!((flushes(base.iostat()), map_byte(&path, MAP_HEADER)), (before + 1, 2), "durable, by one flush");
        exec::sleep(Duration::from_secs(60)).await;
        assert_eq!(flushes(base.iostat()), before + 1, "and no more of them");
        next.close().await.expect("close");
    });
}
