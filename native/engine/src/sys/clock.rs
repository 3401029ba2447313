//! The cheapest clock there is, for times of single requests: the CPU's time stamp counter.
//!
//! It costs a fifth of the system's clock. Where the kernel does not trust the counter, the system's clock is used.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What the counter is compared with the system's clock over, at least.
const CALIBRATION: Duration = Duration::from_millis(10);
/// The same where a rough answer will do.
const ROUGH_CALIBRATION: Duration = Duration::from_micros(200);
const LOOKS: u32 = 3;

/// When both clocks were first looked at.
struct Origin {
    has_counter: bool,
    ticks: u64,
    time: Instant,
}

fn origin() -> &'static Origin {
    static ORIGIN: OnceLock<Origin> = OnceLock::new();
    ORIGIN.get_or_init(|| {
        let has_counter = cfg!(target_arch = "x86_64") && kernel_trusts_counter();
        let (ticks, time) = if has_counter { look() } else { (0, Instant::now()) };
        Origin { has_counter, ticks, time }
    })
}

/// Both clocks at one moment: the shortest of a few looks, as the thread may lose its CPU between the two.
fn look() -> (u64, Instant) {
    let looks = (0..LOOKS).map(|_| {
        let time = Instant::now();
        let ticks = counter();
        (time.elapsed(), ticks, time)
    });
    let (_, ticks, time) = looks.min_by_key(|(took, ..)| *took).expect("there are some");
    (ticks, time)
}

/// The kernel's own choice says whether all CPUs count alike and never stop.
fn kernel_trusts_counter() -> bool {
    std::fs::read("/sys/devices/system/clocksource/clocksource0/current_clocksource").is_ok_and(|name| name == b"tsc\n")
}

#[cfg(target_arch = "x86_64")]
fn counter() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction; a kernel that forbids it to programs does not use it as its clock.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

/// A point in time, in units that only [`to_ns`] knows; never 0.
#[inline]
pub fn ticks() -> u64 {
    let origin = origin();
    let ticks = if origin.has_counter { counter() } else { elapsed_ns(origin) };
    ticks.max(1)
}

fn elapsed_ns(origin: &Origin) -> u64 {
    u64::try_from(origin.time.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A difference of two points in time, in nanoseconds. May wait a few milliseconds: not for the path of requests.
pub fn to_ns(ticks: u64) -> u64 {
    let (time_ns, counted) = rate();
    scaled(ticks, time_ns, counted)
}

/// About what a time is in ticks, for limits: as well as it is known by now, to a few percent at least.
///
/// May wait, `ROUGH_CALIBRATION` at most: volumes are opened right after the start, while machines wait for them.
pub fn about(time: Duration) -> u64 {
    let (time_ns, counted) = rate_over(ROUGH_CALIBRATION);
    scaled(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), counted, time_ns)
}

fn scaled(value: u64, by: u64, per: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(by) / u128::from(per)).unwrap_or(u64::MAX)
}

/// Nanoseconds and the ticks in them; measured once, so that what is larger stays larger.
fn rate() -> (u64, u64) {
    static RATE: OnceLock<(u64, u64)> = OnceLock::new();
    *RATE.get_or_init(|| rate_over(CALIBRATION))
}

/// The same as of now, when at least so much time has passed since the origin.
fn rate_over(least: Duration) -> (u64, u64) {
    let origin = origin();
    if !origin.has_counter {
        return (1, 1);
    }
    if let Some(missing) = least.checked_sub(origin.time.elapsed()) {
        std::thread::sleep(missing);
    }
    let (ticks, time) = look();
    let time_ns = u64::try_from(time.duration_since(origin.time).as_nanos()).unwrap_or(u64::MAX);
    (time_ns.max(1), ticks.saturating_sub(origin.ticks).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_what_the_systems_clock_says() {
        let (began, time) = (ticks(), Instant::now());
        while time.elapsed() < Duration::from_millis(20) {}
        let (measured, truth) = (to_ns(ticks() - began), time.elapsed().as_nanos() as u64);
        assert_eq!(about(Duration::ZERO), 0);
        assert!(to_ns(about(Duration::from_secs(1))).abs_diff(1_000_000_000) < 1_000_000);
        assert!(measured >= 19_900_000 && measured < truth + 100_000, "{measured} ns of {truth}");
    }
}
