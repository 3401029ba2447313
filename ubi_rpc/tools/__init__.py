"""`ubi`: commands for volumes that no daemon has open: `main` is the command line, the other files what it does."""
