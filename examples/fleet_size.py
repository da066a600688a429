"""How many replicas meet an objective: TTFT under 0.5 s and 50 ms a token for 99 % of the requests.

Two minutes of Azure-like conversation at twice the published rate. Fewer replicas cost less only while
they still answer in time, so the loop adds one until they do.

Run it: python examples/fleet_size.py   (about 5 s)
"""

import kavier

RATE = 2 * 5.53  # requests/s
TARGET = 0.99


def serve(replicas: int) -> kavier.Result:
    """The same two minutes on this many replicas."""
    return kavier.simulate(
        {
            "model": "meta-llama/Llama-3.1-8B",
            "workload": {
                "synthetic": {
                    "preset": "azure-conversation",
                    "duration_s": 120,
                    "arrivals": {"request_rate": RATE},
                }
            },
            "fleet": {"gpu": "L40S", "replicas": replicas, "router": "least-outstanding"},
            "engine": {"max_model_len": 16384},
            "slo": {"ttft_s": 0.5, "tpot_s": 0.05},
        }
    )


print("replicas   good requests   TTFT P99   busy   USD per M tokens")
for replicas in range(2, 8):
    summary = serve(replicas).summary
    good = summary["goodput"]["good_ratio"]
    print(
        f"{replicas:8} {good:15.1%} {summary['ttft_s']['p99']:8.2f} s"
        f"{summary['utilization']['busy_ratio']:7.0%} {summary['cost']['usd_per_million_tokens']:13.3f}"
    )
    if good >= TARGET:
        print(f"{replicas} replicas are enough")
        break
