//! PyO3 glue, thin: plain data in, plain data out, the interpreter lock released around every engine call.

use pyo3::prelude::*;

#[pymodule]
fn _native(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
