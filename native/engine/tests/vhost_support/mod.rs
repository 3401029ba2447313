//! What tests of vhost-user stand on: controllers of a daemon's engine, and a machine whose frontend, rings and memory
//! are of other hands: the crates `vhost`, `virtio-queue` and `vm-memory`.
#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod driver;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::malloc::MallocBdev;
use ubi_engine::engine::{Engine, EngineOptions};
use ubi_engine::events::Events;
use ubi_engine::frontend::socket_node::SocketAccess;
use ubi_engine::frontend::vhost_user::controller::{ControllerOptions, VhostController};
use ubi_engine::reactor::IoEngine;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub use driver::{Driver, Request};

pub const VERSION_1: u64 = 1 << 32;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;
pub const LOG_ALL: u64 = 1 << 26;
pub const FLUSH: u64 = 1 << 9;
pub const CONFIG_WCE: u64 = 1 << 11;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

/// Where the machine's memory begins and how long it is: rings first, the data of requests behind them.
pub const MEMORY_AT: u64 = 1 << 20;
pub const MEMORY_BYTES: u64 = 4 << 20;
/// Nobody waits for longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An engine with controllers.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub events: Arc<Events>,
    engine: Engine,
}

impl Host {
    pub fn start(io_engine: IoEngine) -> Self {
        let options =
            EngineOptions { cpus: Vec::new(), reactors: 2, io_engine: Some(io_engine), memory_budget_bytes: 64 << 20 };
        let engine = Engine::start(&options).expect("engine");
        Self { dir: tempfile::tempdir().expect("tempdir"), events: Events::new().expect("events"), engine }
    }

    /// A controller that machines can reach.
    pub fn controller(&self, name: &str, bdev: Arc<dyn Bdev>) -> VhostController {
        let options = ControllerOptions {
            name: name.into(),
            socket: self.dir.path().join(name),
            bdev,
            readonly: false,
            cpus: Vec::new(),
            access: SocketAccess::default(),
        };
        let controller = self.engine.create_vhost_blk(&self.events, options).expect("controller");
        controller.open().expect("open");
        controller
    }

    pub fn malloc(&self, bytes: u64) -> Arc<dyn Bdev> {
        Arc::new(MallocBdev::new("m0", bytes / 512, 512).expect("malloc"))
    }
}

/// Both engines, or those that UBI_TEST_IO_ENGINES names where the kernel refuses io_uring.
pub fn on_every_engine(test: impl Fn(&Host)) {
    let named = std::env::var("UBI_TEST_IO_ENGINES").unwrap_or_else(|_| "io_uring threads".into());
    let mut count = 0;
    for engine in [IoEngine::IoUring, IoEngine::Threads] {
        if named.split(' ').any(|name| name == engine.as_str()) {
            test(&Host::start(engine));
            count += 1;
        }
    }
    assert!(count > 0, "UBI_TEST_IO_ENGINES={named:?} names no engine");
}

/// The machine's memory: a file that is shared with the backend.
pub fn memory() -> GuestMemoryMmap {
    let file = tempfile::tempfile().expect("file");
    file.set_len(MEMORY_BYTES).expect("length");
    let range = (GuestAddress(MEMORY_AT), MEMORY_BYTES as usize, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).expect("memory")
}

/// The regions of a memory as the frontend describes them.
pub fn regions(memory: &GuestMemoryMmap) -> Vec<VhostUserMemoryRegionInfo> {
    memory.iter().map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).expect("a region")).collect()
}

/// All protocol features that the backend has to have.
pub fn protocol_features() -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as Bit;
    Bit::MQ
        | Bit::LOG_SHMFD
        | Bit::REPLY_ACK
        | Bit::BACKEND_REQ
        | Bit::CONFIG
        | Bit::INFLIGHT_SHMFD
        | Bit::RESET_DEVICE
        | Bit::CONFIGURE_MEM_SLOTS
        | Bit::STATUS
}

/// A connection, and the same once more for messages that the crate refuses to send.
pub fn dial(controller: &VhostController) -> (Frontend, UnixStream) {
    let stream = UnixStream::connect(controller.path()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let raw = stream.try_clone().expect("clone");
    (Frontend::from_stream(stream, 128), raw)
}

/// Agree on features: on `wanted` of those that are offered.
pub fn negotiate(frontend: &mut Frontend, wanted: u64) {
    let offered = frontend.get_features().expect("features");
    frontend.set_owner().expect("owner");
    let protocol = frontend.get_protocol_features().expect("protocol features");
    assert_eq!(protocol, protocol_features());
    frontend.set_protocol_features(protocol).expect("protocol features");
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(offered & wanted).expect("features");
}

/// A frontend with a driver on its first ring, ready for requests.
pub fn ready<'m>(controller: &VhostController, memory: &'m GuestMemoryMmap, wanted: u64) -> (Frontend, Driver<'m>) {
    let (mut frontend, _) = dial(controller);
    negotiate(&mut frontend, wanted);
    frontend.set_mem_table(&regions(memory)).expect("memory");
    let driver = Driver::new(memory, 0, 64);
    driver.set_up(&mut frontend);
    (frontend, driver)
}
