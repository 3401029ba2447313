"""ubi_rpc: writable block devices made from images at once, driven by SPDK's JSON-RPC.

`daemon` puts the parts together; `rpc` and `methods` are the wire, `storage` the domain, `bdevs`, `images` and
`frontends` the kinds of objects, `engine` the border to the native data plane.
"""
