"""How many replicas meet an objective: TTFT under 0.5 s and 50 ms a token for 99 % of the requests.

Two minutes of Azure-like conversation at twice the published rate. Fewer replicas cost less only while
they still answer in time, so the loop adds one until they do.

Run it: .venv/bin/python examples/fleet_size.py   (about 1 s)
"""

import kavier

RATE = 2 * 5.53  # requests/s
OBJECTIVES = {"ttft_s": 0.5, "tpot_s": 0.05}
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
            "slo": OBJECTIVES,
        }
    )


limits = ", ".join(f"{name} at most {limit_s} s" for name, limit_s in OBJECTIVES.items())
print(f"objective: {limits}, for {TARGET:.0%} of the requests")
print("replicas   good requests   TTFT P99   running of max_num_seqs   USD per M tokens")
for replicas in range(2, 8):
    result = serve(replicas)
    summary, seats = result.summary, result.scenario.engine.max_num_seqs
    good = summary["goodput"]["good_ratio"]
    print(
        f"{replicas:8} {good:15.1%} {summary['ttft_s']['p99']:8.2f} s"
        f"{summary['utilization']['mean_running_requests']:10.1f} of {seats:<13}"
        f"{summary['cost']['usd_per_million_tokens']:15.3f}"
    )
    if good >= TARGET:
        print(f"{replicas} replicas are enough")
        break
