"""The frontends: one file each. A frontend offers bdevs to clients outside the daemon."""
