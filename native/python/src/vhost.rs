//! `VhostController`: a vhost-user-blk socket and the bdev behind it.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use ubi_engine::frontend::vhost_user::controller::{SessionInfo, VhostController};

use crate::error::to_python;

#[pyclass(frozen, name = "VhostController", module = "ubi_rpc._native")]
pub struct PyVhostController {
    controller: VhostController,
}

impl PyVhostController {
    pub fn new(controller: VhostController) -> Self {
        Self { controller }
    }
}

#[pymethods]
impl PyVhostController {
    #[getter]
    fn path(&self) -> String {
        self.controller.path().display().to_string()
    }

    fn open(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.controller.open()).map_err(|error| to_python(py, &error))
    }

    #[pyo3(signature = (*, delay_base_us, iops_threshold))]
    fn set_coalescing(&self, delay_base_us: u32, iops_threshold: u32) {
        self.controller.set_coalescing(delay_base_us, iops_threshold);
    }

    fn sessions<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let sessions = py.detach(|| self.controller.sessions());
        let entry = |session: SessionInfo| {
            let dict = PyDict::new(py);
            dict.set_item("vid", session.vid)?;
            dict.set_item("id", session.id)?;
            dict.set_item("started", session.started)?;
            dict.set_item("max_queues", session.max_queues)?;
            dict.set_item("inflight_task_cnt", session.in_flight)?;
            Ok(dict)
        };
        sessions.into_iter().map(entry).collect()
    }

    fn notify_config_change(&self, py: Python<'_>) {
        py.detach(|| self.controller.notify_config_change());
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.controller.close());
    }
}
