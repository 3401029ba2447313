//! `Engine`: starts the reactors, makes bdevs and listeners.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::aio::{AioBdev, AioOptions, Cache};
use ubi_engine::bdev::malloc::MallocBdev;
use ubi_engine::bdev::null::NullBdev;
use ubi_engine::bdev::ubi::state_dir::StateDir;
use ubi_engine::bdev::ubi::{self, UbiOptions};
use ubi_engine::engine::{Engine, EngineOptions};
use ubi_engine::error::{Error, ErrorKind, Result};
use ubi_engine::events::{Events, Level};
use ubi_engine::frontend::nbd::listener::ListenOptions;
use ubi_engine::frontend::socket_node::SocketAccess;
use ubi_engine::frontend::vhost_user::controller::ControllerOptions;
use ubi_engine::image::file::FileImage;
use ubi_engine::reactor::IoEngine;
use ubi_engine::sys::file::path_of;

use crate::bdev::PyBdev;
use crate::error::to_python;
use crate::listener::{PyNbdListener, PyTls};
use crate::vhost::PyVhostController;

/// How long to wait for another process to let go of a base: a killed daemon's writes may still be landing.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// The data plane.
#[pyclass(frozen, name = "Engine", module = "ubi_rpc._native")]
pub struct PyEngine {
    engine: Mutex<Option<Arc<Engine>>>,
    events: Arc<Events>,
    io_engine: &'static str,
    access: SocketAccess,
}

impl PyEngine {
    fn get(&self) -> Result<Arc<Engine>> {
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone();
        engine.ok_or_else(|| Error::new(ErrorKind::InvalidState, "the engine is shut down"))
    }

    fn listen_options(&self, tls: Option<PyTls>) -> ListenOptions {
        let events = Some(Arc::clone(&self.events));
        ListenOptions { tls: tls.map(PyTls::into_options), events, access: self.access }
    }

    /// Make a bdev with the interpreter lock released.
    fn create<B: Bdev + 'static>(
        &self,
        py: Python<'_>,
        make: impl FnOnce(&Arc<Engine>) -> Result<B> + Send,
    ) -> PyResult<PyBdev> {
        let made = py.detach(|| {
            let engine = self.get()?;
            let bdev: Arc<dyn Bdev> = Arc::new(make(&engine)?);
            Ok(PyBdev::new(&engine, bdev))
        });
        made.map_err(|error: Error| to_python(py, &error))
    }
}

#[pymethods]
impl PyEngine {
    #[new]
    #[pyo3(signature = (*, cpus, reactors, io_engine, memory_budget_bytes, socket_mode=0o600, socket_group=None))]
    fn new(
        py: Python<'_>,
        cpus: Option<Vec<usize>>,
        reactors: usize,
        io_engine: &str,
        memory_budget_bytes: usize,
        socket_mode: u32,
        socket_group: Option<u32>,
    ) -> PyResult<Self> {
        let io_engine = match io_engine {
            "auto" => None,
            "io_uring" => Some(IoEngine::IoUring),
            "threads" => Some(IoEngine::Threads),
            other => return Err(PyValueError::new_err(format!("io_engine {other:?}: auto, io_uring or threads"))),
        };
        let options = EngineOptions { cpus: cpus.unwrap_or_default(), reactors, io_engine, memory_budget_bytes };
        let events = Events::new();
        let events = events.map_err(|error| to_python(py, &Error::from_io("make an eventfd", &error)))?;
        let engine = py.detach(|| Engine::start(&options)).map_err(|error| to_python(py, &error))?;
        let io_engine = engine.io_engine().as_str();
        let access = SocketAccess { mode: socket_mode, group: socket_group };
        Ok(Self { engine: Mutex::new(Some(Arc::new(engine))), events, io_engine, access })
    }

    #[getter]
    fn io_engine(&self) -> &'static str {
        self.io_engine
    }

    #[getter]
    fn event_fd(&self) -> i32 {
        self.events.raw_fd()
    }

    fn drain_events(&self) -> Vec<(&'static str, String, String)> {
        self.events.drain().into_iter().map(|event| (event.level.as_str(), event.object, event.message)).collect()
    }

    #[pyo3(signature = (*, name, path, block_size, readonly, cache, fallocate, descriptor=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    fn create_aio(
        &self,
        py: Python<'_>,
        name: String,
        path: PathBuf,
        block_size: Option<u32>,
        readonly: bool,
        cache: &str,
        fallocate: bool,
        descriptor: Option<i32>,
    ) -> PyResult<PyBdev> {
        let cache = match cache {
            "none" => Cache::None,
            "writeback" => Cache::Writeback,
            other => return Err(PyValueError::new_err(format!("cache {other:?}: none or writeback"))),
        };
        let options = AioOptions { name, path, block_size, readonly, cache, fallocate, lock_wait: LOCK_WAIT };
        let source = descriptor.map_or_else(|| options.path.clone(), path_of);
        self.create(py, |_| {
            let bdev = AioBdev::open_by(&source, &options)?;
            if bdev.opened_elsewhere() == Some(true) {
                let message = format!("another program has {} open without a lock", options.path.display());
                self.events.post(Level::Warning, &options.name, message);
            }
            Ok(bdev)
        })
    }

    #[pyo3(signature = (*, name, num_blocks, block_size))]
    fn create_malloc(&self, py: Python<'_>, name: &str, num_blocks: u64, block_size: u32) -> PyResult<PyBdev> {
        self.create(py, |_| MallocBdev::new(name, num_blocks, block_size))
    }

    #[pyo3(signature = (*, name, num_blocks, block_size))]
    fn create_null(&self, py: Python<'_>, name: &str, num_blocks: u64, block_size: u32) -> PyResult<PyBdev> {
        self.create(py, |_| NullBdev::new(name, num_blocks, block_size))
    }

    #[pyo3(signature = (
        *, name, base, image_path, stripe_size_kb, no_sync, copy_on_read, directio, image_descriptor=None, uuid=None,
        wipe=false, adopt=false, recover=None, state_dir=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
    fn create_ubi(
        &self,
        py: Python<'_>,
        name: String,
        base: &PyBdev,
        image_path: PathBuf,
        stripe_size_kb: Option<u32>,
        no_sync: bool,
        copy_on_read: bool,
        directio: bool,
        image_descriptor: Option<i32>,
        uuid: Option<&str>,
        wipe: bool,
        adopt: bool,
        recover: Option<&str>,
        state_dir: Option<PathBuf>,
    ) -> PyResult<PyBdev> {
        let discard_unpublished = match recover {
            None => false,
            Some("discard_unpublished") => true,
            Some(other) => return Err(PyValueError::new_err(format!("recover {other:?}: discard_unpublished"))),
        };
        let uuid = uuid.map(str::parse).transpose().map_err(|error: Error| to_python(py, &error))?;
        let options = UbiOptions {
            name,
            stripe_size_kb,
            no_sync,
            copy_on_read,
            directio,
            uuid,
            wipe,
            adopt,
            discard_unpublished,
            host: Arc::new(StateDir::new(state_dir.as_deref())),
            events: Some(Arc::clone(&self.events)),
        };
        let source = image_descriptor.map_or_else(|| image_path.clone(), path_of);
        let made = py.detach(|| {
            let engine = self.get()?;
            let base = base.get()?;
            let image = FileImage::open_by(&source, &image_path, directio)?;
            let opened = engine.handle().run(move || Box::pin(async move { ubi::open(base, image, options).await }))?;
            Ok(PyBdev::new(&engine, opened))
        });
        made.map_err(|error: Error| to_python(py, &error))
    }

    #[pyo3(signature = (*, path, tls=None))]
    fn listen_nbd_unix(&self, py: Python<'_>, path: PathBuf, tls: Option<PyTls>) -> PyResult<PyNbdListener> {
        let options = self.listen_options(tls);
        let listener = py.detach(|| self.get()?.listen_nbd_unix(&path, options));
        listener.map(PyNbdListener::new).map_err(|error| to_python(py, &error))
    }

    #[pyo3(signature = (*, host, port, tls=None))]
    fn listen_nbd_tcp(&self, py: Python<'_>, host: &str, port: u16, tls: Option<PyTls>) -> PyResult<PyNbdListener> {
        let options = self.listen_options(tls);
        let listener = py.detach(|| self.get()?.listen_nbd_tcp(host, port, options));
        listener.map(PyNbdListener::new).map_err(|error| to_python(py, &error))
    }

    #[pyo3(signature = (*, name, path, bdev, readonly, cpus))]
    fn create_vhost_blk(
        &self,
        py: Python<'_>,
        name: String,
        path: PathBuf,
        bdev: &PyBdev,
        readonly: bool,
        cpus: Vec<usize>,
    ) -> PyResult<PyVhostController> {
        let created = py.detach(|| {
            let (bdev, access) = (bdev.get()?, self.access);
            let options = ControllerOptions { name, socket: path, bdev, readonly, cpus, access };
            self.get()?.create_vhost_blk(&self.events, options)
        });
        created.map(PyVhostController::new).map_err(|error| to_python(py, &error))
    }

    fn shutdown(&self, py: Python<'_>) {
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(engine));
    }
}
