"""The comparison with other servers, one command a table.

- `tables`: what each table measures and what it has to reach
- `direct`: O_DIRECT, beside the bare file
- `compare`: interleaved runs of the same load on several servers, and their medians
- `servers`: the peers, started the way their users start them
- `daemon`: ours, driven by JSON-RPC
- `load`: the two clients, nbd-load and fio
- `vhost`, `vhost_servers`: the same of virtual machines' disks, with vhost-load
- `pause`: how long they stand still when the daemon is killed and started again
- `control`: what is measured without a data path, over `rpc`
- `files`: files in the page cache, always in the same state
- `process`: other programs: their start, end, CPU time and CPUs
- `machine`, `report`: where it was measured, and the results

Run `python3 bench/run.py --help`. Nothing is printed that was not measured in that run.
"""
