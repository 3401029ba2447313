//! `Bdev`: one block device.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use ubi_engine::bdev::Bdev;
use ubi_engine::engine::{BdevHandle, Engine};
use ubi_engine::error::{Error, ErrorKind, Result};
use ubi_engine::reactor::Handle;
use ubi_engine::sys::clock;

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
        dict.set_item("num_blocks", info.num_blocks.get())?;
        dict.set_item("write_cache", info.write_cache)?;
        dict.set_item("readonly", info.readonly)?;
        dict.set_item("unmap", info.unmap)?;
        dict.set_item("write_zeroes", info.write_zeroes)?;
        dict.set_item("flush", info.flush)?;
        dict.set_item("unmap_reads_zero", info.unmap_reads_zero)?;
        dict.set_item("survives", info.survives.as_str())?;
        dict.set_item("uuid", bdev.ubi().map(|volume| volume.status().uuid.to_string()))?;
        dict.set_item("remote", bdev.is_remote())?;
        Ok(dict)
    }

    #[pyo3(signature = (*, forget_extremes=false))]
    fn iostat<'py>(&self, py: Python<'py>, forget_extremes: bool) -> PyResult<Bound<'py, PyDict>> {
        let bdev = self.get().map_err(|error| to_python(py, &error))?;
        let stat = bdev.iostat();
        let totals = stat.totals();
        let dict = PyDict::new(py);
        for (kind, bytes, sum) in [
            ("read", "bytes_read", totals.read),
            ("write", "bytes_written", totals.write),
            ("unmap", "bytes_unmapped", totals.unmap),
        ] {
            dict.set_item(bytes, sum.bytes)?;
            dict.set_item(format!("num_{kind}_ops"), sum.ops)?;
            dict.set_item(format!("{kind}_latency_ns"), clock::to_ns(sum.ticks))?;
            dict.set_item(format!("max_{kind}_latency_ns"), clock::to_ns(sum.max))?;
            dict.set_item(format!("min_{kind}_latency_ns"), clock::to_ns(sum.min.unwrap_or(0)))?;
        }
        dict.set_item("num_flush_ops", totals.flushes)?;
        dict.set_item("num_errors", totals.errors)?;
        if forget_extremes {
            stat.forget_extremes();
        }
        Ok(dict)
    }

    fn ubi_status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let bdev = self.get().map_err(|error| to_python(py, &error))?;
        let Some(overlay) = bdev.ubi() else {
            let message = format!("{} is not a ubi bdev", bdev.info().name);
            return Err(to_python(py, &Error::new(ErrorKind::Unsupported, message)));
        };
        let status = overlay.status();
        let dict = PyDict::new(py);
        dict.set_item("uuid", status.uuid.to_string())?;
        dict.set_item("state", status.state.as_str())?;
        dict.set_item("epoch", status.epoch)?;
        dict.set_item("map_path", status.map_path)?;
        dict.set_item("acknowledged_by", status.acknowledged_by)?;
        dict.set_item("recovered", status.recovered)?;
        dict.set_item("image_path", status.image_path)?;
        dict.set_item("image_size_bytes", status.image_size_bytes)?;
        dict.set_item("stripe_size_kb", status.stripe_size_kb)?;
        dict.set_item("stripes_total", status.stripes_total)?;
        dict.set_item("stripes_present", status.stripes_present)?;
        dict.set_item("stripes_filling", status.stripes_filling)?;
        dict.set_item("stripes_published", status.stripes_published)?;
        dict.set_item("fetched_bytes", status.fetched_bytes)?;
        dict.set_item("bytes_written_to_base", status.bytes_written_to_base)?;
        dict.set_item("metadata_bytes_written", status.metadata_bytes_written)?;
        dict.set_item("syncs", status.syncs)?;
        dict.set_item("fetch_errors", status.fetch_errors)?;
        dict.set_item("sync_failed", status.sync_failed)?;
        dict.set_item("copy_on_read", status.copy_on_read)?;
        dict.set_item("no_sync", status.no_sync)?;
        dict.set_item("directio", status.directio)?;
        dict.set_item("last_error", status.last_error)?;
        Ok(dict)
    }

    #[pyo3(signature = (num_blocks=None))]
    fn resize(&self, py: Python<'_>, num_blocks: Option<u64>) -> PyResult<()> {
        let resized = py.detach(|| {
            let bdev = self.get()?;
            if bdev.ubi().is_none() {
                return bdev.resize(num_blocks);
            }
            self.reactor.run(move || {
                Box::pin(async move { if let Some(volume) = bdev.ubi() { volume.grow().await } else { Ok(()) } })
            })
        });
        resized.map_err(|error| to_python(py, &error))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.handle.close(&self.reactor)).map_err(|error| to_python(py, &error))
    }
}
