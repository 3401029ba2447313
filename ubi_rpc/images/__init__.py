"""The image kinds: one file each. An image is what an overlay is initialised from; it is only ever read."""
