"""What prefix caching is worth to a chat service: 12-turn sessions behind one of four system prompts.

Run it: .venv/bin/python examples/prefix_cache.py   (about 4 s)
"""

import kavier

CHAT = {
    "model": "meta-llama/Llama-3.1-8B",
    "fleet": {"gpu": "A100-80GB-SXM"},
    "workload": {
        "synthetic": {
            "num_prompts": 1000,
            "arrivals": {"request_rate": 4},
            "prompt_tokens": {"kind": "lognormal", "mean": 300, "p50": 150, "max": 4000},
            "output_tokens": {"kind": "fixed", "mean": 200},
            "prefixes": {
                "system_prompts": 4,
                "system_prompt_tokens": 1024,
                "mean_turns": 12,
                "mean_think_s": 20,
            },
        }
    },
}

print("prefix caching   hit ratio   TTFT P50   TTFT P99   GPU energy per output token")
for caching in (True, False):
    result = kavier.simulate(CHAT | {"engine": {"enable_prefix_caching": caching}})
    ttft, energy = result.summary["ttft_s"], result.summary["energy"]
    print(
        f"{'on' if caching else 'off':14} {result.summary['cache']['hit_ratio']:11.1%}"
        f"{ttft['p50'] * 1e3:8.0f} ms{ttft['p99'] * 1e3:8.0f} ms{energy['j_per_output_token']:10.2f} J"
    )
