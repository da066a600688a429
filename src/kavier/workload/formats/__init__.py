"""One file a trace format; `kavier.workload.read` lists them."""
