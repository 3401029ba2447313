//! Whether a call has blocked, or its thread merely had to share its CPU: both take long.
//!
//! A call that blocks ends in a voluntary switch of its thread, which the kernel counts; one that is preempted, or whose
//! whole machine is, does not (getrusage(2), `ru_nvcsw`). The reactor's own sleep is voluntary as well and starts anew.

use std::cell::Cell;

use crate::sys::cpu;

thread_local! {
    /// Voluntary switches when they were last looked at; None since the thread has slept.
    static SWITCHES: Cell<Option<i64>> = const { Cell::new(None) };
}

/// Begin to watch this thread, unless it is being watched. To be called before what might block; costs something only
/// once after each sleep.
pub fn watch() {
    if SWITCHES.get().is_none() {
        SWITCHES.set(Some(cpu::voluntary_switches()));
    }
}

/// Whether something has blocked this thread since it is watched, or since this was last asked. Who was not watched may
/// have been.
pub fn has_blocked() -> bool {
    let now = Some(cpu::voluntary_switches());
    SWITCHES.replace(now) != now
}

/// The thread is about to sleep, as it has nothing to do.
pub fn note_sleep() {
    SWITCHES.set(None);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_call_that_sleeps_has_blocked_and_a_long_computation_has_not() {
        assert!(has_blocked(), "nobody has watched");
        assert!(!has_blocked());
        std::thread::sleep(Duration::from_millis(1));
        assert!(has_blocked());
        note_sleep();
        std::thread::sleep(Duration::from_millis(1));
        watch();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(20) {
            std::thread::yield_now(); // to lose the CPU is no blocking
        }
        watch();
        assert!(!has_blocked());
        std::thread::sleep(Duration::from_millis(1));
        watch();
        assert!(has_blocked(), "watching again forgets nothing");
    }
}
