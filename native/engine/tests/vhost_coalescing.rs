//! Coalescing: above a rate of requests, notifications of a ring are held back and stand for many requests each; none is
//! lost, and below the rate none waits.

mod vhost_support;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use vhost_support::*;

const ALL: u64 = !LOG_ALL;

/// One test at a time: they take a processor each, and measure time.
static TURN: Mutex<()> = Mutex::new(());

/// What a ring's driver saw: completed requests, notifications, and the longest time without one.
#[derive(Debug)]
struct Seen {
    requests: u64,
    calls: u64,
    took: Duration,
}

/// Carry out requests one after the other for so long, looking at the ring all the time; notifications are counted.
fn hammer(driver: &mut Driver<'_>, time: Duration) -> Seen {
    let _ = driver.call.read();
    let (start, mut seen) = (Instant::now(), Seen { requests: 0, calls: 0, took: Duration::ZERO });
    while start.elapsed() < time {
        driver.offer(0, &Request::read(0, 512));
        driver.kick.write(1).expect("kick");
        let asked = Instant::now();
        while driver.take().is_empty() {
            assert!(asked.elapsed() < PATIENCE, "a request is completed, whatever happens to its notification");
            std::hint::spin_loop();
        }
        seen.requests += 1;
        seen.calls += driver.call.read().unwrap_or(0);
    }
    seen.took = start.elapsed();
    seen
}

/// The same until it goes as it should, a few times at most: where another program has the processor for 10 ms the rate
/// falls below any threshold, and notifications are rightly not held back for as long.
fn hammer_undisturbed(driver: &mut Driver<'_>, time: Duration, is_right: impl Fn(&Seen) -> bool) {
    let mut all = Vec::new();
    while all.len() < 10 {
        let seen = hammer(driver, time);
        if is_right(&seen) {
            return;
        }
        all.push(seen);
    }
    panic!("ten times: {all:?}");
}

/// Wait for a notification that is still due.
fn last_call(driver: &Driver<'_>) -> Option<Duration> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        if driver.call.read().is_ok() {
            return Some(start.elapsed());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    None
}

#[test]
fn notifications_above_the_threshold_stand_for_many_requests() {
    let _turn = TURN.lock();
    on_every_engine(|host| {
        for wanted in [ALL, ALL & !EVENT_IDX] {
            let controller = host.controller("vh0", host.malloc(1 << 20));
            let memory = memory();
            let (_frontend, mut driver) = ready(&controller, &memory, wanted);
            let plain = hammer(&mut driver, Duration::from_millis(150));
            assert!(plain.calls * 2 > plain.requests, "one each while nothing is held back: {plain:?}");
            assert!(plain.requests > 100, "this host is too slow to say: {plain:?}");
            // One request in 10 ms is the threshold; what is done here is a hundred times as much, so the delay is the
            // longest there is: a second.
            controller.set_coalescing(100_000, 100);
            hammer(&mut driver, Duration::from_millis(50)); // the rate is known now
            hammer_undisturbed(&mut driver, Duration::from_millis(300), |held| held.calls <= 3 && held.requests > 200);
            let last = last_call(&driver).expect("the last requests are told of");
            assert!(last < Duration::from_millis(1500), "after {last:?}");
            controller.set_coalescing(0, 60_000);
            let after = hammer(&mut driver, Duration::from_millis(150));
            assert!(after.calls * 2 > after.requests, "and again one each: {after:?}");
            drop(controller);
        }
    });
}

/// The delay grows with the rate: at most one notification in each, and not much fewer.
#[test]
fn notifications_come_once_in_a_delay() {
    let _turn = TURN.lock();
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(1 << 20));
        let memory = memory();
        let (_frontend, mut driver) = ready(&controller, &memory, ALL & !EVENT_IDX);
        controller.set_coalescing(20, 100);
        hammer(&mut driver, Duration::from_millis(100));
        hammer_undisturbed(&mut driver, Duration::from_millis(300), |seen| {
            // `delay_base` for each time that the rate is over the threshold, which is one request in a window of 10 ms.
            let per_window = seen.requests as f64 / (seen.took.as_secs_f64() * 100.0);
            let delay_s = 20e-6 * (per_window - 1.0);
            let expected = seen.took.as_secs_f64() / delay_s;
            let calls = seen.calls as f64;
            calls < expected * 2.0 && calls > expected / 2.0 && calls * 2.0 < seen.requests as f64
        });
    });
}

#[test]
fn below_the_threshold_nothing_waits() {
    let _turn = TURN.lock();
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(1 << 20));
        controller.set_coalescing(1_000_000, 1_000_000_000);
        let memory = memory();
        let (_frontend, mut driver) = ready(&controller, &memory, ALL);
        let start = Instant::now();
        for _ in 0..50 {
            assert!(driver.is_served()); // asleep until it is notified
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    });
}

/// A driver that sleeps until it is notified is slowed down by the delay, and by no more.
#[test]
fn a_driver_that_waits_for_its_notification_gets_it_a_delay_later() {
    let _turn = TURN.lock();
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(1 << 20));
        let memory = memory();
        let (_frontend, mut driver) = ready(&controller, &memory, ALL);
        controller.set_coalescing(1_000_000, 100);
        let is_late = |late: &Duration| *late > Duration::from_millis(100) && *late < Duration::from_millis(1500);
        let tried: Vec<Duration> = (0..10)
            .map(|_| {
                hammer(&mut driver, Duration::from_millis(100));
                last_call(&driver).expect("a notification")
            })
            .take_while(|late| !is_late(late))
            .collect();
        assert!(tried.len() < 10, "{tried:?}");
    });
}
