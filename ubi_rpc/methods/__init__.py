"""The JSON-RPC methods, one file a namespace."""
