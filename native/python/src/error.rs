//! The engine's errors as one Python exception with its parts as attributes.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use ubi_engine::error::Error;

static EXCEPTION: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// `EngineError(Exception)`, made once.
pub fn exception_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let made = EXCEPTION.get_or_try_init(py, || {
        let doc = c"An engine call failed: kind (one of ERROR_KINDS), message, errno (positive).";
        PyErr::new_type(py, c"ubi_rpc._native.EngineError", Some(doc), Some(&py.get_type::<PyException>()), None)
    })?;
    Ok(made.bind(py).clone())
}

/// The Python exception for `error`.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let make = || -> PyResult<PyErr> {
        let exception = exception_type(py)?.call1((error.message(),))?;
        exception.setattr("kind", error.kind().as_str())?;
        exception.setattr("message", error.message())?;
        exception.setattr("errno", error.errno())?;
        Ok(PyErr::from_value(exception))
    };
    make().unwrap_or_else(|failed| failed)
}
