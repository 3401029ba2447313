"""What the tests with real parts stand on: the daemon as a process, an NBD client, images, a slow image."""
