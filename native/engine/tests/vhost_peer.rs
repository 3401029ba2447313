//! vhost-user-blk under a peer of other hands, on both I/O engines: the `vhost` crate's frontend with every message
//! that it has, in the usual order, in every other order, and with the wrong sizes and descriptors that it would not send.

mod vhost_support;

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::null::NullBdev;
use ubi_engine::frontend::vhost_user::controller::VhostController;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo};
use vhost_support::*;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const BYTES: u64 = 4 << 20;
const ALL: u64 = !LOG_ALL;
/// Without protocol features nothing is acknowledged: this message is only sent so that it is refused.
const SET_PROTOCOL_FEATURES: u32 = 16;

#[test]
fn every_message_in_the_usual_order() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        let memory = memory();
        let (mut frontend, _) = dial(&controller);
        negotiate(&mut frontend, u64::MAX);
        assert!(frontend.get_queue_num().expect("queues") >= 128);
        assert!(frontend.get_max_mem_slots().expect("slots") >= 32);
        let (_, space) = frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).expect("config");
        assert_eq!(space[..8], (BYTES / 512).to_le_bytes());
        frontend.set_config(32, VhostUserConfigFlags::empty(), &[0]).expect("the cache mode");
        let (_, mode) = frontend.get_config(32, 1, VhostUserConfigFlags::WRITABLE, &[0]).expect("config");
        assert_eq!(mode, [0]);
        let (to_us, _ours) = UnixStream::pair().expect("pair");
        frontend.set_backend_request_fd(&to_us).expect("backend requests");
        let all = regions(&memory);
        frontend.set_mem_table(&all).expect("memory");
        let more = VhostUserMemoryRegionInfo {
            guest_phys_addr: 1 << 40,
            userspace_addr: 1 << 50,
            memory_size: 4096,
            ..all[0]
        };
        frontend.add_mem_region(&more).expect("one more");
        assert!(frontend.add_mem_region(&more).is_err(), "twice");
        frontend.remove_mem_region(&more).expect("one less");
        assert!(frontend.remove_mem_region(&more).is_err(), "twice");
        let (inflight, file) = frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 4, 256)).expect("in-flight");
        assert_eq!((inflight.num_queues, inflight.queue_size), (4, 256));
        assert_eq!(file.metadata().expect("stat").len(), inflight.mmap_size);
        frontend.set_inflight_fd(&inflight, file.as_raw_fd()).expect("in-flight");
        let log = tempfile::tempfile().expect("file");
        log.set_len(4096).expect("length");
        let region = VhostUserDirtyLogRegion { mmap_size: 4096, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
        frontend.set_log_base(0, Some(region)).expect("log");
        frontend.set_log_fd(EventFd::new(0).expect("eventfd").as_raw_fd()).expect("log event");
        let mut driver = Driver::new(&memory, 0, 256);
        driver.set_up(&mut frontend);
        assert!(driver.is_served());
        assert_eq!(frontend.get_vring_base(0).expect("stop"), 1);
        frontend.set_vring_enable(0, false).expect("disable");
        frontend.reset_owner().expect("owner");
        frontend.reset_device().expect("reset");
        let (_, mode) = frontend.get_config(32, 1, VhostUserConfigFlags::empty(), &[0]).expect("config");
        assert_eq!(mode, [1], "a reset device is in write back again");
    });
}

#[test]
fn every_request_does_what_it_says() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        for wanted in [ALL, ALL & !EVENT_IDX, VERSION_1 | PROTOCOL_FEATURES] {
            let memory = memory();
            let (_frontend, mut driver) = ready(&controller, &memory, wanted);
            let data: Vec<u8> = (0..8192u32).map(|byte| (byte % 251) as u8 + 1).collect();
            assert_eq!(driver.run(&Request::write(8, &data)), (0, 1));
            assert_eq!(driver.run(&Request::read(8, 8192)), (0, 8193));
            assert_eq!(driver.data(0, 8192), data);
            assert_eq!(driver.run(&Request::other(T_FLUSH, &[])), (0, 1));
            let range = |sector: u64, count: u32| [&sector.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
            assert_eq!(driver.run(&Request::other(WRITE_ZEROES, &range(8, 4))), (0, 1));
            assert_eq!(driver.run(&Request::other(DISCARD, &[range(16, 1), range(20, 4)].concat())), (0, 1));
            driver.run(&Request::read(8, 8192));
            let mut expected = data.clone();
            expected[..2048].fill(0);
            expected[4096..4608].fill(0);
            expected[6144..].fill(0);
            assert_eq!(driver.data(0, 8192), expected);
            let id = Request { kind: GET_ID, sector: 0, out: &[], into: 20 };
            assert_eq!(driver.run(&id), (0, 21));
            assert_eq!(driver.data(0, 20), *b"m0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
            assert_eq!(driver.run(&Request::read(BYTES / 512, 512)).0, 1, "past the end");
            assert_eq!(driver.run(&Request::other(99, &[])).0, 2, "an unknown kind");
        }
    });
}

#[test]
fn four_rings_of_256_at_once() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        let memory = memory();
        let (mut frontend, _) = dial(&controller);
        negotiate(&mut frontend, ALL);
        frontend.set_mem_table(&regions(&memory)).expect("memory");
        let mut drivers: Vec<Driver<'_>> = (0..4).map(|index| Driver::new(&memory, index, 256)).collect();
        for driver in &drivers {
            driver.set_up(&mut frontend);
        }
        for turn in 0..300u64 {
            for (index, driver) in drivers.iter_mut().enumerate() {
                let slots = index as u16 * 16..index as u16 * 16 + 16;
                for slot in slots.clone() {
                    driver.offer(slot, &Request::read(turn % 100 + u64::from(slot), 512));
                }
                driver.kick.write(1).expect("kick");
            }
            for (index, driver) in drivers.iter_mut().enumerate() {
                let done: BTreeSet<u16> = driver.wait(16).into_iter().map(|(slot, _)| slot).collect();
                assert_eq!(done, (index as u16 * 16..index as u16 * 16 + 16).collect());
            }
        }
        let shown = controller.sessions();
        assert_eq!((shown.len(), shown[0].max_queues, shown[0].started), (1, 4, true));
    });
}

/// All orders of `0..left.len()`.
fn orders(left: &[usize]) -> Vec<Vec<usize>> {
    if left.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for &first in left {
        let rest: Vec<usize> = left.iter().copied().filter(|&other| other != first).collect();
        all.extend(orders(&rest).into_iter().map(|rest| [&[first][..], &rest].concat()));
    }
    all
}

/// No order is prescribed among them; QEMU, Cloud Hypervisor and SPDK have three. In one half the in-flight state comes
/// somewhere in between, as Cloud Hypervisor sends it.
#[test]
fn a_ring_starts_whatever_the_order_of_its_settings() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        for (turn, order) in orders(&[0, 1, 2, 3, 4, 5]).into_iter().enumerate() {
            let memory = memory();
            let (mut frontend, _) = dial(&controller);
            negotiate(&mut frontend, ALL);
            frontend.set_mem_table(&regions(&memory)).expect("memory");
            let mut driver = Driver::new(&memory, 0, 64);
            for (place, &step) in order.iter().enumerate() {
                if turn % 2 == 0 && place == turn / 2 % 6 {
                    let (inflight, file) =
                        frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 1, 64)).expect("in-flight");
                    frontend.set_inflight_fd(&inflight, file.as_raw_fd()).expect("in-flight");
                }
                driver.set_up_by(step, &mut frontend).unwrap_or_else(|error| panic!("{order:?}: {error}"));
            }
            assert!(driver.is_served(), "{order:?}");
        }
    });
}

/// Every setting once more while requests are served, the memory table and the features included.
#[test]
fn settings_that_come_again_change_nothing() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        let memory = memory();
        let (mut frontend, mut driver) = ready(&controller, &memory, ALL);
        for turn in 0..40 {
            match turn % 8 {
                6 => frontend.set_mem_table(&regions(&memory)).map(|_| ()).expect("memory"),
                7 => negotiate(&mut frontend, ALL),
                1 => {} // its place is the driver's to know: see the next test
                step => driver.set_up_by(step, &mut frontend).expect("once more"),
            }
            assert!(driver.is_served(), "turn {turn}");
        }
    });
}

#[test]
fn a_ring_goes_on_where_it_was_stopped() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        let memory = memory();
        let (mut frontend, mut driver) = ready(&controller, &memory, ALL);
        for turn in 1..=20 {
            assert!(driver.is_served());
            assert_eq!(frontend.get_vring_base(0).expect("stop"), turn);
            assert_eq!(frontend.get_vring_base(0).expect("stop again"), turn);
            driver.set_up(&mut frontend);
        }
    });
}

/// What a controller's other machines and queues have to do with a rude one: nothing. Nor have other controllers.
struct Bystanders<'m> {
    _frontends: Vec<Frontend>,
    drivers: Vec<Driver<'m>>,
}

impl<'m> Bystanders<'m> {
    fn new(controllers: &[&VhostController], memories: &'m [vm_memory::GuestMemoryMmap]) -> Self {
        let (frontends, drivers) =
            controllers.iter().zip(memories).map(|(controller, memory)| ready(controller, memory, ALL)).unzip();
        Self { _frontends: frontends, drivers }
    }

    fn are_served(&mut self) -> bool {
        self.drivers.iter_mut().all(Driver::is_served)
    }
}

fn header(request: u32, flags: u32, size: usize) -> Vec<u8> {
    [request, flags, size as u32].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Send a message with NEED_REPLY; what is answered, None when the connection ends.
fn ask(stream: &mut UnixStream, request: u32, payload: &[u8], fds: &[RawFd]) -> Option<Vec<u8>> {
    let bytes = [header(request, 9, payload.len()), payload.to_vec()].concat();
    stream.send_with_fds(&[&bytes[..]], fds).ok()?;
    let mut head = [0; 12];
    if let Err(error) = stream.read_exact(&mut head) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "request {request} is not answered");
        return None;
    }
    assert_eq!(head[..8], header(request, 5, 0)[..8], "the answer is to this request");
    let mut answer = vec![0; u32::from_le_bytes(head[8..].try_into().expect("4 bytes")) as usize];
    stream.read_exact(&mut answer).expect("all of the answer");
    Some(answer)
}

/// Every request number with sizes of all messages and others, none, one and two descriptors: each is answered or ends the connection.
/// No sender waits for ever, and nobody else notices.
#[test]
fn every_size_of_every_message_with_any_number_of_descriptors() {
    on_every_engine(|host| {
        let (controller, other) =
            (host.controller("vh0", host.malloc(BYTES)), host.controller("vh1", host.malloc(BYTES)));
        let memories = [memory(), memory()];
        let mut bystanders = Bystanders::new(&[&controller, &other], &memories);
        let file = tempfile::tempfile().expect("file");
        file.set_len(1 << 20).expect("length");
        let event = EventFd::new(0).expect("eventfd");
        let (mut answered, mut ended) = (0, 0);
        for request in 0..=48 {
            let mut stream = None;
            for size in (0..=16).chain([20, 24, 28, 32, 36, 40, 41, 48, 264, 4096]) {
                for fds in [&[][..], &[file.as_raw_fd()], &[event.as_raw_fd()], &[file.as_raw_fd(), event.as_raw_fd()]]
                {
                    let mut one = stream.take().unwrap_or_else(|| {
                        let (mut frontend, raw) = dial(&controller);
                        negotiate(&mut frontend, ALL);
                        raw
                    });
                    // As large as the message is: what of it is a count or an index is out of all bounds, or nearly.
                    let byte = if size % 2 == 0 && request != SET_PROTOCOL_FEATURES { 0 } else { 0xff };
                    let payload = vec![byte; size];
                    match ask(&mut one, request, &payload, fds) {
                        Some(_) => {
                            answered += 1;
                            stream = Some(one);
                        }
                        None => ended += 1,
                    }
                }
            }
            assert!(bystanders.are_served(), "after request {request}");
        }
        assert!(answered > 2000 && ended > 100, "{answered} answers, {ended} ends");
        let memory = memory();
        assert!(ready(&controller, &memory, ALL).1.is_served());
    });
}

/// The crate believes that all of its protocol features were agreed on; the backend has refused those that it lacks, and
/// goes on with what was agreed on before.
#[test]
fn protocol_features_that_are_not_offered_are_refused_and_the_session_goes_on() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        let memory = memory();
        let (mut frontend, mut driver) = ready(&controller, &memory, ALL);
        for bit in VhostUserProtocolFeatures::all().difference(protocol_features()).iter() {
            let refused = frontend.set_protocol_features(protocol_features() | bit);
            assert!(refused.is_err(), "{bit:?}");
            assert!(driver.is_served());
        }
        assert!(frontend.get_max_mem_slots().expect("slots") >= 32);
    });
}

#[derive(Default)]
struct Heard(usize);

impl VhostUserFrontendReqHandlerMut for Heard {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        self.0 += 1;
        Ok(0)
    }
}

/// A bdev that grows is announced on the backend's own channel, and each frontend reads the new size.
#[test]
fn a_frontend_hears_of_growth() {
    on_every_engine(|host| {
        let bdev: Arc<dyn Bdev> = Arc::new(NullBdev::new("n0", 2048, 512).expect("null"));
        let controller = host.controller("vh0", Arc::clone(&bdev));
        let (mut frontend, _) = dial(&controller);
        negotiate(&mut frontend, ALL);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let mut handler = FrontendReqHandler::new(Arc::clone(&heard)).expect("a handler");
        frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).expect("backend requests");
        for size in [4096u64, 8192] {
            bdev.resize(Some(size)).expect("growth");
            controller.notify_config_change();
            handler.handle_request().expect("a request");
            let (_, capacity) = frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).expect("config");
            assert_eq!(capacity, size.to_le_bytes());
        }
        assert_eq!(heard.lock().expect("heard").0, 2);
    });
}

/// More connections than a controller serves, none of which says a word: the next one is served all the same.
#[test]
fn who_says_nothing_makes_room_for_who_does() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        let memories = [memory(), memory()];
        let mut before = Bystanders::new(&[&controller], &memories[..1]);
        let silent: Vec<UnixStream> =
            (0..70).map(|_| UnixStream::connect(controller.path()).expect("connect")).collect();
        let mut after = Bystanders::new(&[&controller], &memories[1..]);
        assert!(after.are_served() && before.are_served());
        drop(silent);
    });
}
