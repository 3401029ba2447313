"""The main job on a real disk image, told step by step: `make demo`."""
