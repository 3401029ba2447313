//! `NbdListener`: a listening socket and its exports.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use ubi_engine::error::Error;
use ubi_engine::frontend::nbd::export::ExportOptions;
use ubi_engine::frontend::nbd::listener::NbdListener;
use ubi_engine::frontend::nbd::tls::TlsOptions;

use crate::bdev::PyBdev;
use crate::error::to_python;

/// A `_native.TlsOptions` dictionary.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct PyTls {
    required: bool,
    certificates: Option<PathBuf>,
    verify_peer: bool,
    psk_file: Option<PathBuf>,
}

impl PyTls {
    pub fn into_options(self) -> TlsOptions {
        let Self { required, certificates, verify_peer, psk_file } = self;
        TlsOptions { required, certificates, verify_peer, psk_file }
    }
}

#[pyclass(frozen, name = "NbdListener", module = "ubi_rpc._native")]
pub struct PyNbdListener {
    listener: NbdListener,
}

impl PyNbdListener {
    pub fn new(listener: NbdListener) -> Self {
        Self { listener }
    }
}

#[pymethods]
impl PyNbdListener {
    #[getter]
    fn address(&self) -> &str {
        self.listener.address()
    }

    #[pyo3(signature = (*, name, bdev, readonly, default, max_connections, max_handshakes_per_s, description))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    fn add_export(
        &self,
        py: Python<'_>,
        name: String,
        bdev: &PyBdev,
        readonly: bool,
        default: bool,
        max_connections: usize,
        max_handshakes_per_s: u32,
        description: String,
    ) -> PyResult<()> {
        let added = py.detach(|| {
            let bdev = bdev.get()?;
            let options =
                ExportOptions { name, bdev, readonly, default, max_connections, max_handshakes_per_s, description };
            self.listener.add_export(options)
        });
        added.map_err(|error: Error| to_python(py, &error))
    }

    fn remove_export(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        py.detach(|| self.listener.remove_export(name)).map_err(|error| to_python(py, &error))
    }

    fn exports<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let exports = py.detach(|| self.listener.exports());
        let entry = |(name, connections): (String, usize)| {
            let dict = PyDict::new(py);
            dict.set_item("name", name)?;
            dict.set_item("connections", connections)?;
            Ok(dict)
        };
        exports.into_iter().map(entry).collect()
    }

    fn open(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.listener.open()).map_err(|error| to_python(py, &error))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.listener.close());
    }
}
