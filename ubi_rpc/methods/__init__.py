"""The JSON-RPC methods, one file a namespace. This is the list that is served, in rpc_get_methods' order."""

from ubi_rpc.methods import bdev, config, framework, iostat, log, nbd, notify, options, rpc, threads, ubi, vhost

METHODS = (
    *framework.METHODS,
    *config.METHODS,
    *threads.METHODS,
    *log.METHODS,
    *notify.METHODS,
    *rpc.METHODS,
    *options.METHODS,
    *bdev.METHODS,
    *iostat.METHODS,
    *ubi.METHODS,
    *nbd.METHODS,
    *vhost.METHODS,
)
