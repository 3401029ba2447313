//! Short blocking work that neither I/O engine has an operation for, on threads of its own.
//!
//! Work may wait for a file system that does not answer, so there is a thread for each piece that is under way, up to a
//! limit. Threads that were started live as long as the process; nothing on the path of local reads and writes comes here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use super::sync::{Promise, lock};

/// More work than this waits for its turn.
const MAX_THREADS: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// The threads and the way to them.
struct Threads {
    jobs: Sender<Job>,
    receiver: Mutex<Receiver<Job>>,
    /// Jobs that are not done.
    under_way: AtomicUsize,
    started: Mutex<usize>,
}

impl Threads {
    fn get() -> &'static Self {
        static THREADS: OnceLock<Threads> = OnceLock::new();
        THREADS.get_or_init(|| {
            let (jobs, receiver) = channel();
            let (under_way, started) = (AtomicUsize::new(0), Mutex::new(0));
            Threads { jobs, receiver: Mutex::new(receiver), under_way, started }
        })
    }

    /// Have one thread more where there is more work than threads; false when there is not one at all.
    fn start_if_needed(&'static self) -> bool {
        let mut started = lock(&self.started);
        if self.under_way.load(Ordering::Relaxed) > *started && *started < MAX_THREADS {
            let thread = std::thread::Builder::new().name("offload".into());
            *started += usize::from(thread.spawn(|| self.run_jobs()).is_ok());
        }
        *started > 0
    }

    fn run_jobs(&self) {
        loop {
            let job = lock(&self.receiver).recv();
            let Ok(job) = job else { return };
            job();
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Run `work` on another thread and wait for its value without holding up this one.
pub async fn run<T: Clone + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let threads = Threads::get();
    threads.under_way.fetch_add(1, Ordering::Relaxed);
    if !threads.start_if_needed() {
        threads.under_way.fetch_sub(1, Ordering::Relaxed);
        return work();
    }
    let promise = Promise::new();
    let answer = Arc::clone(&promise);
    // The receiver lives as long as the process: a send cannot fail.
    let _ = threads.jobs.send(Box::new(move || answer.set(work())));
    promise.wait().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::exec::block_on;

    #[test]
    fn work_that_hangs_holds_up_no_other() {
        use std::sync::mpsc::channel;
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let hanging: Vec<_> = (0..20)
            .map(|_| {
                let held = Arc::clone(&held);
                std::thread::spawn(move || block_on(run(move || lock(&held).recv().is_ok())))
            })
            .collect();
        while Threads::get().under_way.load(Ordering::Relaxed) < 20 {
            std::thread::yield_now();
        }
        assert_eq!(block_on(run(|| 7)), 7);
        for _ in 0..20 {
            release.send(()).expect("held");
        }
        assert!(hanging.into_iter().all(|thread| thread.join().expect("no panic")));
    }

    #[test]
    fn work_runs_elsewhere_and_its_value_comes_back() {
        let here = std::thread::current().id();
        let there = block_on(run(|| std::thread::current().id()));
        assert_ne!(here, there);
    }
}
