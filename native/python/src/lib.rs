//! PyO3 glue, thin: plain data in, plain data out, the interpreter lock released around every engine call.
//!
//! The Python side of each class is `ubi_rpc/_native.pyi`.

mod bdev;
mod engine;
mod error;
mod listener;
mod tools;
mod vhost;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let kinds: Vec<&str> = ubi_engine::error::ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
    module.add("ERROR_KINDS", kinds)?;
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    module.add("EngineError", error::exception_type(module.py())?)?;
    module.add_function(wrap_pyfunction!(tools::ubi_inspect, module)?)?;
    module.add_function(wrap_pyfunction!(tools::ubi_plan_repair, module)?)?;
    module.add_function(wrap_pyfunction!(tools::ubi_repair, module)?)?;
    module.add_function(wrap_pyfunction!(tools::sweep_maps, module)?)?;
    module.add_class::<engine::PyEngine>()?;
    module.add_class::<bdev::PyBdev>()?;
    module.add_class::<listener::PyNbdListener>()?;
    module.add_class::<vhost::PyVhostController>()
}
