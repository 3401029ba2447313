//! The overlay with its real parts: image file, aio base, reactors; on both I/O engines and in every cache mode.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ubi_engine::bdev::aio::{AioBdev, AioOptions, Cache};
use ubi_engine::bdev::ubi::state_dir::StateDir;
use ubi_engine::bdev::ubi::{self, UbiBdev, UbiOptions};
use ubi_engine::bdev::{Bdev, LocalFuture, ZeroFlags};
use ubi_engine::engine::BdevHandle;
use ubi_engine::error::Result;
use ubi_engine::image::file::FileImage;
use ubi_engine::reactor::{Handle, IoEngine, Reactors};
use ubi_engine::sys::buf::{IoBuf, IoData};

const KIB: u64 = 1 << 10;
const IMAGE: u64 = 3 * 1024 * KIB + 700;
const VOLUME: u64 = 5 * 1024 * KIB;

/// Data, a hole of more than a stripe, data up to an odd end.
fn make_image(path: &Path) -> Vec<u8> {
    let mut content: Vec<u8> = (0..IMAGE).map(|index| (index * 31 + index / 4096) as u8 | 1).collect();
    let hole = 700 << 10..2500 << 10;
    content[hole.clone()].fill(0);
    let file = std::fs::File::create(path).expect("create");
    file.set_len(IMAGE).expect("set_len");
    file.write_all_at(&content[..hole.start], 0).expect("write");
    file.write_all_at(&content[hole.end..], hole.end as u64).expect("write");
    content
}

fn open_base(path: &Path, cache: Cache, block_size: u32) -> Arc<AioBdev> {
    let options = AioOptions {
        name: "aio0".into(),
        path: path.into(),
        block_size: Some(block_size),
        readonly: false,
        cache,
        fallocate: true,
        lock_wait: Duration::from_secs(5),
    };
    Arc::new(AioBdev::open(&options).expect("open the base"))
}

fn open_volume(handle: &Handle, base: &Arc<AioBdev>, image: &Path, copy_on_read: bool) -> Arc<UbiBdev> {
    let host = Arc::new(StateDir::new(image.parent()));
    let (base, directio) = (Arc::clone(base), !base.info().buffered);
    let image = FileImage::open(image, directio).expect("open the image");
    let options = UbiOptions {
        name: "ubi0".into(),
        stripe_size_kb: Some(256),
        copy_on_read,
        directio,
        ..UbiOptions::new("ubi0", host)
    };
    handle.run(move || Box::pin(async move { ubi::open(base, image, options).await })).expect("open the volume")
}

fn call<T: Send + 'static>(
    handle: &Handle,
    bdev: &Arc<UbiBdev>,
    request: impl for<'a> FnOnce(&'a UbiBdev) -> LocalFuture<'a, Result<T>> + Send + 'static,
) -> T {
    let bdev = Arc::clone(bdev);
    handle.run(move || Box::pin(async move { request(&bdev).await })).expect("the request succeeds")
}

fn read_all(handle: &Handle, bdev: &Arc<UbiBdev>) -> Vec<u8> {
    call(handle, bdev, |bdev| Box::pin(async { Ok(bdev.read(0, VOLUME as usize).await?.to_vec()) }))
}

fn write(handle: &Handle, bdev: &Arc<UbiBdev>, model: &mut [u8], offset: u64, byte: u8, len: usize) {
    model[offset as usize..offset as usize + len].fill(byte);
    call(handle, bdev, move |bdev| {
        let data = IoData::new(IoBuf::from_slice(&vec![byte; len]));
        Box::pin(async move { bdev.write(offset, data, false).await })
    });
}

fn whole_life(io_engine: IoEngine, cache: Cache, block_size: u32, copy_on_read: bool) {
    let what = format!("{io_engine:?} {cache:?} {block_size} copy_on_read {copy_on_read}");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (image, base_path) = (dir.path().join("image.raw"), dir.path().join("base.raw"));
    let mut model = make_image(&image);
    model.resize(VOLUME as usize, 0);
    std::fs::File::create(&base_path).expect("create").set_len((8 << 20) + VOLUME).expect("set_len");
    let reactors = Reactors::start(&[], 2, io_engine).expect("reactors");
    let handle = reactors.next();

    let base = open_base(&base_path, cache, block_size);
    let bdev = open_volume(&handle, &base, &image, copy_on_read);
    assert!(read_all(&handle, &bdev) == model, "{what}: fresh");
    write(&handle, &bdev, &mut model, 8192, 0xa1, 4096);
    write(&reactors.next(), &bdev, &mut model, 1024 * KIB, 0xa2, 300 << 10);
    write(&reactors.next(), &bdev, &mut model, 3 * 1024 * KIB + 8192, 0xa3, 4096);
    write(&handle, &bdev, &mut model, VOLUME - 4096, 0xa4, 4096);
    model[512 << 10..1024 << 10].fill(0);
    call(&handle, &bdev, |bdev| Box::pin(bdev.write_zeroes(512 * KIB, 512 * KIB, ZeroFlags::default())));
    model[2048 << 10..2304 << 10].fill(0);
    call(&handle, &bdev, |bdev| Box::pin(bdev.discard(2048 * KIB, 256 * KIB, false)));
    call(&handle, &bdev, |bdev| Box::pin(bdev.prefetch(0, 512 * KIB)));
    call(&handle, &bdev, |bdev| Box::pin(bdev.flush()));
    for _ in 0..2 {
        assert!(read_all(&reactors.next(), &bdev) == model, "{what}: changed");
    }
    let status = bdev.status();
    assert!(status.stripes_present >= 6 && status.last_error.is_empty(), "{what}: {status:?}");

    BdevHandle::new(bdev).close(&handle).expect("close");
    BdevHandle::new(base).close(&handle).expect("nothing keeps the base");
    let base = open_base(&base_path, cache, block_size);
    let bdev = open_volume(&handle, &base, &image, copy_on_read);
    assert_eq!(bdev.status().stripes_published, status.stripes_present, "{what}: published by the close");
    assert!(read_all(&handle, &bdev) == model, "{what}: after a reopen");
    BdevHandle::new(bdev).close(&handle).expect("close");
}

#[test]
fn a_volume_lives_the_same_life_on_both_engines_in_every_mode() {
    for io_engine in [IoEngine::IoUring, IoEngine::Threads] {
        for (cache, block_size) in [(Cache::None, 4096), (Cache::Writeback, 512), (Cache::Writeback, 4096)] {
            for copy_on_read in [true, false] {
                whole_life(io_engine, cache, block_size, copy_on_read);
            }
        }
    }
}

#[test]
fn two_volumes_on_one_image_read_it_together() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let image = dir.path().join("image.raw");
    let mut model = make_image(&image);
    model.resize(VOLUME as usize, 0);
    let reactors = Reactors::start(&[], 2, IoEngine::Threads).expect("reactors");
    let volumes: Vec<_> = (0..4)
        .map(|number| {
            let path = dir.path().join(format!("base{number}.raw"));
            std::fs::File::create(&path).expect("create").set_len((8 << 20) + VOLUME).expect("set_len");
            let handle = reactors.next();
            let bdev = open_volume(&handle, &open_base(&path, Cache::Writeback, 512), &image, true);
            (handle, bdev)
        })
        .collect();
    std::thread::scope(|scope| {
        for (handle, bdev) in &volumes {
            let model = &model;
            scope.spawn(move || {
                for _ in 0..3 {
                    assert!(read_all(handle, bdev) == *model);
                }
            });
        }
    });
    for (handle, bdev) in volumes {
        BdevHandle::new(bdev).close(&handle).expect("close");
    }
}

#[test]
fn an_image_truncated_under_a_volume_fails_what_it_does_not_have() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (image, base_path) = (dir.path().join("image.raw"), dir.path().join("base.raw"));
    let model = make_image(&image);
    std::fs::File::create(&base_path).expect("create").set_len((8 << 20) + VOLUME).expect("set_len");
    let reactors = Reactors::start(&[], 1, IoEngine::detect()).expect("reactors");
    let handle = reactors.next();
    let base = open_base(&base_path, Cache::Writeback, 512);
    let bdev = open_volume(&handle, &base, &image, true);
    call(&handle, &bdev, |bdev| Box::pin(bdev.prefetch(0, 256 * KIB)));
    let file = std::fs::OpenOptions::new().write(true).open(&image).expect("open");
    file.set_len(1 << 20).expect("truncate");
    let first = call(&handle, &bdev, |bdev| Box::pin(async { Ok(bdev.read(0, 4096).await?.to_vec()) }));
    assert_eq!(first, model[..4096]);
    let asked = Arc::clone(&bdev);
    let failed = handle.run(move || Box::pin(async move { asked.read(3 << 20, 512).await.map(|buf| buf.to_vec()) }));
    let error = failed.expect_err("the image is gone");
    assert!(error.message().contains("its size was"), "{error}");
    BdevHandle::new(bdev).close(&handle).expect("close");
}
