//! CONFIG_WCE: what a completed request means for the storage below, in each cache mode, on a base that knows what a power
//! cut leaves. Both I/O engines.

mod ubi_support;
mod vhost_support;

use std::sync::Arc;

use ubi_support::{Access, MemBase, Random};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_support::*;

const BYTES: usize = 1 << 20;
const AT_WCE: u32 = 32;
const WITHOUT_LOG: u64 = !LOG_ALL;

fn switch(frontend: &mut Frontend, writeback: bool) {
    frontend.set_config(AT_WCE, VhostUserConfigFlags::empty(), &[u8::from(writeback)]).expect("the cache mode");
    let (_, mode) = frontend.get_config(AT_WCE, 1, VhostUserConfigFlags::empty(), &[0]).expect("config");
    assert_eq!(mode, [u8::from(writeback)]);
}

/// What 8 KiB at a sector may be after a power cut just now, tried often enough to see it if it may be anything else.
fn survives(base: &MemBase, sector: u64, expected: u8) -> bool {
    (0..16).all(|seed| {
        let left = base.after_power_cut(&mut Random::new(seed));
        left.bytes(sector * 512..sector * 512 + 8192).iter().all(|&byte| byte == expected)
    })
}

fn range(sector: u64) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &16u32.to_le_bytes(), &[0; 4]].concat()
}

/// Change 8 KiB at sectors 0, 32 and 64 in the three ways there are, and say how many syncs each has cost.
fn changes(driver: &mut Driver<'_>, base: &MemBase) -> Vec<usize> {
    let (fill, zeroes, discard) = (vec![0x77; 8192], range(32), range(64));
    let requests = [
        (Request::write(0, &fill), 0, 0x77),
        (Request::other(WRITE_ZEROES, &zeroes), 32, 0),
        (Request::other(DISCARD, &discard), 64, 0),
    ];
    let mut syncs = Vec::new();
    for (request, sector, expected) in requests {
        let before = base.count(Access::Flush);
        assert_eq!(driver.run(&request).0, 0);
        let cost = base.count(Access::Flush) - before;
        assert!(cost == 0 || survives(base, sector, expected), "synced, and not there after a power cut");
        syncs.push(cost);
    }
    syncs
}

#[test]
fn a_completed_change_is_durable_exactly_when_the_cache_is_off() {
    on_every_engine(|host| {
        let base = MemBase::with_content(512, vec![0x11; BYTES]);
        let controller = host.controller("vh0", Arc::clone(&base) as _);
        let memory = memory();
        let (mut frontend, mut driver) = ready(&controller, &memory, WITHOUT_LOG);
        assert_eq!(changes(&mut driver, &base), [0, 0, 0], "write back at first");
        assert!(!survives(&base, 0, 0x77), "and this test can tell");
        assert_eq!(driver.run(&Request::other(T_FLUSH, &[])).0, 0);
        assert!(survives(&base, 0, 0x77) && survives(&base, 32, 0));
        for _ in 0..3 {
            switch(&mut frontend, false);
            assert!(changes(&mut driver, &base).iter().all(|&syncs| syncs > 0), "write through");
            switch(&mut frontend, true);
            assert_eq!(changes(&mut driver, &base), [0, 0, 0], "write back again");
        }
    });
}

/// Virtio 1.2, 5.2.6.2: a driver that cannot flush must never have to.
#[test]
fn a_driver_without_flush_has_no_cache_whatever_it_says_of_it() {
    on_every_engine(|host| {
        let base = MemBase::with_content(512, vec![0x11; BYTES]);
        let controller = host.controller("vh0", Arc::clone(&base) as _);
        let memory = memory();
        let (mut frontend, mut driver) = ready(&controller, &memory, WITHOUT_LOG & !FLUSH);
        assert!(changes(&mut driver, &base).iter().all(|&syncs| syncs > 0));
        switch(&mut frontend, true);
        assert!(changes(&mut driver, &base).iter().all(|&syncs| syncs > 0));
    });
}

#[test]
fn a_driver_that_cannot_switch_has_a_cache_and_a_reset_brings_it_back() {
    on_every_engine(|host| {
        let base = MemBase::with_content(512, vec![0x11; BYTES]);
        let controller = host.controller("vh0", Arc::clone(&base) as _);
        let memory = memory();
        let (mut frontend, mut driver) = ready(&controller, &memory, WITHOUT_LOG & !CONFIG_WCE);
        switch(&mut frontend, false);
        assert_eq!(changes(&mut driver, &base), [0, 0, 0], "not agreed on, so it means nothing");
        drop((frontend, driver));
        let (mut frontend, _) = ready(&controller, &memory, WITHOUT_LOG);
        switch(&mut frontend, false);
        frontend.reset_device().expect("reset");
        assert_eq!(frontend.get_config(AT_WCE, 1, VhostUserConfigFlags::empty(), &[0]).expect("config").1, [1]);
        let mut driver = Driver::new(&memory, 0, 64);
        driver.set_up(&mut frontend);
        assert_eq!(changes(&mut driver, &base), [0, 0, 0]);
    });
}

/// Firmware, then a kernel, then a daemon that was started again: each has the mode that the guest had chosen, or its own.
#[test]
fn the_mode_is_the_sessions_and_goes_on_with_its_in_flight_state() {
    on_every_engine(|host| {
        let base = MemBase::with_content(512, vec![0x11; BYTES]);
        let controller = host.controller("vh0", Arc::clone(&base) as _);
        let memory = memory();
        let (mut first, mut driver) = ready(&controller, &memory, WITHOUT_LOG);
        let (inflight, file) = first.get_inflight_fd(&VhostUserInflight::new(0, 0, 1, 64)).expect("in-flight");
        let raw = std::os::fd::AsRawFd::as_raw_fd(&file);
        first.set_inflight_fd(&inflight, raw).expect("in-flight");
        switch(&mut first, false);
        assert!(changes(&mut driver, &base).iter().all(|&syncs| syncs > 0));
        drop(first);
        let (_other, mut fresh) = ready(&controller, &memory, WITHOUT_LOG);
        assert_eq!(changes(&mut fresh, &base), [0, 0, 0], "another machine's mode is its own");
        let (mut next, _) = dial(&controller);
        negotiate(&mut next, WITHOUT_LOG);
        next.set_mem_table(&regions(&memory)).expect("memory");
        next.set_inflight_fd(&inflight, raw).expect("in-flight");
        let mut driver = Driver::new(&memory, 0, 64);
        driver.set_up(&mut next);
        assert!(changes(&mut driver, &base).iter().all(|&syncs| syncs > 0), "the same machine goes on as it was");
    });
}

/// What is in flight when the mode is switched was begun in the old one; what comes after the answer is in the new one.
#[test]
fn switching_under_load_leaves_nothing_that_was_promised_behind() {
    on_every_engine(|host| {
        let base = MemBase::with_content(512, vec![0; BYTES]);
        base.be_random(Random::new(7), None);
        let controller = host.controller("vh0", Arc::clone(&base) as _);
        let memory = memory();
        let (mut frontend, mut driver) = ready(&controller, &memory, WITHOUT_LOG);
        for turn in 0..40u64 {
            let fill = vec![turn as u8 + 1; 8192];
            for slot in 1..9u16 {
                driver.offer(slot, &Request::write(u64::from(slot) * 16 + 512, &fill));
            }
            driver.kick.write(1).expect("kick");
            switch(&mut frontend, false);
            driver.wait(8);
            assert_eq!(driver.run(&Request::write(0, &fill)).0, 0);
            assert!(survives(&base, 0, turn as u8 + 1));
            switch(&mut frontend, true);
        }
    });
}
