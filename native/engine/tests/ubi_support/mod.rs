//! What the tests of the ubi overlay stand on: virtual time, a base and an image in memory that can be held up, made
//! to fail and cut off from their power, and random numbers that print their seed.
#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod base;
mod big;
mod image;
mod pages;
mod random;
mod time;

use std::sync::Arc;

use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::ubi::examine::Request;
use ubi_engine::bdev::ubi::host::NoMaps;
use ubi_engine::bdev::ubi::repair::{self, Choice};
use ubi_engine::bdev::ubi::uuid::Uuid;
use ubi_engine::bdev::ubi::{self, UbiBdev, UbiOptions};
use ubi_engine::error::Result;
use ubi_engine::sys::buf::{IoBuf, IoData};

pub use base::{Access, MemBase, Op};
pub use big::{BigBase, BigImage};
pub use image::MemImage;
pub use random::Random;
pub use time::{run, run_with_threads};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Where the volume's first byte is on the base.
pub const DATA: u64 = 8 * MIB;
/// What a base holds before it is formatted: must never be read.
pub const POISON: u8 = 0xdd;

/// Options with stripes of 64 KiB and everything else as by default.
pub fn options() -> UbiOptions {
    let host = Arc::new(NoMaps { boot_id: Some(Uuid([0xb0; 16])) });
    UbiOptions { stripe_size_kb: Some(64), uuid: Some(Uuid([0x5a; 16])), ..UbiOptions::new("ubi0", host) }
}

/// Open or format a volume.
pub async fn open(base: &Arc<MemBase>, image: &Arc<MemImage>, options: UbiOptions) -> Result<Arc<UbiBdev>> {
    let (base, image) = (Arc::clone(base), Arc::clone(image));
    ubi::open(base, image, options).await
}

/// The same, which must succeed.
pub async fn opened(base: &Arc<MemBase>, image: &Arc<MemImage>, options: UbiOptions) -> Arc<UbiBdev> {
    open(base, image, options).await.expect("the volume opens")
}

/// The same, after a repair that drops what is in doubt where a flush of the base had failed.
pub async fn opened_or_repaired(base: &Arc<MemBase>, image: &Arc<MemImage>, options: UbiOptions) -> Arc<UbiBdev> {
    let error = match open(base, image, options.clone()).await {
        Ok(volume) => return volume,
        Err(error) => error,
    };
    assert!(error.message().contains("failed to flush"), "only that is repaired here: {error}");
    let request = Request { base: "base0".into(), boot_id: options.host.boot_id(), ..Request::default() };
    let plan = repair::plan(&**base, &*options.host, &request, Choice::Drop).await.expect("a plan");
    repair::apply(&**base, &*options.host, &request, Choice::Drop, plan.token).await.expect("a repair");
    opened(base, image, options).await
}

/// Byte 0 of the first headers on the base.
pub fn headers(base: &MemBase, count: u64) -> Vec<u8> {
    base.bytes(14..14 + 2 * count).into_iter().step_by(2).collect()
}

/// Bring a volume to where it is while guests write: marked open, its fifth stripe on the base.
pub async fn mark_open(volume: &Arc<UbiBdev>, stripe: u64) {
    volume.prefetch(stripe * 64 * KIB, 512).await.expect("prefetch");
    volume.flush().await.expect("flush");
}

pub fn data(bytes: &[u8]) -> IoData {
    IoData::new(IoBuf::from_slice(bytes))
}

/// `len` bytes that differ from place to place and from seed to seed; none is zero or POISON.
pub fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| (random.below(0xdc) + 1) as u8).collect()
}

pub async fn read(volume: &Arc<UbiBdev>, offset: u64, len: u64) -> Vec<u8> {
    volume.read(offset, len as usize).await.expect("read").to_vec()
}

pub async fn write(volume: &Arc<UbiBdev>, offset: u64, bytes: &[u8]) {
    volume.write(offset, data(bytes), false).await.expect("write");
}

/// Start a request of its own; its value comes through the promise.
pub fn start<T: Clone + 'static>(future: impl Future<Output = T> + 'static) -> Started<T> {
    let promise = ubi_engine::reactor::sync::Promise::new();
    let answer = Arc::clone(&promise);
    ubi_engine::reactor::exec::spawn(async move { answer.set(future.await) });
    Started(promise)
}

/// A request in progress.
pub struct Started<T>(Arc<ubi_engine::reactor::sync::Promise<T>>);

impl<T: Clone> Started<T> {
    pub fn is_done(&self) -> bool {
        self.0.get().is_some()
    }

    pub async fn wait(&self) -> T {
        self.0.wait().await
    }
}

/// Start a write on a volume.
pub fn start_write(volume: &Arc<UbiBdev>, offset: u64, bytes: Vec<u8>) -> Started<Result<()>> {
    let volume = Arc::clone(volume);
    start(async move { volume.write(offset, data(&bytes), false).await })
}

/// Start a read on a volume.
pub fn start_read(volume: &Arc<UbiBdev>, offset: u64, len: u64) -> Started<Result<Vec<u8>>> {
    let volume = Arc::clone(volume);
    start(async move { volume.read(offset, len as usize).await.map(|buf| buf.to_vec()) })
}

/// Let everything that can go on go on, for one virtual millisecond.
pub async fn settle() {
    ubi_engine::reactor::exec::sleep(std::time::Duration::from_millis(1)).await;
}
