"""Step times of any GPU and model as the sum of their kernels, at every level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.model import ModelSpec, Weight
from kavier.ecosystem.vllm_versions import is_async, rules_of
from kavier.scenario import Engine
from kavier.timing.attention import AttentionLayers, attention_layers, has_flash_kernel
from kavier.timing.collectives import MEASURED_DEGREES, all_reduce
from kavier.timing.compiled import ATTENTION, HOST, NO_WINDOW, PRICE, Shares, StepTables
from kavier.timing.gemm import TokenOp, compute_dtype, gemm_kind, gemm_roof
from kavier.timing.linear import Rank, Small, head_ops, layer_ops
from kavier.timing.moe import expert_kind
from kavier.timing.parameters import (
    Parameters,
    attention_kernel,
    is_datacenter_blackwell,
    parameters_of,
)
from kavier.timing.step import StepCost, StepWork, UnitCosts
from kavier.units import MS_PER_S, US_PER_S

LARGEST_GRAPH = 512
LARGEST_GRAPH_ON_DATACENTER_BLACKWELL = 1024


class DatasheetTiming:
    """Prices a step by the sum of its kernels.

    GPU time = layers * (GEMMs + experts + small kernels)[padded tokens] + all-reduces[padded tokens]
    + attention over the KV cache + (logits + all-gather + sampler)[sampled rows]. A synchronous engine adds
    the host's work, of an asynchronous one a step takes at least as long as that.

    Args:
        model: The model served.
        gpu: One GPU of the replica.
        engine: Resolved settings: max_num_seqs and max_num_batched_tokens are numbers.
        parameters: Numbers of the kernels; None = the best there are for this GPU.

    Attributes:
        level: "calibrated", "kernels" or "datasheet", see `parameters.parameters_of`.
    """

    def __init__(
        self, model: ModelSpec, gpu: GpuSpec, engine: Engine, parameters: Parameters | None = None
    ) -> None:
        if engine.max_num_seqs is None or engine.max_num_batched_tokens is None:
            raise ValueError("the engine settings are not resolved: max_num_seqs or max_num_batched_tokens")
        p = parameters or parameters_of(gpu)
        self.level: str = p.level
        self._model, self._gpu, self._engine, self._parameters = model, gpu, engine, p
        rank = Rank.of(model, gpu, p, engine)
        body, head = _body(rank), [(1, op) for op in head_ops(rank, sampler_of(model, engine))]
        sizes = graph_sizes(engine.max_num_seqs, engine.max_num_batched_tokens, largest_graph(gpu))
        step_s, row_s = p["host.step_s"], p["host.row_s"]
        hidden = is_async(engine)
        self._body = _Prices(body, engine.max_num_batched_tokens, sizes, 0.0 if hidden else step_s)
        self._head = _Prices(head, engine.max_num_seqs, [], per_token_s=0.0 if hidden else row_s)
        self._host_s = step_s + row_s * np.arange(engine.max_num_seqs + 1) if hidden else np.zeros(1)
        self._body_flops = sum(count * op.flops_per_token for count, op in body)
        self._head_flops = sum(count * op.flops_per_token for count, op in head)
        kinds = Counter(layer.attention for layer in model.layers)
        self._attention = [attention_layers(gpu, p, kind, engine, count) for kind, count in kinds.items()]
        self._shares = self._make_shares(_activation_bytes(body), _activation_bytes(head))

    def cost(self, work: StepWork) -> StepCost:
        """Time, and FLOPs and bytes of the useful (unpadded) work, on one GPU."""
        tokens = work.prefill_tokens + work.decodes
        if tokens <= 0:
            raise ValueError("a step has at least one token")
        rows = work.sampled
        time_s, memory_bytes = self._body[tokens]
        flops = tokens * self._body_flops
        if rows:
            head_s, head_bytes = self._head[rows]
            time_s += head_s
            memory_bytes += head_bytes
            flops += rows * self._head_flops
        for layers in self._attention:
            attention_s, attention_flops, kv_bytes = layers.cost(work)
            time_s += attention_s
            flops += attention_flops
            memory_bytes += kv_bytes
        return StepCost(max(time_s, self._least_s(rows)), flops, memory_bytes)

    def _least_s(self, rows: int) -> float:
        """What the host takes for a step of so many sampled rows, if it works beside the GPU."""
        return float(self._host_s[min(rows, len(self._host_s) - 1)])

    def unit_costs(self, work: StepWork) -> UnitCosts:
        """Bytes and FLOPs over what the GPU reaches; those of weights are shared."""
        shares, tokens, rows = self._shares, work.prefill_tokens + work.decodes, work.sampled
        shared_s = shares.step_s + shares.byte_s * self._body[tokens][1] - tokens * shares.token_bytes_s
        shared_s += shares.byte_s * self._head[rows][1] - rows * shares.row_bytes_s
        attention = _attention_costs(self._attention, work, shares.byte_s, shares.flop_s)
        return UnitCosts(shared_s, shares.prefill_s, shares.decode_s, shares.row_s, *attention)

    def _make_shares(self, token_bytes: float, row_bytes: float) -> Shares:
        """The host's work of a step is shared where it is added to the GPU's."""
        p = self._parameters
        roof = gemm_roof(self._gpu, p, kind_of_gemm(self._model, self._gpu))
        byte_s = 1.0 / roof.bytes_per_s
        flop_s = 1.0 / (self._gpu.flops_per_s["bf16"] * p["attention.prefill.compute_efficiency"])
        token_s = self._body_flops / roof.flops_per_s + byte_s * token_bytes
        unlimited = [layers for layers in self._attention if layers.window is None]
        one_of_each = StepWork(1, 1, 1, 2, 1, 1, 1)
        decode_context_s, pair_s, prefill_context_s, cached_s = _attention_costs(
            unlimited, one_of_each, byte_s, flop_s
        )
        return Shares(
            step_s=0.0 if is_async(self._engine) else p["host.step_s"],
            byte_s=byte_s,
            flop_s=flop_s,
            token_bytes_s=byte_s * token_bytes,
            row_bytes_s=byte_s * row_bytes,
            context_s=0.0,
            prefill_s=token_s,
            decode_s=token_s,
            row_s=self._head_flops / roof.flops_per_s + byte_s * row_bytes,
            decode_context_s=decode_context_s,
            pair_s=pair_s,
            prefill_context_s=prefill_context_s,
            cached_s=cached_s,
        )

    def compiled(self) -> StepTables:
        """Everything `cost` looks up or multiplies with, as arrays."""
        return StepTables(
            body=self._body.table,
            head=self._head.table,
            host=self._host_s.astype(HOST),
            body_flops=float(self._body_flops),
            head_flops=float(self._head_flops),
            attention=np.array([_attention_row(layers) for layers in self._attention], ATTENTION),
            shares=self._shares,
        )

    def assumptions(self) -> list[str]:
        """What this level assumes for this model, GPU and engine, one sentence each."""
        return list(_assumptions(self._model, self._gpu, self._engine, self._parameters))


class _Prices:
    """(seconds, bytes) of a number of tokens, which fill up the graph of the next of `sizes`.

    Attributes:
        table: PRICE of 0 to `limit` tokens; of none, nothing.
    """

    def __init__(
        self,
        ops: Sequence[tuple[int, TokenOp]],
        limit: int,
        sizes: Sequence[int],
        fixed_s: float = 0.0,
        per_token_s: float = 0.0,
    ) -> None:
        self._ops, self._limit, self._sizes = ops, limit, sizes
        self._fixed_s, self._per_token_s = fixed_s, per_token_s
        self.table = np.zeros(limit + 1, PRICE)
        self.table["time_s"], self.table["bytes"] = self._price(np.arange(limit + 1))
        self.table[0] = (0.0, 0.0)
        self._known = list(zip(self.table["time_s"].tolist(), self.table["bytes"].tolist(), strict=True))

    def __getitem__(self, tokens: int) -> tuple[float, float]:
        if tokens <= self._limit:
            return self._known[tokens]
        time_s, memory_bytes = self._price(np.array([tokens]))
        return time_s.item(), memory_bytes.item()

    def _price(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        padded = pad(tokens, self._sizes)
        time_s = np.asarray(self._fixed_s + self._per_token_s * tokens, np.float64)
        memory_bytes = np.zeros(len(tokens))
        for count, op in self._ops:
            time_s += count * op.time_s(padded)
            memory_bytes += count * op.memory_bytes(tokens)
        return time_s, memory_bytes


def _activation_bytes(ops: Sequence[tuple[int, TokenOp]]) -> float:
    """Of a token (or row): what is moved besides weights."""
    return sum(count * op.bytes_per_token for count, op in ops if isinstance(op, Small))


def _attention_costs(
    attention: Sequence[AttentionLayers], work: StepWork, byte_s: float, flop_s: float
) -> tuple[float, float, float, float]:
    """The last four of `UnitCosts`."""
    costs_s = [layers.unit_costs(work, byte_s=byte_s, flop_s=flop_s) for layers in attention]
    decode_context_s, pair_s, prefill_context_s, cached_s = (
        sum(column) for column in zip(*costs_s, (0.0,) * 4, strict=True)
    )
    return decode_context_s, pair_s, prefill_context_s, cached_s


def _attention_row(layers: AttentionLayers) -> tuple[float, ...]:
    """The values of ATTENTION, in its order."""
    window = NO_WINDOW if layers.window is None else layers.window
    own = {**asdict(layers), **asdict(layers.work), "window": window}
    return tuple(own[name] for name in ATTENTION.names or ())


def _body(rank: Rank) -> list[tuple[int, TokenOp]]:
    """(how often, part) of everything that depends on the step's tokens."""
    kinds = Counter(rank.model.layers)
    parts = [(count, op) for layer, count in kinds.items() for op in layer_ops(rank, layer)]
    if rank.degree > 1:
        # Behind attention and MLP of each layer, and behind the embedding, whose vocabulary is split.
        reductions = 2 * len(rank.model.layers) + 1
        reduce = all_reduce(rank.gpu, rank.parameters, rank.degree, rank.model.hidden_size)
        parts.append((reductions, reduce))
    return parts


def sampler_of(model: ModelSpec, engine: Engine) -> str:
    """How rows are sampled: "plain", "sort" (top-k and top-p by sorting logits) or "select" (without).

    vLLM takes sampling defaults from the model's generation_config; until 0.15 it sorts for top-k and top-p,
    then it selects (Triton kernels of pull request 33538, FlashInfer's by default since 40376).
    """
    filtered = engine.sampling == "top-k-top-p" or (engine.sampling == "auto" and model.top_k_top_p)
    if not filtered:
        return "plain"
    return "sort" if rules_of(engine).sorting_sampler else "select"


def largest_graph(gpu: GpuSpec) -> int:
    """Most tokens that vLLM 0.33 captures a CUDA graph for by default: more on compute capability 10.x."""
    return LARGEST_GRAPH_ON_DATACENTER_BLACKWELL if is_datacenter_blackwell(gpu) else LARGEST_GRAPH


def graph_sizes(max_num_seqs: int, max_num_batched_tokens: int, ceiling: int = LARGEST_GRAPH) -> list[int]:
    """Token counts that vLLM 0.33 captures CUDA graphs for, ascending.

    As `VllmConfig._set_cudagraph_sizes` (vllm/config/vllm.py, 0.33.0) without speculative decoding: a grid
    up to 2 * max_num_seqs, the ceiling or max_num_batched_tokens, and both settings themselves if they fit.
    """
    largest = min(2 * max_num_seqs, ceiling, max_num_batched_tokens)
    grid = [1, 2, 4, *range(8, 256, 8), *range(256, ceiling + 1, 16), max_num_seqs, max_num_batched_tokens]
    return sorted({size for size in grid if size <= largest})


def pad(tokens: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """The smallest graph that holds `tokens`; `tokens` itself beyond the largest graph."""
    graphs = np.array([*sizes, np.iinfo(np.int64).max])
    found: NDArray[np.int64] = graphs[np.searchsorted(graphs, tokens)]
    return np.where(found == graphs[-1], tokens, found)


def _assumptions(model: ModelSpec, gpu: GpuSpec, engine: Engine, p: Parameters) -> Iterator[str]:
    if p.measured:
        yield f"step time: {_kernels_of(gpu, p)}, {_measured_run(p, 'of a run of this model on it')}"
        yield from _unmeasured(model, gpu, engine, p)
    else:
        constants = "datasheet peaks with kernel constants shared by GPUs"
        yield f"step time: {constants}, {_measured_run(p, 'of this one')}"
    if p.calibration and (apart := ", ".join(p.calibration.elsewhere(gpu.name, model.name, engine))):
        yield f"the calibration belongs to another configuration: {apart}"
    yield _host_assumption(engine, p)
    yield _SAMPLERS[sampler_of(model, engine)]
    yield from _weight_assumptions(model, gpu, p)
    yield from _attention_assumptions(model, gpu, engine)
    if model.num_experts:
        yield _expert_assumption(engine)
    if (degree := _linked_gpus(engine)) > 1:
        yield _link_assumption(gpu, degree, p)


_SAMPLERS = {
    "plain": "sampling is greedy or plain random",
    "sort": "sampling by top-k and top-p, as the model's generation_config asks, sorts each row's logits",
    "select": "sampling by top-k and top-p, as the model's generation_config asks, without sorting logits",
}


def _measured_run(p: Parameters, missing: str) -> str:
    """What a measured run corrected."""
    if p.calibration is None:
        return f"not corrected by a measurement {missing}"
    numbers = p.calibration.values.items()
    said = (f"{name.removeprefix('calibration.')} {value:.4g}" for name, value in numbers)
    return f"calibrated ({', '.join(said)}) on {p.calibration.source}"


def _kernels_of(gpu: GpuSpec, p: Parameters) -> str:
    if not p.own:
        return f"measured kernels of {gpu.name}"
    return f"your kernels of {gpu.name} in {p.folder} ({', '.join(sorted(p.own))})"


def _unmeasured(model: ModelSpec, gpu: GpuSpec, engine: Engine, p: Parameters) -> Iterator[str]:
    """What is priced with shared constants although the GPU's kernels were measured."""
    needed = {f"gemm.{kind_of_gemm(model, gpu)}", "attention.decode", "attention.prefill"}
    needed |= groups_of_experts(model, gpu)
    if (degree := _linked_gpus(engine)) > 1:
        nearest = next((d for d in MEASURED_DEGREES if d >= degree), MEASURED_DEGREES[-1])
        needed.add(f"collectives.tp{nearest}")
    if missing := sorted(needed - p.measured):
        yield f"not measured on {gpu.name}, so priced with shared constants: {', '.join(missing)}"


def _linked_gpus(engine: Engine) -> int:
    """GPUs that talk to each other in a step."""
    return engine.tensor_parallel_size * engine.data_parallel_size


def kind_of_gemm(model: ModelSpec, gpu: GpuSpec) -> str:
    """How the matrices of attention are multiplied: see `gemm.gemm_kind`."""
    dense = model.weight_dtype if model.is_quantized(Weight("attention", 1)) else "bf16"
    return gemm_kind(gpu, dense, model.quant_group_size)


def groups_of_experts(model: ModelSpec, gpu: GpuSpec) -> set[str]:
    """The groups that its experts take, if it has any."""
    if not model.num_experts:
        return set()
    return {f"moe.{expert_kind(gpu, model.weight_dtype, model.quant_group_size)}"}


def _host_assumption(engine: Engine, p: Parameters) -> str:
    step_ms, row_us = p["host.step_s"] * MS_PER_S, p["host.row_s"] * US_PER_S
    work = f"host work, {step_ms:.2g} ms a step and {row_us:.2g} us a request"
    if is_async(engine):
        return f"{work}, goes on beside the GPU (asynchronous scheduling): a step takes at least as long"
    return f"{work}, is added to each step (synchronous scheduling)"


def _expert_assumption(engine: Engine) -> str:
    routing = "expert routing is balanced" if not engine.expert_skew else "experts are chosen by a power law"
    gpus = _linked_gpus(engine)
    if not engine.enable_expert_parallel:
        return f"{routing}; each expert is split over {gpus} GPUs" if gpus > 1 else routing
    return f"{routing}; whole experts are spread over {gpus} GPUs, whose engines have equal batches"


def _weight_assumptions(model: ModelSpec, gpu: GpuSpec, p: Parameters) -> Iterator[str]:
    dtype = model.weight_dtype
    if gpu.vendor != "nvidia":
        yield f"no kernel of {gpu.name}'s vendor is behind the constants: expect larger errors"
    sustained = p.calibration is not None and "calibration.compute_factor" in p.calibration.values
    if not p.measured and not sustained and gpu.tdp_w <= LIMITED_CARD_W:
        yield "a power limit that lowers clocks slows prefills (A10, 150 W: 1.4 to 1.6 times, measured)"
    if dtype == "fp8" and compute_dtype(gpu, dtype) != "fp8":
        yield f"{gpu.name} has no fp8: weights are read as fp8 and computed at the bf16 peak"
    elif dtype not in ("bf16", "fp8"):
        yield f"{dtype} weights are read as {dtype} and computed at the bf16 peak, dequantising is free"


def _attention_assumptions(model: ModelSpec, gpu: GpuSpec, engine: Engine) -> Iterator[str]:
    if any(layer.attention.window for layer in model.layers):
        yield (
            "sliding windows cut sums over the batch: exact where all requests are inside or all beyond the "
            "window, an upper bound otherwise"
        )
    if any(layer.attention.kind == "mla" for layer in model.layers):
        yield "MLA decodes on latents, prefill expands them; no MLA kernel was measured"
    if attention_kernel(gpu) != "flash2":
        return
    if engine.kv_cache_dtype == "fp8":
        yield "FlashAttention-2 reads no fp8 KV: the kernel that vLLM takes instead is priced like it"
    if not all(has_flash_kernel(layer.attention) for layer in model.layers):
        yield "attention with sinks, and MLA, take other kernels than FlashAttention-2; none was measured"
    else:
        yield (
            "FlashAttention-2: a prefill in the batch, or a sliding window, slows decodes, which are then "
            "computed like blocks of query rows (measured on RTX 4090 and RTX PRO 6000)"
        )


LIMITED_CARD_W = 350.0
"""Cards of so little power, those on PCIe, may hold their peak clocks for no long prefill."""


def _link_assumption(gpu: GpuSpec, degree: int, p: Parameters) -> str:
    measured = "as measured on it" if "collectives.tp2" in p.measured else "by the measured share of others"
    link = f"all-reduces over {gpu.interconnect}, and the all-gather of logits like them, {measured}"
    if gpu.interconnect == "pcie":
        return f"{link}; hosts with other peer access differ by up to 4 times"
    if degree > MEASURED_DEGREES[-1]:
        return f"{link} at {MEASURED_DEGREES[-1]} GPUs, as if all {degree} shared one NVLink domain"
    return link
