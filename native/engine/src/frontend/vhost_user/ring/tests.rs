use super::*;
use crate::frontend::vhost_user::proto::RegionDescription;
use crate::sys::memfd;

const GUEST: u64 = 0x10000;
const USER: u64 = 1 << 40;
const SIZE: u64 = 0x10000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const DATA: u64 = 0x4000;
const NUM: u16 = 8;

/// A ring as a driver that may do anything writes it.
struct Driver {
    memory: GuestMemory,
    available: u16,
}

impl Driver {
    fn new() -> Self {
        let file = memfd::sealed("guest", SIZE).expect("memfd");
        let region = RegionDescription { guest_address: GUEST, size: SIZE, user_address: USER, mmap_offset: 0 };
        Self { memory: GuestMemory::default().with(region, &file).expect("map"), available: 0 }
    }

    fn place() -> RingPlace {
        let (descriptors, available, used) = (USER + DESCRIPTORS, USER + AVAILABLE, USER + USED);
        RingPlace { num: NUM, addresses: RingAddresses { index: 0, flags: 0, descriptors, used, available, log: 0 } }
    }

    fn ring(&self) -> Ring {
        Ring::new(&self.memory, Self::place(), 0, true).expect("a ring")
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(GUEST + at, bytes).expect("memory");
    }

    fn describe(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(table + u64::from(index) * 16, &bytes);
    }

    fn offer(&mut self, head: u16) {
        self.put(AVAILABLE + 4 + u64::from(self.available % NUM) * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.put(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    fn chain(&self, head: u16) -> Checked<Chain> {
        self.ring().chain(&self.memory, head, true)
    }

    fn why(&self, head: u16) -> String {
        self.chain(head).expect_err("a violation").0
    }
}

#[test]
fn a_chain_is_taken_in_order_with_its_directions() {
    let mut driver = Driver::new();
    driver.describe(DESCRIPTORS, 3, GUEST + DATA, 16, FLAG_NEXT, 5);
    driver.describe(DESCRIPTORS, 5, GUEST + DATA + 16, 512, FLAG_NEXT | FLAG_WRITE, 1);
    driver.describe(DESCRIPTORS, 1, GUEST + DATA + 600, 1, FLAG_WRITE, 0);
    driver.offer(3);
    let mut ring = driver.ring();
    assert_eq!(ring.take_head(), Ok(3));
    let chain = ring.chain(&driver.memory, 3, true).expect("a chain");
    assert_eq!(chain.readable[..], [Segment { address: GUEST + DATA, len: 16 }]);
    assert_eq!(chain.writable.len(), 2);
    assert_eq!(ring.waiting(), Ok(0));
}

#[test]
fn an_indirect_table_is_followed() {
    let driver = Driver::new();
    driver.describe(DESCRIPTORS, 0, GUEST + TABLE, 48, FLAG_INDIRECT, 0);
    driver.describe(TABLE, 0, GUEST + DATA, 16, FLAG_NEXT, 2);
    driver.describe(TABLE, 2, GUEST + DATA + 16, 1, FLAG_WRITE, 9);
    let chain = driver.chain(0).expect("a chain");
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
    assert!(driver.ring().chain(&driver.memory, 0, false).is_err(), "not without the feature");
}

#[test]
fn loops_are_found() {
    let driver = Driver::new();
    driver.describe(DESCRIPTORS, 0, GUEST + DATA, 16, FLAG_NEXT, 0);
    assert!(driver.why(0).contains("loop"));
    driver.describe(DESCRIPTORS, 1, GUEST + DATA, 16, FLAG_NEXT, 2);
    driver.describe(DESCRIPTORS, 2, GUEST + DATA, 16, FLAG_NEXT, 1);
    assert!(driver.why(1).contains("loop"));
    driver.describe(DESCRIPTORS, 3, GUEST + TABLE, 32, FLAG_INDIRECT, 0);
    driver.describe(TABLE, 0, GUEST + DATA, 16, FLAG_NEXT, 1);
    driver.describe(TABLE, 1, GUEST + DATA, 16, FLAG_NEXT, 0);
    assert!(driver.why(3).contains("loop"));
}

#[test]
fn every_address_is_checked() {
    let driver = Driver::new();
    for (address, len) in [
        (0, 16),
        (GUEST - 1, 16),
        (GUEST + SIZE - 1, 2),
        (GUEST + SIZE, 1),
        (u64::MAX, 1),
        (u64::MAX - 3, 16),
        (GUEST, u32::MAX),
        (GUEST + DATA, 0),
    ] {
        for flags in [0, FLAG_WRITE] {
            driver.describe(DESCRIPTORS, 0, address, len, flags, 0);
            assert!(driver.chain(0).is_err(), "{len} bytes at {address:#x}");
            driver.describe(DESCRIPTORS, 1, GUEST + TABLE, 16, FLAG_INDIRECT, 0);
            driver.describe(TABLE, 0, address, len, flags, 0);
            assert!(driver.chain(1).is_err(), "{len} bytes at {address:#x} in a table");
        }
    }
}

#[test]
fn indirect_tables_keep_to_the_rules() {
    let driver = Driver::new();
    driver.describe(TABLE, 0, GUEST + DATA, 16, 0, 0);
    for (address, len) in [
        (GUEST + TABLE, 0),
        (GUEST + TABLE, 15),
        (GUEST + TABLE, 17),
        (GUEST + TABLE, u32::MAX),
        (GUEST + TABLE, 16 * (MAX_CHAIN as u32 + 1)),
        (GUEST + SIZE - 8, 16),
        (0, 16),
        (u64::MAX - 7, 16),
    ] {
        driver.describe(DESCRIPTORS, 0, address, len, FLAG_INDIRECT, 0);
        assert!(driver.chain(0).is_err(), "a table of {len} bytes at {address:#x}");
    }
    for flags in [FLAG_INDIRECT | FLAG_NEXT, FLAG_INDIRECT | FLAG_WRITE] {
        driver.describe(DESCRIPTORS, 0, GUEST + TABLE, 16, flags, 0);
        assert!(driver.why(0).contains("other flags"));
    }
    driver.describe(DESCRIPTORS, 0, GUEST + TABLE, 16, FLAG_INDIRECT, 0);
    driver.describe(TABLE, 0, GUEST + TABLE, 16, FLAG_INDIRECT, 0);
    assert!(driver.why(0).contains("inside another"));
    driver.describe(TABLE, 0, GUEST + DATA, 16, FLAG_NEXT, 1);
    assert!(driver.chain(0).is_err(), "an index past the table");
}

#[test]
fn readable_comes_before_writable() {
    let driver = Driver::new();
    driver.describe(DESCRIPTORS, 0, GUEST + DATA, 16, FLAG_WRITE | FLAG_NEXT, 1);
    driver.describe(DESCRIPTORS, 1, GUEST + DATA, 16, 0, 0);
    assert!(driver.why(0).contains("behind a writable"));
    driver.describe(DESCRIPTORS, 0, GUEST + DATA, 16, FLAG_NEXT, NUM);
    assert!(driver.chain(0).is_err(), "an index past the ring");
}

#[test]
fn an_available_index_cannot_jump_ahead_and_a_head_is_in_the_ring() {
    let mut driver = Driver::new();
    for jump in [NUM + 1, 100, 0x8000, u16::MAX] {
        driver.put(AVAILABLE + 2, &jump.to_le_bytes());
        assert!(driver.ring().waiting().is_err(), "{jump} ahead");
    }
    driver.put(AVAILABLE + 2, &0u16.to_le_bytes());
    for head in [NUM, NUM + 1, u16::MAX] {
        driver.available = 0;
        driver.offer(head);
        assert!(driver.ring().take_head().is_err(), "head {head}");
    }
}

#[test]
fn a_ring_lies_in_the_memory_and_is_a_power_of_two() {
    let driver = Driver::new();
    let new = |change: &dyn Fn(&mut RingPlace)| {
        let mut place = Driver::place();
        change(&mut place);
        Ring::new(&driver.memory, place, 0, false).is_err()
    };
    for num in [0, 3, 100, 32769, u16::MAX] {
        assert!(new(&|place| place.num = num), "{num}");
    }
    for address in [0, USER - 16, USER + SIZE - 16, USER + SIZE, u64::MAX, u64::MAX - 15, USER + 1] {
        assert!(new(&|place| place.addresses.descriptors = address), "descriptors at {address:#x}");
        assert!(new(&|place| place.addresses.used = address) || address == USER + SIZE - 128, "used at {address:#x}");
    }
    for address in [0, USER - 2, USER + SIZE - 2, u64::MAX, USER + 1] {
        assert!(new(&|place| place.addresses.available = address), "available at {address:#x}");
    }
    assert!(new(&|place| place.num = 32768), "too long for the memory");
}

#[test]
fn the_driver_is_notified_when_its_event_is_passed() {
    let driver = Driver::new();
    let mut ring = driver.ring();
    let event = |value: u16| driver.put(AVAILABLE + 4 + u64::from(NUM) * 2, &value.to_le_bytes());
    event(100);
    let mut publish = |count: u16| {
        for head in 0..count {
            ring.push_used(head, 1);
        }
        ring.publish();
        ring.wants_notification()
    };
    assert!(publish(1), "the first time in any case");
    assert!(!publish(2), "3 used, the event is at 100");
    event(4);
    assert!(publish(2), "5 used: entry 4 among them");
    assert!(!publish(1));
    event(6);
    assert!(publish(1));
}

#[test]
fn without_events_the_flags_decide() {
    let driver = Driver::new();
    let mut ring = Ring::new(&driver.memory, Driver::place(), 0, false).expect("a ring");
    assert!(ring.wants_notification());
    driver.put(AVAILABLE, &1u16.to_le_bytes());
    assert!(!ring.wants_notification());
    let flags = || {
        let mut bytes = [0; 2];
        driver.memory.read(GUEST + USED, &mut bytes).expect("memory");
        u16::from_le_bytes(bytes)
    };
    ring.disable_kicks();
    assert_eq!(flags(), 1);
    ring.enable_kicks();
    assert_eq!(flags(), 0);
}
