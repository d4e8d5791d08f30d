"""Convert in small pieces: `ENGINE DATA OUT`. With ray on a cluster of two nodes with one worker each,
started on this machine."""

from __future__ import annotations

import sys

from stages.convert_data import pieces
from stages.convert_data.__main__ import main

if __name__ == "__main__":
    engine, data, out = sys.argv[1:4]
    pieces.SMALLEST = 100_000
    arguments = ["--data", data, "--out", out, "--engine", engine]
    if engine == "local":
        sys.exit(main([*arguments, "--workers", "1"]))
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    code = main(arguments)
    ray.shutdown()
    cluster.shutdown()
    sys.exit(code)
