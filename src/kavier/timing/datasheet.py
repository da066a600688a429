"""Step-time level "datasheet": any GPU, any model, from first principles and shared kernel constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.model import ModelSpec
from kavier.ecosystem.vllm_versions import is_async
from kavier.scenario import Engine
from kavier.timing.attention import AttentionLayers, attention_layers, has_mixed_penalty
from kavier.timing.collectives import MEASURED_DEGREES, all_reduce
from kavier.timing.compiled import ATTENTION, NO_WINDOW, PRICE, Shares, StepTables
from kavier.timing.constants import CONSTANTS
from kavier.timing.gemm import TokenOp, compute_dtype, gemm_roof, is_datacenter_blackwell, memory_class
from kavier.timing.linear import Rank, Small, head_ops, layer_ops
from kavier.timing.step import StepCost, StepWork, UnitCosts

LARGEST_GRAPH = 512
LARGEST_GRAPH_ON_DATACENTER_BLACKWELL = 1024


class DatasheetTiming:
    """Prices a step by the sum of its kernels (timing level "datasheet").

    time = layers * (GEMMs + small kernels)[padded tokens] + all-reduces[padded tokens]
    + attention over the KV cache + (logits + all-gather + sampler)[sampled rows]. No host work is added.

    Args:
        model: The model served.
        gpu: One GPU of the replica.
        engine: Resolved settings: max_num_seqs and max_num_batched_tokens are numbers.
    """

    level = "datasheet"

    def __init__(self, model: ModelSpec, gpu: GpuSpec, engine: Engine) -> None:
        if engine.max_num_seqs is None or engine.max_num_batched_tokens is None:
            raise ValueError("the engine settings are not resolved: max_num_seqs or max_num_batched_tokens")
        self._model, self._gpu, self._engine = model, gpu, engine
        rank = Rank(model, gpu, engine.tensor_parallel_size)
        body, head = _body(rank), [(1, op) for op in head_ops(rank)]
        sizes = graph_sizes(engine.max_num_seqs, engine.max_num_batched_tokens, largest_graph(gpu))
        self._body = _Prices(body, engine.max_num_batched_tokens, sizes)
        self._head = _Prices(head, engine.max_num_seqs, [])
        self._body_flops = sum(count * op.flops_per_token for count, op in body)
        self._head_flops = sum(count * op.flops_per_token for count, op in head)
        kinds = Counter(layer.attention for layer in model.layers)
        self._attention = [attention_layers(gpu, kind, engine, count) for kind, count in kinds.items()]
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
        return StepCost(time_s, flops, memory_bytes)

    def unit_costs(self, work: StepWork) -> UnitCosts:
        """Bytes and FLOPs over what the GPU reaches; those of weights are shared."""
        shares, tokens, rows = self._shares, work.prefill_tokens + work.decodes, work.sampled
        shared_s = shares.step_s + shares.byte_s * self._body[tokens][1] - tokens * shares.token_bytes_s
        shared_s += shares.byte_s * self._head[rows][1] - rows * shares.row_bytes_s
        attention = _attention_costs(self._attention, work, shares.byte_s, shares.flop_s)
        return UnitCosts(shared_s, shares.prefill_s, shares.decode_s, shares.row_s, *attention)

    def _make_shares(self, token_bytes: float, row_bytes: float) -> Shares:
        """No host work is priced, so none is shared."""
        roof = gemm_roof(self._gpu, self._model.weight_dtype)
        byte_s = 1.0 / roof.bytes_per_s
        flop_s = 1.0 / (self._gpu.flops_per_s["bf16"] * CONSTANTS["attention.compute_efficiency"])
        token_s = self._body_flops / roof.flops_per_s + byte_s * token_bytes
        unlimited = [layers for layers in self._attention if layers.window is None]
        one_of_each = StepWork(1, 1, 1, 2, 1, 1, 1)
        decode_context_s, pair_s, prefill_context_s, cached_s = _attention_costs(
            unlimited, one_of_each, byte_s, flop_s
        )
        return Shares(
            step_s=0.0,
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
            body_flops=float(self._body_flops),
            head_flops=float(self._head_flops),
            attention=np.array([_attention_row(layers) for layers in self._attention], ATTENTION),
            shares=self._shares,
        )

    def assumptions(self) -> list[str]:
        """What this level assumes for this model, GPU and engine, one sentence each."""
        return list(_assumptions(self._model, self._gpu, self._engine))


class _Prices:
    """(seconds, bytes) of a number of tokens, which fill up the graph of the next of `sizes`.

    Attributes:
        table: PRICE of 0 to `limit` tokens; of none, nothing.
    """

    def __init__(self, ops: Sequence[tuple[int, TokenOp]], limit: int, sizes: Sequence[int]) -> None:
        self._ops, self._limit, self._sizes = ops, limit, sizes
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
        time_s, memory_bytes = np.zeros(len(tokens)), np.zeros(len(tokens))
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
        parts.append((reductions, all_reduce(rank.gpu, rank.degree, rank.model.hidden_size)))
    return parts


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


def _assumptions(model: ModelSpec, gpu: GpuSpec, engine: Engine) -> Iterator[str]:
    yield (
        "step time: datasheet peaks with kernel constants shared by all GPUs, no measurement of this one; "
        + _evidence(model)
    )
    hidden = "asynchronous scheduling hides it" if is_async(engine) else "here it would not be hidden"
    yield f"host work is not added to the step ({hidden}), nor is client or HTTP time"
    yield "sampling is greedy or plain random; top-k and top-p would add time per row"
    yield from _weight_assumptions(model, gpu)
    yield from _attention_assumptions(model, gpu)
    if any(layer.mlp.experts for layer in model.layers):
        yield "expert routing is balanced; experts are split by tensor parallelism, not spread over GPUs"
    if (degree := engine.tensor_parallel_size) > 1:
        yield _link_assumption(gpu, degree)


def _evidence(model: ModelSpec) -> str:
    unlike = {
        "mixture-of-experts": any(layer.mlp.experts for layer in model.layers),
        "MLA": any(layer.attention.kind == "mla" for layer in model.layers),
        "sliding-window": any(layer.attention.window for layer in model.layers),
        model.weight_dtype: model.weight_dtype != "bf16",
    }
    if kinds := [kind for kind, applies in unlike.items() if applies]:
        return f"no measured step time of {' or '.join(kinds)} models is behind it"
    return "mean step times of bf16 dense models came out within 3 to 10 % on GPUs left out of the fit"


def _weight_assumptions(model: ModelSpec, gpu: GpuSpec) -> Iterator[str]:
    dtype = model.weight_dtype
    if gpu.vendor != "nvidia":
        yield f"no kernel of {gpu.name}'s vendor is behind the constants: expect larger errors"
    if memory_class(gpu) == "gddr6":
        yield "cards whose power limit lowers their clocks prefill slower (A10: 1.3 to 1.5 times, measured)"
    if compute_dtype(gpu, dtype) == "fp8":
        yield "fp8 GEMM constants come from one GPU (H100); single kernels miss by 8 to 17 %"
    elif dtype == "fp8":
        yield f"{gpu.name} has no fp8: weights are read as fp8 and computed at the bf16 peak"
    elif dtype != "bf16":
        yield f"{dtype} weights are read as {dtype} and computed at the bf16 peak, dequantising is free"


def _attention_assumptions(model: ModelSpec, gpu: GpuSpec) -> Iterator[str]:
    if any(layer.attention.window for layer in model.layers):
        yield (
            "sliding windows cut sums over the batch: exact where all requests are inside or all beyond the "
            "window, an upper bound otherwise"
        )
    if any(layer.attention.kind == "mla" for layer in model.layers):
        yield "MLA decodes on latents, prefill expands them; no MLA kernel was measured"
    if has_mixed_penalty(gpu):
        yield (
            "FlashAttention-2: a prefill in the batch slows decodes by query heads per KV head "
            "(measured at 4, linear elsewhere)"
        )


def _link_assumption(gpu: GpuSpec, degree: int) -> str:
    link = (
        f"all-reduces over {gpu.interconnect}, and the all-gather of logits like them, "
        "by the all-reduce's measured share of its bandwidth"
    )
    if gpu.interconnect == "pcie":
        return f"{link}, peer to peer; hosts without peer access are up to 4 times slower"
    if gpu.interconnect != "nvlink":
        return f"{link} on NVLink"
    if degree > MEASURED_DEGREES[-1]:
        return f"{link} at {MEASURED_DEGREES[-1]} GPUs, as if all {degree} shared one NVLink domain"
    return link
