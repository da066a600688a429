"""A router of one's own, a plain Python function: who holds the prompt's prefix, weighed against who is busy.

Run it: python examples/own_router.py   (about 10 s)
With a scenario of yours: kavier run my.yaml --replicas 4 --router examples/own_router.py:least_work
"""

import kavier

BLOCKS_A_REQUEST = 5  # one more request in a replica's batch weighs as much as this many blocks to compute


def least_work(request, replicas):
    """Index of the replica with the least to do. Numba compiles plain loops like this: it costs no speed."""
    best, least = 0, 1e300
    for index, replica in enumerate(replicas):
        to_compute = request.prompt_blocks - replica.matched_blocks
        work = to_compute + BLOCKS_A_REQUEST * replica.num_outstanding
        if work < least:
            best, least = index, work
    return best


TENANTS = {
    "num_prompts": 10_000,
    "arrivals": {"request_rate": 45},
    "prompt_tokens": {"kind": "lognormal", "mean": 300, "p50": 150, "max": 4000},
    "output_tokens": {"kind": "fixed", "mean": 150},
    "prefixes": {"system_prompts": 400, "system_prompt_tokens": 4000},
}

if __name__ == "__main__":  # not when Kavier takes the router from this file
    print("router                 hit ratio   TTFT P50   TTFT P99   engine")
    for router in ("least-outstanding", "longest-prefix-match", least_work):
        own, name = (router, router.__name__) if callable(router) else (None, router)
        fleet = {"gpu": "H100-SXM", "replicas": 4, "router": "round-robin" if own else name}
        scenario = {"model": "meta-llama/Llama-3.1-8B", "fleet": fleet, "workload": {"synthetic": TENANTS}}
        found = kavier.simulate(scenario, router=own).summary
        p50_ms, p99_ms = (found["ttft_s"][name] * 1e3 for name in ("p50", "p99"))
        hits, engine = found["cache"]["hit_ratio"], found["engine"]["name"]
        print(f"{name:22}{hits:10.1%}{p50_ms:8.0f} ms{p99_ms:8.0f} ms   {engine}")
