//! What tests of NBD connections stand on: a daemon's listener with bdevs of every kind, and a client that is written
//! from the protocol and speaks all its dialects.
#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

pub mod client;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::aio::{AioBdev, AioOptions, Cache};
use ubi_engine::bdev::malloc::MallocBdev;
use ubi_engine::bdev::ubi::state_dir::StateDir;
use ubi_engine::bdev::ubi::{self, UbiOptions};
use ubi_engine::engine::{Engine, EngineOptions};
use ubi_engine::frontend::nbd::export::ExportOptions;
use ubi_engine::frontend::nbd::listener::{ListenOptions, NbdListener};
use ubi_engine::frontend::nbd::tls::TlsOptions;
use ubi_engine::image::file::FileImage;
use ubi_engine::reactor::IoEngine;

pub use client::{Client, Dialect, Replied, Wish};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Bytes of every bdev but the overlay's base.
pub const SIZE: u64 = 4 * MIB;
pub const STRIPE: u64 = 64 * KIB;
/// The overlay's image: data in the first half of its first, third, ... stripe, holes elsewhere.
pub const IMAGE_BYTES: u64 = 16 * STRIPE;

pub struct Server {
    pub dir: tempfile::TempDir,
    pub listener: NbdListener,
    engine: Engine,
}

impl Server {
    pub fn start(io_engine: IoEngine) -> Self {
        Self::with_reactors(io_engine, 2)
    }

    pub fn with_reactors(io_engine: IoEngine, reactors: usize) -> Self {
        let options =
            EngineOptions { cpus: Vec::new(), reactors, io_engine: Some(io_engine), memory_budget_bytes: 64 << 20 };
        let engine = Engine::start(&options).expect("engine");
        let dir = tempfile::tempdir().expect("tempdir");
        let listener = engine.listen_nbd_unix(&dir.path().join("s"), ListenOptions::default()).expect("listen");
        listener.open().expect("open");
        Self { dir, listener, engine }
    }

    /// Another listener, with TLS; it lets nobody in yet.
    pub fn listen(&self, path: &Path, tls: TlsOptions) -> NbdListener {
        self.engine
            .listen_nbd_unix(path, ListenOptions { tls: Some(tls), events: None, ..ListenOptions::default() })
            .expect("listen")
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn connect(&self, export: &str, wish: &Wish) -> Client {
        Client::connect(&self.path(), export, wish)
    }

    pub fn export(&self, name: &str, bdev: Arc<dyn Bdev>) {
        self.export_as(name, bdev, false);
    }

    pub fn export_as(&self, name: &str, bdev: Arc<dyn Bdev>, readonly: bool) {
        self.listener.add_export(ExportOptions { readonly, ..export_options(name, bdev) }).expect("export");
    }

    pub fn malloc(&self, block_size: u32) -> Arc<dyn Bdev> {
        Arc::new(MallocBdev::new("m", SIZE / u64::from(block_size), block_size).expect("malloc"))
    }

    /// A file of holes.
    pub fn aio(&self, name: &str, size_bytes: u64, block_size: u32, cache: Cache) -> Arc<dyn Bdev> {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("base");
        let options = AioOptions {
            name: name.into(),
            path,
            block_size: Some(block_size),
            readonly: false,
            cache,
            fallocate: true,
            lock_wait: Duration::ZERO,
        };
        Arc::new(AioBdev::open(&options).expect("aio"))
    }

    pub fn image_path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// An overlay of 4 MiB over the image, and the image itself as it has to read.
    pub fn ubi(&self, block_size: u32) -> (Arc<dyn Bdev>, Vec<u8>) {
        let mut content = vec![0; IMAGE_BYTES as usize];
        let image = std::fs::File::create(self.image_path()).expect("image");
        image.set_len(IMAGE_BYTES).expect("set_len");
        for stripe in (0..16).step_by(2) {
            let data: Vec<u8> = (0..STRIPE / 2).map(|byte| (byte % 251 + stripe + 1).min(255) as u8).collect();
            let at = stripe * STRIPE;
            content[at as usize..][..data.len()].copy_from_slice(&data);
            image.write_all_at(&data, at).expect("write");
        }
        let name = format!("base{block_size}");
        let base = self.aio(&name, 8 * MIB + SIZE, block_size, Cache::Writeback);
        let image = FileImage::open(&self.image_path(), false).expect("image");
        let host = Arc::new(StateDir::new(None));
        let options = UbiOptions { stripe_size_kb: Some(64), ..UbiOptions::new("ubi0", host) };
        let open = move || -> ubi_engine::bdev::LocalFuture<'static, _> { Box::pin(ubi::open(base, image, options)) };
        let volume = self.engine.handle().run(open).expect("the volume opens");
        content.resize(SIZE as usize, 0);
        (volume, content)
    }
}

/// Both engines, or those that UBI_TEST_IO_ENGINES names where the kernel refuses io_uring.
pub fn engines() -> Vec<IoEngine> {
    let named = std::env::var("UBI_TEST_IO_ENGINES").unwrap_or_else(|_| "io_uring threads".into());
    let all = [IoEngine::IoUring, IoEngine::Threads];
    let engines: Vec<IoEngine> =
        all.into_iter().filter(|engine| named.split(' ').any(|name| name == engine.as_str())).collect();
    assert!(!engines.is_empty(), "UBI_TEST_IO_ENGINES={named:?} names no engine");
    engines
}

/// An export without limits of its own.
pub fn export_options(name: &str, bdev: Arc<dyn Bdev>) -> ExportOptions {
    ExportOptions {
        name: name.to_owned(),
        bdev,
        readonly: false,
        default: false,
        max_connections: 0,
        max_handshakes_per_s: 0,
        description: String::new(),
    }
}

/// Run `test` with each engine.
pub fn on_every_engine(test: impl Fn(&Server)) {
    for io_engine in engines() {
        test(&Server::start(io_engine));
    }
}
