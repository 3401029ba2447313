//! What tools do to a base that no daemon has open: look at it, plan a repair, carry it out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::aio::{AioBdev, AioOptions, Cache};
use ubi_engine::bdev::ubi::examine::{Recovery, Request};
use ubi_engine::bdev::ubi::inspect::{self, Problem, Report};
use ubi_engine::bdev::ubi::repair::{self, Choice};
use ubi_engine::bdev::ubi::state_dir::{self, StateDir};
use ubi_engine::bdev::ubi::superblock::{StoredImage, Superblock};
use ubi_engine::bdev::ubi::uuid::boot_id;
use ubi_engine::error::{Error, ErrorKind, Result};
use ubi_engine::image::Image;
use ubi_engine::image::file::FileImage;
use ubi_engine::reactor::exec;

use crate::error::to_python;

/// A base as tools open it: through the page cache, with the locks that the daemon takes.
fn open_base(path: &Path, block_size: Option<u32>, readonly: bool, wait_s: f64) -> Result<AioBdev> {
    let lock_wait = Duration::try_from_secs_f64(wait_s).map_err(|_| {
        Error::new(ErrorKind::InvalidParams, format!("a wait of {wait_s} s: a number from 0 on is needed"))
    })?;
    let is_file = std::fs::metadata(path).is_ok_and(|meta| meta.is_file());
    AioBdev::open(&AioOptions {
        name: path.display().to_string(),
        path: path.into(),
        block_size: block_size.or(is_file.then_some(512)),
        readonly,
        cache: Cache::Writeback,
        fallocate: false,
        lock_wait,
    })
}

fn stored_image(path: &Path) -> Result<StoredImage> {
    let identity = FileImage::open(path, false)?.identity();
    Ok(StoredImage { kind: identity.kind.into(), size_bytes: identity.size_bytes, tag: identity.tag })
}

/// See `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (path, *, image_path=None, stripe_size_kb=None, block_size=None, wait_s=0.0))]
pub fn ubi_inspect<'py>(
    py: Python<'py>,
    path: PathBuf,
    image_path: Option<PathBuf>,
    stripe_size_kb: Option<u32>,
    block_size: Option<u32>,
    wait_s: f64,
) -> PyResult<Bound<'py, PyDict>> {
    let looked = py.detach(|| {
        let image = image_path.as_deref().map(stored_image).transpose()?;
        let base = open_base(&path, block_size, true, wait_s)?;
        let info = base.info().clone();
        let request =
            Request { base: info.name.clone(), image, stripe_size_kb, boot_id: boot_id(), ..Request::default() };
        let report = exec::block_on(async move { inspect::inspect(&base, &StateDir::new(None), &request).await })?;
        Ok((info, report))
    });
    let (info, report) = looked.map_err(|error: Error| to_python(py, &error))?;
    let dict = report_dict(py, &report)?;
    dict.set_item("path", &info.name)?;
    dict.set_item("size_bytes", info.size_bytes())?;
    dict.set_item("block_size", info.block_size)?;
    Ok(dict)
}

/// What is asked of a repair.
fn repair_request(
    base: &AioBdev,
    image: Option<&Path>,
    stripe_size_kb: Option<u32>,
    uuid: Option<&str>,
) -> Result<Request> {
    let image = image.map(stored_image).transpose()?;
    let uuid = uuid.map(str::parse).transpose()?;
    let base = base.info().name.clone();
    Ok(Request { base, image, stripe_size_kb, uuid, boot_id: boot_id(), ..Request::default() })
}

fn choice_of(name: &str) -> PyResult<Choice> {
    match name {
        "keep" => Ok(Choice::Keep),
        "drop" => Ok(Choice::Drop),
        other => Err(PyValueError::new_err(format!("choice {other:?}: keep or drop"))),
    }
}

/// See `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (path, *, choice, image_path=None, stripe_size_kb=None, uuid=None, block_size=None, wait_s=0.0))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
pub fn ubi_plan_repair<'py>(
    py: Python<'py>,
    path: PathBuf,
    choice: &str,
    image_path: Option<PathBuf>,
    stripe_size_kb: Option<u32>,
    uuid: Option<&str>,
    block_size: Option<u32>,
    wait_s: f64,
) -> PyResult<Bound<'py, PyDict>> {
    let choice = choice_of(choice)?;
    let planned = py.detach(|| {
        let base = open_base(&path, block_size, true, wait_s)?;
        let request = repair_request(&base, image_path.as_deref(), stripe_size_kb, uuid)?;
        exec::block_on(async move { repair::plan(&base, &StateDir::new(None), &request, choice).await })
    });
    let plan = planned.map_err(|error: Error| to_python(py, &error))?;
    let dict = PyDict::new(py);
    let problems = plan.problems.iter().map(|problem| problem_dict(py, problem)).collect::<PyResult<Vec<_>>>()?;
    dict.set_item("problems", problems)?;
    dict.set_item("steps", plan.steps)?;
    dict.set_item("loses", plan.loses)?;
    dict.set_item("token", plan.token)?;
    Ok(dict)
}

/// See `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (
    path, *, choice, token, image_path=None, stripe_size_kb=None, uuid=None, block_size=None, wait_s=0.0
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
pub fn ubi_repair(
    py: Python<'_>,
    path: PathBuf,
    choice: &str,
    token: u64,
    image_path: Option<PathBuf>,
    stripe_size_kb: Option<u32>,
    uuid: Option<&str>,
    block_size: Option<u32>,
    wait_s: f64,
) -> PyResult<()> {
    let choice = choice_of(choice)?;
    let repaired = py.detach(|| {
        let base = open_base(&path, block_size, false, wait_s)?;
        let request = repair_request(&base, image_path.as_deref(), stripe_size_kb, uuid)?;
        exec::block_on(async move { repair::apply(&base, &StateDir::new(None), &request, choice, token).await })
    });
    repaired.map_err(|error: Error| to_python(py, &error))
}

/// See `_native.pyi`.
#[pyfunction]
pub fn sweep_maps(py: Python<'_>, state_dir: PathBuf) -> PyResult<usize> {
    let swept = py.detach(|| state_dir::sweep(&state_dir));
    swept.map_err(|error| to_python(py, &Error::from_io(format_args!("read {}", state_dir.display()), &error)))
}

fn report_dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("verdict", report.verdict.as_str())?;
    let recovery = report.recovery.map(|recovery| match recovery {
        Recovery::WithMap => "map",
        Recovery::Headers | Recovery::Discarding => "headers",
    });
    dict.set_item("recovery", recovery)?;
    dict.set_item("version", report.minor.map(|minor| format!("0.{minor}")))?;
    dict.set_item("slots", report.slots)?;
    let superblock = report.superblock.as_ref().map(|superblock| superblock_dict(py, superblock)).transpose()?;
    dict.set_item("superblock", superblock)?;
    dict.set_item("stripe_size_kb", report.stripe_size_kb)?;
    dict.set_item("stripes_total", report.stripes_total)?;
    dict.set_item("stripes_set", report.stripes_set)?;
    let problems = report.problems.iter().map(|problem| problem_dict(py, problem)).collect::<PyResult<Vec<_>>>()?;
    dict.set_item("problems", problems)?;
    Ok(dict)
}

fn superblock_dict<'py>(py: Python<'py>, superblock: &Superblock) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("state", superblock.state.as_str())?;
    dict.set_item("uuid", superblock.uuid.to_string())?;
    dict.set_item("sequence", superblock.sequence)?;
    dict.set_item("epoch", superblock.epoch)?;
    dict.set_item("boot_id", (!superblock.boot_id.is_nil()).then(|| superblock.boot_id.to_string()))?;
    dict.set_item("stripe_size_kb", superblock.stripe_size_kb)?;
    dict.set_item("image_end", superblock.image_end)?;
    dict.set_item("image_kind", &superblock.image.kind)?;
    dict.set_item("image_size_bytes", superblock.image.size_bytes)?;
    dict.set_item("image_tag", &superblock.image.tag)?;
    dict.set_item("set_headers", superblock.set_headers)?;
    dict.set_item("digest_states", format!("{:016x}", superblock.digests.states))?;
    dict.set_item("digest_checks", format!("{:016x}", superblock.digests.checks))?;
    let features = superblock.features;
    dict.set_item("features", [features.compatible, features.read_only_compatible, features.incompatible])?;
    let path = &superblock.map_path;
    dict.set_item("map_path", (!path.is_empty()).then(|| String::from_utf8_lossy(path)))?;
    Ok(dict)
}

fn problem_dict<'py>(py: Python<'py>, problem: &Problem) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", problem.name.as_str())?;
    dict.set_item("message", &problem.message)?;
    dict.set_item("sectors", &problem.sectors)?;
    let ranges: Vec<(u32, u32)> = problem.stripes.iter().map(|range| (range.start, range.end)).collect();
    dict.set_item("stripes", ranges)?;
    Ok(dict)
}
