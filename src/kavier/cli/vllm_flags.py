"""Flags of `vllm serve` and `vllm bench serve` that Kavier does not have: why, and what to do instead.

Read off vLLM 0.11.0 to 0.33.0. A flag whose effect is not simulated must not be passed over in silence, and
"did you mean" would offer flags that have nothing to do with it.
"""

from __future__ import annotations

import re

_NO_EFFECT = "has no effect on a simulation: leave it out"
_UNMODELLED = "Kavier does not model"

_SHORT = {
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-q": "--quantization",
    "-n": "--nnodes",
    "-sc": "--speculative-config",
    "-cc": "--compilation-config",
    "-O": "--optimization-level",
}

_REASONS = {
    f"{_UNMODELLED}: split a model over GPUs with --tensor-parallel-size": """
        pipeline-parallel-size decode-context-parallel-size prefill-context-parallel-size nnodes node-rank
        master-addr master-port""",
    f"{_UNMODELLED}: give several engines with --data-parallel-size or --replicas, and what sends requests "
    "to them with --router": """
        data-parallel-size-local data-parallel-rank data-parallel-start-rank
        data-parallel-address data-parallel-rpc-port data-parallel-backend data-parallel-external-lb
        data-parallel-hybrid-lb api-server-count""",
    f"{_UNMODELLED}: experts stay where they are put, and all engines send as many tokens": """
        enable-eplb eplb-config expert-placement-strategy all2all-backend
        num-redundant-experts enable-elastic-ep enable-ep-weight-filter""",
    "Kavier does not have: name a quantised model with --model (see `kavier catalog models`), or the path of "
    "a config.json that has a quantization_config": "quantization quantization-config",
    "Kavier does not have: write the change into a config.json and give its path with --model": """
        hf-overrides hf-config-path rope-scaling rope-theta disable-sliding-window""",
    "Kavier does not have: give the number of KV blocks with --num-gpu-blocks-override": """
        kv-cache-memory-bytes""",
    "has no effect in vLLM's V1 engine, which computes again what it preempted: leave it out": "swap-space",
    f"{_UNMODELLED}: each step gives a request one token. Leave it out": """
        speculative-config spec-method spec-model spec-tokens num-lookahead-slots""",
    f"{_UNMODELLED}: every run is of the base model, without LoRA adapters. Leave it out": """
        enable-lora enable-lora-bias max-loras max-lora-rank max-cpu-loras lora-modules lora-dtype
        lora-extra-vocab-size lora-target-modules fully-sharded-loras default-mm-loras lora-assignment""",
    f"{_UNMODELLED}: weights have to fit in GPU memory, if need be over more GPUs with "
    "--tensor-parallel-size": """
        cpu-offload-gb cpu-offload-params offload-backend offload-group-size offload-num-in-group
        offload-params offload-prefetch-step""",
    f"{_UNMODELLED}: KV stays in the memory of the GPU that computed it, where --enable-prefix-caching "
    "finds it. Leave it out": """
        kv-transfer-config kv-offloading-size kv-offloading-backend kv-sharing-fast-prefill ec-transfer-config
        ec-manager-config""",
    f"{_UNMODELLED}: steps run as CUDA graphs. Leave it out; without graphs they take longer": """
        enforce-eager compilation-config cudagraph-capture-sizes max-cudagraph-capture-size
        optimization-level cuda-graph-sizes max-seq-len-to-capture""",
    f"{_UNMODELLED}: step times are of one kernel model for all; your own goes with --timing "
    "FILE.py:FUNCTION": """
        attention-backend attention-config moe-backend linear-backend kernel-config disable-custom-all-reduce
        disable-cascade-attn enable-dbo dbo-decode-token-threshold dbo-prefill-token-threshold
        performance-mode""",
    "Kavier does not have: an order of admission of your own goes with --scheduling-policy "
    "FILE.py:FUNCTION": "scheduler-cls",
    f"{_UNMODELLED}: what limits a batch is --max-num-seqs, --max-num-batched-tokens and "
    "--long-prefill-token-threshold": """
        max-num-partial-prefills max-long-partial-prefills max-num-scheduled-tokens max-num-active-seqs
        prefill-schedule-interval long-prefill-token-threshold-adaptive""",
    f"{_UNMODELLED}: no request is refused for the length of the queue; --max-concurrency limits what "
    "clients send": "max-num-queued-reqs max-num-queued-tokens",
    f"{_UNMODELLED}: every prompt is text. Leave it out": """
        limit-mm-per-prompt mm-processor-kwargs mm-processor-cache-gb mm-encoder-tp-mode
        mm-encoder-attn-backend mm-encoder-only media-io-kwargs skip-mm-profiling language-model-only
        interleave-mm-strings enable-multimodal-chat random-mm-base-items-per-request enable-mm-embeds
        disable-chunked-mm-input disable-mm-preprocessor-cache enable-multimodal-encoder-data-parallel
        mm-device-do-normalize mm-encoder-attn-dtype mm-encoder-fp8-scale-path mm-hasher-algorithm
        mm-encoder-fp8-scale-save-margin mm-encoder-fp8-scale-save-path mm-ipc-gpu-memory-gb
        mm-processor-cache-type mm-processor-device mm-shm-cache-max-object-size-mb mm-tensor-ipc
        enable-prompt-embeds video-pruning-method video-pruning-rate random-mm-bucket-config
        random-mm-limit-mm-per-prompt random-mm-num-mm-items-range-ratio asr-max-audio-len-sec
        asr-min-audio-len-sec""",
    "Kavier does not have: what sampling costs is --set engine.sampling=plain (greedy, or plain random) or "
    "top-k-top-p; without it the model's generation_config decides": """
        override-generation-config generation-config temperature top-k top-p""",
    f"{_UNMODELLED}: answers are as long as the workload says, and drawn without it. Leave it out": """
        structured-outputs-config guided-decoding-backend logits-processors max-logprobs logprobs min-p
        use-beam-search frequency-penalty presence-penalty repetition-penalty ignore-eos""",
    "Kavier does not have: a scenario file (YAML) goes without a flag, see docs/scenario.md": "config",
    "Kavier does not have: a file goes with --trace, in a format of docs/traces.md; --random-input-len and "
    "--random-output-len make what vLLM's dataset `random` does, --preset a published workload": """
        dataset-name dataset-path custom-output-len sharegpt-output-len hf-name hf-split hf-subset
        hf-output-len no-oversample custom-skip-chat-template blazedit-max-distance blazedit-min-distance
        spec-bench-category spec-bench-output-len speed-bench-category speed-bench-dataset-subset
        speed-bench-output-len sonnet-input-len sonnet-output-len sonnet-prefix-len bfcl-categories""",
    "Kavier does not have: --random-input-len, --random-output-len and --random-range-ratio are the names "
    "here": "input-len output-len range-ratio",
    "Kavier does not have: shared prefixes are keys of the scenario, "
    "--set workload.synthetic.prefixes.system_prompts=1 and system_prompt_tokens likewise": """
        random-prefix-len prefix-repetition-prefix-len prefix-repetition-suffix-len
        prefix-repetition-num-prefixes prefix-repetition-output-len""",
    f"{_UNMODELLED}: a changing rate is --set workload.synthetic.arrivals.process=diurnal": """
        ramp-up-strategy ramp-up-start-rps ramp-up-end-rps""",
    "Kavier does not have: a run is kept in a folder with --out, its summary printed with --json": """
        save-result save-detailed append-result result-dir result-filename metadata label plot-timeline
        plot-dataset-stats""",
    "Kavier does not have: mean, P50, P90 and P99 are always told; --out keeps every request": """
        percentile-metrics metric-percentiles""",
    f"{_UNMODELLED}. Leave it out": """
        additional-config aux-output-config calculate-kv-scales cp-kv-cache-interleave-size
        dcp-comm-backend dcp-kv-cache-interleave-size dcp-q-replicate diffusion-config
        disable-hybrid-kv-cache-manager disable-nccl-for-dp-synchronization dp-sync-interval
        elastic-ep-max-dp-size enable-batch-sharded-sampling enable-flashinfer-autotune enable-hc-sp
        enable-mamba-cache-stochastic-rounding enable-mamba-shared-prefix-checkpoint
        enable-mixed-moe-lora-format enable-moe-shared-loras enable-tower-connector-lora engram-config
        eplb-log-balancedness eplb-step-interval eplb-window-size enable-fault-tolerance
        fault-tolerance-config gdn-prefill-backend ir-op-priority kda-decode-backend kda-prefill-backend
        kv-cache-dtype-skip-layers mamba-backend mamba-block-size mamba-cache-dtype mamba-cache-mode
        mamba-cache-philox-rounds mamba-ssm-cache-dtype mamba-ssu-algorithm max-lora-cls-labels
        model-class-overrides monokernel override-attention-dtype override-pooler-config pooler-config
        prefix-cache-retention-interval prefix-match-unit reasoning-config replayssm-buffer-len
        return-sampling-mask sparse-indexer-topk-backend specialize-active-lora swa-bounded-replay
        ubatch-size use-fp64-gumbel use-replayssm watermark-config device-memory-utilization device-ids
        probe-request-rate stream-interval distributed-executor-backend worker-cls worker-extension-cls
        numa-bind numa-bind-cpus numa-bind-nodes enable-return-routed-experts random-batch-size
        data-parallel-multi-port-external-lb""",
    _NO_EFFECT: """
        host port uds api-key root-path ssl-keyfile ssl-certfile ssl-ca-certs ssl-cert-reqs ssl-ciphers
        enable-ssl-refresh https headless grpc grpc-port allow-credentials allowed-origins allowed-methods
        allowed-headers middleware uvicorn-log-level disable-uvicorn-access-log disable-fastapi-docs
        enable-request-id-headers log-config-file log-level logging-config max-log-len disable-log-requests
        enable-log-requests disable-log-stats enable-log-outputs enable-log-deltas log-error-stack
        enable-server-load-tracking enable-prompt-tokens-details enable-force-include-usage
        otlp-traces-endpoint collect-detailed-traces show-hidden-metrics-for-version kv-cache-metrics
        cudagraph-metrics enable-mfu-metrics enable-layerwise-nvtx-tracing profiler-config shutdown-timeout
        aggregate-engine-logging kv-events-config served-model-name tokenizer tokenizer-mode
        tokenizer-revision skip-tokenizer-init renderer-num-workers revision code-revision trust-remote-code
        hf-token download-dir load-format model-loader-extra-config config-format model-impl
        safetensors-load-strategy use-tqdm-on-load ignore-patterns pt-load-map-location
        max-parallel-loading-workers enable-sleep-mode runner task convert chat-template
        chat-template-content-format response-role return-tokens-as-token-ids enable-auto-tool-choice
        exclude-tools-when-tool-choice-none tool-call-parser tool-parser-plugin tool-server reasoning-parser
        reasoning-parser-plugin allowed-local-media-path allowed-media-domains distributed-timeout-seconds
        cpu-distributed-timeout-seconds ray-workers-use-nsight prefix-caching-hash-algo logprobs-mode
        io-processor-plugin backend endpoint-type base-url endpoint header insecure
        disable-tqdm request-id-prefix extra-body no-stream num-warmups ready-check-timeout-sec profile
        disable-shuffle skip-chat-template allow-deprecated-quantization custom-histogram-buckets
        enable-logging-iteration-details enable-shm-tensor-arena
        enable-trace-replay fail-on-environ-validation guided-decoding-disable-additional-properties
        guided-decoding-disable-any-whitespace guided-decoding-disable-fallback jit-monitor-mode
        jit-monitor-verbose kv-cache-metrics-sample logits-processor-pattern
        per-request-spec-decode-metrics safetensors-prefetch-block-size safetensors-prefetch-num-threads
        sleep-mode-backend sleep-mode-offload-cudagraph sleep-preserve-parameter-names watchdog-config
        weight-transfer-config enable-cumem-allocator enable-nccl-comm-suspend""",
}
"""What is said of a flag -> the flags."""

WHY = {f"--{name}": reason for reason, names in _REASONS.items() for name in names.split()}
"""Flag of vLLM -> what is said of it."""


def why_not(typed: str) -> str | None:
    """What is wrong with a flag of vLLM, in its own spellings; None if it is not known here.

    Args:
        typed: `--enable-lora`, `--no-enable-lora`, `--speculative-config.method=x`, `-pp` or `-O3`.
    """
    flag = re.split(r"[=.]", typed)[0]
    name = _SHORT.get(flag.rstrip("0123456789"), flag)  # -O3
    reason = WHY.get(name) or WHY.get(name.replace("--no-", "--", 1))
    return f"{flag} is a flag of vLLM that {reason}" if reason else None
