//! `Bdev`: one block device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use ubi_engine::bdev::Bdev;
use ubi_engine::engine::{BdevHandle, Engine};
use ubi_engine::error::Result;
use ubi_engine::reactor::Handle;

use crate::error::to_python;

#[pyclass(frozen, name = "Bdev", module = "ubi_rpc._native")]
pub struct PyBdev {
    handle: BdevHandle,
    reactor: Handle,
}

impl PyBdev {
    pub fn new(engine: &Arc<Engine>, bdev: Arc<dyn Bdev>) -> Self {
        Self { handle: BdevHandle::new(bdev), reactor: engine.handle() }
    }

    pub fn get(&self) -> Result<Arc<dyn Bdev>> {
        self.handle.get()
    }
}

#[pymethods]
impl PyBdev {
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let bdev = self.get().map_err(|error| to_python(py, &error))?;
        let info = bdev.info();
        let dict = PyDict::new(py);
        dict.set_item("block_size", info.block_size)?;
        dict.set_item("num_blocks", info.num_blocks)?;
        dict.set_item("write_cache", info.write_cache)?;
        dict.set_item("readonly", info.readonly)?;
        dict.set_item("unmap", info.unmap)?;
        dict.set_item("write_zeroes", info.write_zeroes)?;
        dict.set_item("flush", info.flush)?;
        dict.set_item("unmap_reads_zero", info.unmap_reads_zero)?;
        dict.set_item("survives", info.survives.as_str())?;
        Ok(dict)
    }

    fn iostat<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let bdev = self.get().map_err(|error| to_python(py, &error))?;
        let stat = bdev.iostat();
        let dict = PyDict::new(py);
        let counters: [(&str, &AtomicU64); 8] = [
            ("bytes_read", &stat.bytes_read),
            ("num_read_ops", &stat.num_read_ops),
            ("bytes_written", &stat.bytes_written),
            ("num_write_ops", &stat.num_write_ops),
            ("bytes_unmapped", &stat.bytes_unmapped),
            ("num_unmap_ops", &stat.num_unmap_ops),
            ("num_flush_ops", &stat.num_flush_ops),
            ("num_errors", &stat.num_errors),
        ];
        for (name, counter) in counters {
            dict.set_item(name, counter.load(Ordering::Relaxed))?;
        }
        Ok(dict)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.handle.close(&self.reactor)).map_err(|error| to_python(py, &error))
    }
}
