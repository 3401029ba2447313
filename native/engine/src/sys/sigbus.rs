//! Mappings of files that somebody else may cut short at any time.
//!
//! Touching a page behind the end of its file raises SIGBUS. The handler here puts zeroed private memory in the place
//! of the mapping and marks it broken; whoever uses the mapping looks at the mark and gives up on the file. A SIGBUS
//! anywhere else ends the process as before.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings at a time: 128 controllers of 128 regions, and as many volumes.
const SLOTS: usize = 32768;

struct Slot {
    taken: AtomicBool,
    /// First byte; 0 while there is none.
    start: AtomicUsize,
    len: AtomicUsize,
    broken: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; SLOTS];

static INSTALL: Once = Once::new();

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler.
    let info = unsafe { &*info };
    // SAFETY: a SIGBUS has an address.
    let address = unsafe { info.si_addr() } as usize;
    for slot in &TABLE {
        let (start, len) = (slot.start.load(Ordering::Acquire), slot.len.load(Ordering::Acquire));
        if start != 0 && address >= start && address - start < len {
            slot.broken.store(true, Ordering::Release);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the range is a mapping of ours, which stays mapped until its slot is cleared.
            let put = unsafe { libc::mmap(start as *mut libc::c_void, len, protection, flags, -1, 0) };
            if put != libc::MAP_FAILED {
                return;
            }
        }
    }
    // Nobody's: the access is tried again, and ends the process.
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

fn install_handler() {
    INSTALL.call_once(|| {
        // SAFETY: all-zero bytes are a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the action is initialised; the handler uses nothing but atomics and system calls.
        let _ = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    });
}

/// A place in the handler's table, for one mapping. Given back when it is dropped, which must come after the unmapping.
pub struct Guard(usize);

impl Guard {
    /// Take a place for a mapping that is about to be made.
    ///
    /// # Errors
    /// ENOMEM: there are too many.
    pub fn take() -> io::Result<Self> {
        install_handler();
        let free = |slot: &Slot| !slot.taken.load(Ordering::Relaxed) && !slot.taken.swap(true, Ordering::AcqRel);
        let slot = TABLE.iter().position(free).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        TABLE[slot].broken.store(false, Ordering::Release);
        Ok(Self(slot))
    }

    /// Guard a mapping from now on.
    ///
    /// # Safety
    /// The range is a mapping of the caller's alone, which stays mapped until `stop`, and every access to it can stand
    /// zeroed memory in its place.
    pub unsafe fn watch(&self, start: usize, len: usize) {
        TABLE[self.0].len.store(len, Ordering::Release);
        TABLE[self.0].start.store(start, Ordering::Release);
    }

    /// No longer: the mapping is about to go.
    pub fn stop(&self) {
        TABLE[self.0].start.store(0, Ordering::Release);
        TABLE[self.0].len.store(0, Ordering::Release);
    }

    /// Take it for broken from now on.
    pub fn break_it(&self) {
        TABLE[self.0].broken.store(true, Ordering::Release);
    }

    /// The file was cut short: what was read since is worth nothing, what was stored is nowhere.
    #[inline]
    pub fn is_broken(&self) -> bool {
        TABLE[self.0].broken.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop();
        TABLE[self.0].taken.store(false, Ordering::Release);
    }
}
