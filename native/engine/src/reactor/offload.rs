//! Short blocking work that neither I/O engine has an operation for, on threads of its own.
//!
//! The threads start with the first work and live as long as the process; they are few, since nothing on the path of
//! reads and writes comes here.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use super::sync::{Promise, lock};

const THREADS: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// The way to the threads; None when not one could be started.
fn threads() -> Option<&'static Sender<Job>> {
    static JOBS: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    JOBS.get_or_init(|| {
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let start = |_| {
            let receiver = Arc::clone(&receiver);
            std::thread::Builder::new().name("offload".into()).spawn(move || run_jobs(&receiver)).is_ok()
        };
        let started = (0..THREADS).map(start).filter(|&is_running| is_running).count();
        (started > 0).then_some(sender)
    })
    .as_ref()
}

fn run_jobs(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let job = lock(receiver).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

/// Run `work` on another thread and wait for its value without holding up this one.
pub async fn run<T: Clone + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let Some(jobs) = threads() else { return work() };
    let promise = Promise::new();
    let answer = Arc::clone(&promise);
    // The receiver lives in threads that never end: a send cannot fail.
    let _ = jobs.send(Box::new(move || answer.set(work())));
    promise.wait().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::exec::block_on;

    #[test]
    fn work_runs_elsewhere_and_its_value_comes_back() {
        let here = std::thread::current().id();
        let there = block_on(run(|| std::thread::current().id()));
        assert_ne!(here, there);
    }
}
