//! Virtual time: nothing waits for a real clock, and a run is the same every time.

use std::cell::RefCell;
use std::rc::Rc;

use ubi_engine::reactor::exec::Executor;
use ubi_engine::reactor::ops;

/// Run `future` on one thread; when every task waits, time jumps to the next timer. What still runs when it ends is
/// dropped, as by a kill.
///
/// # Panics
/// When every task waits and there is no timer: somebody waits for ever (INV-4).
pub fn run<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
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
            exec.set_now(exec.next_deadline().expect("INV-4: every task waits and nothing will wake one"));
        }
    }
}
