//! The log of dirty pages that live migration asks for: one bit a page of guest memory.
//!
//! Source: QEMU docs/interop/vhost-user.rst, "Migration".

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::sys::mapping::Mapping;

const PAGE_BYTES: u64 = 4096;

/// The log of a session: on while the frontend wants it, and replaced while rings run.
#[derive(Default)]
pub struct DirtyLog {
    on: AtomicBool,
    pages: Mutex<Option<Arc<Mapping>>>,
}

impl DirtyLog {
    /// Use the log that the frontend shares.
    ///
    /// # Errors
    /// What cannot be mapped; the old log stays.
    pub fn set(&self, file: &OwnedFd, offset: u64, size: u64) -> Result<()> {
        let mapping = Mapping::new(file.as_fd(), offset, size).map_err(|error| Error::from_io("map a log", &error))?;
        *self.pages.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(mapping));
        Ok(())
    }

    pub fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Release);
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Mark the pages of guest ranges that were written. Pages behind the log's end have no bit, as the frontend knows.
    pub fn mark(&self, ranges: impl Iterator<Item = (u64, u64)>) {
        if !self.is_on() {
            return;
        }
        let Some(log) = self.pages.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        for (address, len) in ranges {
            let last = address.saturating_add(len.saturating_sub(1)) / PAGE_BYTES;
            for page in address / PAGE_BYTES..=last {
                match usize::try_from(page / 8) {
                    Ok(byte) if byte < log.len() => log.or_u8(byte, 1 << (page % 8)),
                    _ => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd;

    #[test]
    fn exactly_the_written_pages_are_marked() {
        let file = memfd::sealed("log", 4096).expect("memfd");
        let log = DirtyLog::default();
        log.set(&file, 0, 4).expect("map");
        log.mark([(0, 1)].into_iter());
        log.switch(true);
        log.mark([(4095, 2), (8 * 4096, 4096), (31 * 4096 + 5, 1 << 40), (u64::MAX, 5)].into_iter());
        let mut seen = [0; 4];
        Mapping::new(file.as_fd(), 0, 4).expect("map").read(0, &mut seen);
        assert_eq!(seen, [0b11, 1, 0, 0x80]);
    }
}
