//! Threads and CPUs: pinning, affinity, preemption, the I/O flusher flag.

use std::io;

/// Pin the calling thread to one CPU.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all-zero bytes are a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE, checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for reads of its size; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many CPUs the calling thread may run on; at least 1.
pub fn affinity_count() -> usize {
    // SAFETY: all-zero bytes are a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid for writes of its size; 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result < 0 {
        return 1;
    }
    // SAFETY: the set was filled in by the kernel.
    let count = unsafe { libc::CPU_COUNT(&set) };
    usize::try_from(count).unwrap_or(1).max(1)
}

/// How often the calling thread was put aside although it wanted to run.
pub fn involuntary_switches() -> i64 {
    thread_usage().ru_nivcsw
}

/// How often the calling thread has waited for something in the kernel: itself, or because a call blocked.
pub fn voluntary_switches() -> i64 {
    thread_usage().ru_nvcsw
}

fn thread_usage() -> libc::rusage {
    // SAFETY: all-zero bytes are a valid rusage, a plain structure of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is valid for writes. The call fails for nothing but a wrong argument, and leaves zeros then.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage
}

/// Tell the kernel that the process does I/O for others while memory is short (PR_SET_IO_FLUSHER).
///
/// Fails without CAP_SYS_RESOURCE, which is fine.
pub fn set_io_flusher() -> bool {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: the call takes integers only.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0 }
}
