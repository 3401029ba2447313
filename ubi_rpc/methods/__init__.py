"""The JSON-RPC methods, one file a namespace. This is the list that is served, in rpc_get_methods' order."""

from ubi_rpc.methods import bdev, framework, nbd, rpc, ubi

METHODS = (
    *framework.METHODS,
    *rpc.METHODS,
    *bdev.METHODS,
    *ubi.METHODS,
    *nbd.METHODS,
)
