//! Whatever a frontend or a guest sends by vhost-user: messages are decoded or refused, regions are mapped inside their
//! file or refused, rings are walked inside their memory or stop, and in-flight state is taken over or refused; what
//! comes out keeps to the bounds that its users rely on.
//!
//! The first byte chooses which of the three.
#![no_main]

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use ubi_engine::bdev::malloc::MallocBdev;
use ubi_engine::bdev::{Bdev, BdevInfo};
use ubi_engine::frontend::vhost_user::config;
use ubi_engine::frontend::vhost_user::inflight::InflightRegion;
use ubi_engine::frontend::vhost_user::memory::GuestMemory;
use ubi_engine::frontend::vhost_user::proto::{
    HEADER_BYTES, Header, InflightDescription, MAX_PAYLOAD, MAX_TABLE_REGIONS, Message, RegionDescription,
    RingAddresses,
};
use ubi_engine::frontend::vhost_user::ring::{MAX_CHAIN, Ring, RingPlace};
use ubi_engine::sys::memfd;

const GUEST: u64 = 0x1000;
const USER: u64 = 1 << 40;
const SIZE: u64 = 0x4000;
const NUM: u16 = 16;

thread_local! {
    static MEMORY: GuestMemory = {
        let file = memfd::sealed("guest", SIZE).expect("memfd");
        let region = RegionDescription { guest_address: GUEST, size: SIZE, user_address: USER, mmap_offset: 0 };
        GuestMemory::default().with(region, &file).expect("map")
    };
    static MEMORY_FILE: OwnedFd = memfd::sealed("shared", SIZE).expect("memfd");
    static INFO: BdevInfo = MallocBdev::new("m", 8, 4096).expect("malloc").info().clone();
    static STATE: RefCell<(OwnedFd, InflightDescription)> = {
        let asked = InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues: 1, queue_size: NUM };
        RefCell::new(InflightRegion::create(&asked).expect("memfd"))
    };
}

fn decode(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<HEADER_BYTES>() else { return };
    if let Some(header) = Header::parse(head) {
        assert!(header.size <= MAX_PAYLOAD);
    }
    let request = u32::from(head[0]);
    match Message::decode(request, rest, usize::from(head[1] & 15)) {
        Ok(Message::SetMemTable(regions)) => {
            assert!(regions.len() <= MAX_TABLE_REGIONS);
            share(&regions);
        }
        Ok(Message::AddMemReg(region)) => share(&[region]),
        Ok(Message::SetConfig { offset, data }) => {
            assert!(data.len() <= rest.len());
            let _ = config::written_cache_mode(offset, &data);
        }
        Ok(Message::GetConfig { offset, size, .. }) => INFO.with(|info| {
            let read = config::read(info, true, offset, size);
            assert!(read.is_none_or(|bytes| bytes.len() == size as usize));
        }),
        Ok(Message::SetInflightFd(description)) => STATE.with_borrow(|(file, _)| {
            let _ = InflightRegion::open(file, &description);
        }),
        _ => {}
    }
}

/// Map regions of a file of `SIZE` bytes one after the other: what is mapped is inside the file and overlaps nothing.
fn share(regions: &[RegionDescription]) {
    MEMORY_FILE.with(|file| {
        let mut memory = GuestMemory::default();
        for region in regions {
            let Ok(more) = memory.with(*region, file) else { continue };
            assert!(region.size <= SIZE && region.mmap_offset <= SIZE - region.size);
            assert!(
                !memory.contains(region.guest_address, 1) && more.contains(region.guest_address, region.size as usize)
            );
            memory = more;
        }
    });
}

fn walk(data: &[u8]) {
    MEMORY.with(|memory| {
        memory.write(GUEST, &vec![0; SIZE as usize]).expect("memory");
        memory.write(GUEST, &data[..data.len().min(SIZE as usize)]).expect("memory");
        let (descriptors, available, used) = (USER, USER + 16 * u64::from(NUM), USER + 0x1000);
        let addresses = RingAddresses { index: 0, flags: 0, descriptors, used, available, log: 0 };
        let mut ring = Ring::new(memory, RingPlace { num: NUM, addresses }, 0, true).expect("a ring");
        for _ in 0..=NUM {
            let Ok(1..) = ring.waiting() else { return };
            let Ok(head) = ring.take_head() else { return };
            assert!(head < NUM);
            let Ok(chain) = ring.chain(memory, head, true) else { continue };
            let segments = chain.readable.iter().chain(&chain.writable);
            assert!(chain.readable.len() + chain.writable.len() <= MAX_CHAIN + usize::from(NUM));
            for segment in segments {
                assert!(segment.len > 0 && segment.address >= GUEST);
                assert!(segment.address + u64::from(segment.len) <= GUEST + SIZE);
            }
            ring.push_used(head, 1);
        }
    });
}

fn recover(data: &[u8]) {
    let Some((index, rest)) = data.split_first_chunk::<2>() else { return };
    STATE.with_borrow(|(file, description)| {
        let region = InflightRegion::open(file, description).expect("open");
        region.fill(rest);
        let mut queue = region.queue(0, NUM).expect("a queue");
        let Ok(recovered) = queue.recover(u16::from_le_bytes(*index)) else { return };
        assert!(recovered.heads.len() <= usize::from(NUM));
        assert!(recovered.heads.iter().all(|&head| head < NUM));
        for head in recovered.heads {
            queue.prepare(head);
            queue.published(std::iter::once(head), 0);
        }
    });
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        0 => decode(rest),
        1 => walk(rest),
        _ => recover(rest),
    }
});
