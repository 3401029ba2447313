"""Parameters of SPDK's option methods, with SPDK's defaults.

Nothing here acts on these values (there are no buffer pools, no accelerators, no NVMe controllers); they are checked,
kept and given back, so that scripts and configuration files of SPDK run unchanged.

Source: SPDK schema/schema.yaml, versions 23.09 to 26.09 together.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from ubi_rpc.params import Int32, Params, Text, UInt8, UInt16, UInt32, UInt64


class IobufOptions(Params):
    """Parameters of iobuf_set_options.

    Args:
        small_pool_count: small buffers in the pool, at least 64.
        large_pool_count: large buffers in the pool, at least 8.
        small_bufsize: bytes, at least 4096.
        large_bufsize: bytes, at least 8192 and not less than small_bufsize.
        enable_numa: a pool for each NUMA node.
    """

    small_pool_count: UInt64 = 8192
    large_pool_count: UInt64 = 1024
    small_bufsize: UInt32 = 8192
    large_bufsize: UInt32 = 135168
    enable_numa: bool = False


class AccelOptions(Params):
    """Parameters of accel_set_options.

    Args:
        small_cache_size: small buffers cached a thread.
        large_cache_size: large buffers cached a thread.
        task_count: tasks a channel.
        sequence_count: sequences a channel.
        buf_count: buffers a channel.
    """

    small_cache_size: UInt32 = 128
    large_cache_size: UInt32 = 16
    task_count: UInt32 = 2048
    sequence_count: UInt32 = 2048
    buf_count: UInt32 = 2048


class BdevOptions(Params):
    """Parameters of bdev_set_options.

    Args:
        bdev_io_pool_size: request structures; at least bdev_io_cache_size for each thread and one more.
        bdev_io_cache_size: request structures cached a thread.
        bdev_auto_examine: look at every new bdev by itself. Nothing here is examined either way.
        iobuf_small_cache_size: small buffers cached a thread.
        iobuf_large_cache_size: large buffers cached a thread.
    """

    bdev_io_pool_size: UInt32 = 65535
    bdev_io_cache_size: UInt32 = 256
    bdev_auto_examine: bool = True
    iobuf_small_cache_size: UInt32 = 128
    iobuf_large_cache_size: UInt32 = 16


class RaidOptions(Params):
    """Parameters of bdev_raid_set_options.

    Args:
        process_window_size_kb: KiB of a background process's window.
        process_max_bandwidth_mb_sec: MiB a second of a background process, 0 for no limit.
    """

    process_window_size_kb: UInt32 = 1024
    process_max_bandwidth_mb_sec: UInt32 = 0


class IscsiOptions(Params):
    """Parameters of bdev_iscsi_set_options.

    Args:
        timeout_sec: seconds that a command may take, 0 for ever.
    """

    timeout_sec: UInt64 = 30


class NvmeHotplug(Params):
    """Parameters of bdev_nvme_set_hotplug.

    Args:
        enable: watch for controllers that come and go.
        period_us: microseconds between two looks.
    """

    enable: bool
    period_us: UInt64 | None = None


class MultipathOptions(Params):
    """How I/O is spread over paths: the member multipath_opts of bdev_nvme_set_options."""

    policy: Text | None = None
    selector: Text | None = None
    min_io: UInt32 | None = None


class NvmeOptions(Params):
    """Parameters of bdev_nvme_set_options; each as SPDK documents it, none acted on."""

    action_on_timeout: Literal["none", "reset", "abort"] | None = None
    timeout_us: UInt64 | None = None
    timeout_admin_us: UInt64 | None = None
    keep_alive_timeout_ms: UInt32 | None = None
    retry_count: UInt32 | None = None
    arbitration_burst: UInt32 | None = None
    low_priority_weight: UInt32 | None = None
    medium_priority_weight: UInt32 | None = None
    high_priority_weight: UInt32 | None = None
    nvme_adminq_poll_period_us: UInt64 | None = None
    nvme_ioq_poll_period_us: UInt64 | None = None
    io_queue_requests: UInt32 | None = None
    delay_cmd_submit: bool | None = None
    transport_retry_count: UInt32 | None = None
    bdev_retry_count: Int32 | None = None
    transport_ack_timeout: UInt8 | None = None
    ctrlr_loss_timeout_sec: Int32 | None = None
    reconnect_delay_sec: UInt32 | None = None
    fast_io_fail_timeout_sec: UInt32 | None = None
    disable_auto_failback: bool | None = None
    generate_uuids: bool | None = None
    transport_tos: UInt8 | None = None
    nvme_error_stat: bool | None = None
    rdma_srq_size: UInt32 | None = None
    io_path_stat: bool | None = None
    allow_accel_sequence: bool | None = None
    rdma_max_cq_size: UInt32 | None = None
    rdma_cm_event_timeout_ms: UInt16 | None = None
    rdma_umr_per_io: bool | None = None
    tcp_connect_timeout_ms: UInt32 | None = None
    enable_flush: bool | None = None
    poll_group_requests: UInt32 | None = None
    dhchap_digests: list[Text] | None = None
    dhchap_dhgroups: list[Text] | None = None
    multipath_opts: MultipathOptions | None = None


class SockImplName(Params):
    """Parameters of sock_impl_get_options and sock_set_default_impl.

    Args:
        impl_name: posix, ssl or uring.
    """

    impl_name: Text


class SockImplOptions(Params):
    """Parameters of sock_impl_set_options; `impl_name` says of which implementation."""

    impl_name: Text
    recv_buf_size: UInt32 = 2097152
    send_buf_size: UInt32 = 2097152
    enable_recv_pipe: bool = True
    enable_zerocopy_send: bool = True
    enable_quickack: bool = False
    enable_placement_id: UInt32 = 0
    enable_zerocopy_send_server: bool = True
    enable_zerocopy_send_client: bool = False
    zerocopy_threshold: UInt32 = 0
    tls_version: UInt32 = 0
    enable_ktls: bool = False
    psk_key: Text | None = None
    psk_identity: Text | None = None


class SchedulerParams(Params):
    """Parameters of framework_set_scheduler; others are ignored, as SPDK does.

    Args:
        name: static or dynamic. Reactors stay where they are either way.
        period: microseconds between two decisions.
    """

    model_config = ConfigDict(extra="ignore")

    name: Text
    period: UInt64 | None = None
    load_limit: UInt8 | None = None
    core_limit: UInt8 | None = None
    core_busy: UInt8 | None = None
    mappings: Text | None = None


class SchedulerOptions(Params):
    """Parameters of scheduler_set_options.

    Args:
        isolated_core_mask: CPUs that are left alone.
        scheduling_core: CPU of the scheduler.
    """

    isolated_core_mask: Text | None = None
    scheduling_core: UInt32 | None = None


class MonitorParams(Params):
    """Parameters of framework_monitor_context_switch: turn the monitor on or off; left out, only ask."""

    enabled: bool | None = None
