//! Virtual time: nothing waits for a real clock, and a run is the same every time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ubi_engine::reactor::exec::Executor;
use ubi_engine::reactor::ops;

/// Run `future` on one thread; when every task waits, time jumps to the next timer. What still runs when it ends is
/// dropped, as by a kill.
///
/// # Panics
/// When every task waits and there is no timer: somebody waits for ever (INV-4).
pub fn run<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    run_else(future, || panic!("INV-4: every task waits and nothing will wake one"))
}

/// The same for what has files looked at by other threads: where every task waits and there is no timer, it is for them.
pub fn run_with_threads<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    run_else(future, || std::thread::sleep(Duration::from_millis(1)))
}

fn run_else<T: 'static>(future: impl Future<Output = T> + 'static, when_all_wait: impl Fn()) -> T {
    let exec = Executor::new(|| {});
    let _entered = exec.enter();
    let _driver = ops::install(Rc::new(ops::BlockingDriver));
    let result = Rc::new(RefCell::new(None));
    let sink = Rc::clone(&result);
    exec.spawn(async move {
        let value = future.await;
        *sink.borrow_mut() = Some(value);
    });
    loop {
        exec.run_ready();
        if let Some(value) = result.borrow_mut().take() {
            exec.drop_tasks();
            return value;
        }
        if !exec.has_ready() {
            exec.next_deadline().map_or_else(&when_all_wait, |deadline| exec.set_now(deadline));
        }
    }
}
