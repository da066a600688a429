"""A router of one's own, a plain function: who holds the prompt's prefix, weighed against who is busy.

Fewest outstanding knows no caches and computes prompts again and again. Longest match knows no load: a
replica with too many prefixes, by chance, queues (in one of the first four seeds). The blend does neither.

Run it: .venv/bin/python examples/own_router.py   (about 3 s)
With a scenario of yours: kavier run my.yaml --replicas 4 --router examples/own_router.py:least_work
"""

import kavier

BLOCKS_A_REQUEST = 20  # one more request in a replica's batch weighs as much as this many blocks to compute


def least_work(request, replicas):
    """Index of the replica with the least to do. Numba compiles plain loops like this: it costs no speed."""
    best, least = 0, 1e300
    for index, replica in enumerate(replicas):
        to_compute = request.prompt_blocks - replica.matched_blocks
        if to_compute + BLOCKS_A_REQUEST * replica.num_outstanding < least:
            best, least = index, to_compute + BLOCKS_A_REQUEST * replica.num_outstanding
    return best


PROMPTS = {"kind": "lognormal", "mean": 300, "p50": 150, "max": 4000}
PREFIXES = {"system_prompts": 32, "system_prompt_tokens": 8000}  # a replica's memory holds a part of them
LOAD = {"num_prompts": 6000, "arrivals": {"request_rate": 15}, "prompt_tokens": PROMPTS}
LOAD |= {"output_tokens": {"mean": 100}, "prefixes": PREFIXES}
SCENARIO = {"model": "meta-llama/Llama-3.1-8B", "engine": {"max_model_len": 16384}}
ROUTERS = {"least-outstanding": None, "longest-prefix-match": None, "least_work": least_work}

if __name__ == "__main__":  # not when Kavier takes the router from this file
    print("router                 hit ratio    TTFT P50    TTFT P99   engine")
    for name, own in ROUTERS.items():
        fleet = {"gpu": "L40S", "replicas": 4, "router": "round-robin" if own else name}
        scenario = SCENARIO | {"fleet": fleet, "workload": {"synthetic": LOAD}}
        found = kavier.simulate(scenario, router=own).summary
        ttft, hits, engine = found["ttft_s"], found["cache"]["hit_ratio"], found["engine"]["name"]
        print(f"{name:22}{hits:10.1%}{ttft['p50']:10.2f} s{ttft['p99']:10.2f} s   {engine}")
