"""What the forward pass keeps for the gradients, tensor by tensor.

There are two counts. Differentiation by JAX keeps what each operation's derivative reads, equal values once. XLA, compiling
the whole step, keeps what products of matrices read and gave and what is slow to compute, and computes the rest again: no
mask, of a norm one array, of an activation its input and perhaps an exponential. Both are held against measurement by
`tests/planning`, the second block by block: what each more block adds to a compiled step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras

from keras_tfm.layers import FeedForward
from keras_tfm.layers.mixture_of_experts import MixtureOfExperts
from keras_tfm.models.classifiers import Classifier
from keras_tfm.models.language_models import LanguageModel
from keras_tfm.ops.linear_crossentropy import CHUNK
from keras_tfm.planning.described import Described
from keras_tfm.planning.job import Job
from keras_tfm.planning.tensors import Tensor, total

# Arrays that an activation's derivative reads beside its output, each as wide as its input: what differentiation keeps (x,
# and what was computed on the way), and what XLA does.
ACTIVATION = {
    "relu": (0, 1),
    "squared_relu": (1, 1),
    "relu2": (1, 1),
    "gelu": (3, 3),
    "gelu_tanh": (5, 2),
    "gelu_new": (5, 2),
    "quick_gelu": (3, 2),
    "silu": (3, 2),
    "swish": (3, 2),
    "tanh": (1, 0),
    "sigmoid": (1, 0),
    "linear": (0, 0),
}
MASKED = ("relu", "squared_relu", "relu2")  # differentiation keeps a mask as well
UNKNOWN_ACTIVATION = (3, 2)
# The input less its mean, that times its inverse deviation, and the latter's derivative's factor; compiled, one of them.
NORM = (3, 1)


class Step:
    """Sizes of a training step that its tensors are made of.

    Args:
        described: The model.
        job: The step.
    """

    def __init__(self, described: Described, job: Job):
        self.described, self.job = described, job
        backbone = described.backbone
        policy = backbone.dtype_policy
        self.dtype = keras.backend.standardize_dtype(policy.compute_dtype)
        self.variable_dtype = keras.backend.standardize_dtype(policy.variable_dtype)
        self.rows = job.batch_size
        positions = described.config.num_positions if described.config.image_shape is not None else None
        self.length = positions or job.sequence_length
        self.width = described.config.hidden_dim

    @property
    def tokens(self) -> int:
        """A step's, of all devices together; an encoder-decoder's are counted on one side."""
        return self.rows * self.length

    def chunk(self, devices: int) -> int:
        """Tokens whose logits a device of so many that share the batch holds at a time."""
        tokens = -(-self.tokens // devices)
        if self.job.loss == "dense":
            return tokens
        return min(tokens, max(64, CHUNK // (self.described.config.vocabulary_size or 1) // 64 * 64))

    def chunks(self, devices: int) -> int:
        """How many of these it has."""
        return -(-self.tokens // devices // self.chunk(devices))

    def stream(self, name: str, dtype: str | None = None, count: int = 1, length: int | None = None) -> Tensor:
        """(rows, length, width): as wide as the residual stream."""
        return self.tensor(name, (("embed", self.width),), dtype, count, length)

    def tensor(
        self,
        name: str,
        sizes: tuple[tuple[str, int], ...],
        dtype: str | None = None,
        count: int = 1,
        length: int | None = None,
    ) -> Tensor:
        """(rows, length, *sizes)."""
        lead = (("rows", self.rows), ("length", length or self.length))
        return Tensor(name, (*lead, *sizes), dtype or self.dtype, count)


def places(described: Described) -> int | None:
    """How many tokens of a row the last block answers, where the head reads so many alone; None: all."""
    model = described.model
    last = described.backbone.blocks[-1]
    if not isinstance(model, Classifier) or not isinstance(last.feed_forward, FeedForward):
        return None
    kinds = ("first", "last", "pooler") if described.config.image_shape is None else ("first",)
    return 1 if model.pooling in kinds else None


def stacks(described: Described) -> list[tuple[list[Any], bool]]:
    """The blocks of each stack, and whether they attend to a context."""
    backbone = described.backbone
    found = [(list(backbone.blocks), False)]
    if described.config.kind == "encoder_decoder":
        found.append((list(backbone.decoder_blocks), True))
    return found


def norm(step: Step, name: str, length: int | None = None) -> list[Tensor]:
    """Of a layer or root-mean-square norm, whose statistics are float32 under any policy."""
    return [
        step.stream(f"{name}: centred, scaled", "float32", NORM[step.job.jit_compile], length),
        step.tensor(f"{name}: statistics", (), "float32", 3, length),
    ]


def attention(step: Step, layer: Any, name: str, queries: int | None = None, keys: int | None = None) -> list[Tensor]:
    """Of one attention layer: its input, queries, keys, values, probabilities and heads' outputs."""
    heads, kv_heads, head_dim = layer.num_heads, layer._kv_heads, layer._head_dim
    keys = keys or step.length
    head = (("head_dim", head_dim),)
    scores = (("heads", heads), ("keys", keys))
    found = [
        step.stream(f"{name}: input", length=max(queries or keys, step.length)),
        step.tensor(f"{name}: queries", (("heads", heads), *head), length=queries),
        step.tensor(f"{name}: keys and values", (("kv_heads", kv_heads), *head), count=2, length=keys),
        step.tensor(f"{name}: heads' outputs", (("heads", heads), *head), length=queries),
    ]
    if step.job.kernel == "fused":
        found.append(step.tensor(f"{name}: log-sums of scores", (("heads", heads),), "float32", length=queries))
    else:
        found.append(step.tensor(f"{name}: exponentials of scores", scores, "float32", length=queries))
        found.append(step.tensor(f"{name}: probabilities", scores, length=queries))
        found.append(step.tensor(f"{name}: sums of scores", (("heads", heads),), "float32", 2, queries))
        if layer.dropout:
            found.append(step.tensor(f"{name}: dropout mask", scores, "bool", length=queries))
        if layer.logit_softcap is not None:
            found.append(step.tensor(f"{name}: capped scores", scores, "float32", length=queries))
    if layer.qk_norm is not None:
        of_norm = NORM[step.job.jit_compile]
        found.append(step.tensor(f"{name}: norm of queries", (("heads", heads), *head), "float32", of_norm, queries))
        found.append(step.tensor(f"{name}: norm of keys", (("kv_heads", kv_heads), *head), "float32", of_norm, keys))
    if layer.gate is not None:
        wide = head_dim if layer.output_gate == "elementwise" else 1
        found.append(step.tensor(f"{name}: gate", (("heads", heads), ("head_dim", wide)), count=2, length=queries))
        found.append(step.tensor(f"{name}: gated outputs", (("heads", heads), *head), length=queries))
    return found


def feed_forward(step: Step, layer: Any, length: int | None = None) -> list[Tensor]:
    """Of one feed-forward layer, or of experts."""
    if isinstance(layer, MixtureOfExperts):
        return experts(step, layer)
    name, inner = "feed-forward", (("mlp", layer.intermediate_dim),)
    kept, mask = _kept(step, layer.activation)
    found = [
        step.stream(f"{name}: input", length=length),
        step.tensor(f"{name}: of the second product's input", inner, length=length),
    ]
    if kept:
        found.append(step.tensor(f"{name}: activation", inner, count=kept, length=length))
    if mask:
        found.append(step.tensor(f"{name}: activation's mask", inner, "bool", length=length))
    if layer.gated:
        again = step.job.jit_compile and _name(layer.activation) in MASKED  # the gate, from what gave it
        found.append(step.tensor(f"{name}: gate and what it multiplies", inner, count=2 - again, length=length))
    if layer.dropout:
        found.append(step.tensor(f"{name}: dropout mask", inner, "bool", length=length))
    return found


def experts(step: Step, layer: Any) -> list[Tensor]:
    """Of experts: each device sorts the tokens of its rows, and has room for all of them, whichever experts it has."""
    chosen, inner = step.length * layer.top_k, (("inner", layer.intermediate_dim),)
    kept, mask = _kept(step, layer.activation)
    found = [
        step.stream("experts: input"),
        step.stream("experts: inputs and outputs by expert", count=2, length=chosen),
        step.tensor("experts: activation", inner, count=kept + 1 + (2 if layer.gated else 0), length=chosen),
        step.tensor("experts: router", (("all", layer.num_experts),), "float32", 2),
    ]
    if mask:
        found.append(step.tensor("experts: activation's mask", inner, "bool", length=chosen))
    return found + (feed_forward(step, layer.shared) if layer.shared is not None else [])


def _name(activation: Any) -> str:
    return activation if isinstance(activation, str) else getattr(activation, "__name__", "")


def _kept(step: Step, activation: Any) -> tuple[int, bool]:
    """Arrays kept for an activation's derivative, and whether a mask is."""
    name = _name(activation)
    return ACTIVATION.get(name, UNKNOWN_ACTIVATION)[step.job.jit_compile], name in MASKED


def block(step: Step, layer: Any, cross: bool = False, queries: int | None = None) -> list[Tensor]:
    """Of one block. `queries` is `places`."""
    found = attention(step, layer.attention, "attention", queries)
    residuals = [(layer.attention_residual, step.length), (layer.feed_forward_residual, queries or step.length)]
    if cross and layer.cross_attention is not None:
        found += attention(step, layer.cross_attention, "cross-attention")
        residuals.append((layer.cross_attention_residual, step.length))
    more = feed_forward(step, layer.feed_forward, queries)
    found += more[1:] if layer.parallel == "shared_norm" else more  # which reads what attention reads
    for residual, length in residuals:
        for place in ("input_norm", "residual_norm", "output_norm"):
            if getattr(residual, place) is not None:
                at = queries if place == "output_norm" else length
                of = norm(step, place.replace("_", " "), at)
                again = layer.parallel and residual is layer.feed_forward_residual  # reads what attention's norm reads
                if again:
                    of = [] if step.job.jit_compile else [replace(of[0], count=1)]
                found += of
        if residual.dropout:
            found.append(step.stream("dropout mask", "bool", length=queries or step.length))
    return found


def saved(described: Described, job: Job) -> list[Tensor]:
    """All that is kept until the gradients are computed."""
    return [tensor for tensors in (*of_blocks(described, job), of_ends(described, job)) for tensor in tensors]


def of_blocks(described: Described, job: Job) -> list[list[Tensor]]:
    """What each block keeps, in the order in which blocks compute."""
    step, only = Step(described, job), places(described)
    found = []
    for blocks, cross in stacks(described):
        for index, layer in enumerate(blocks):
            if job.remat:
                tensors = [step.stream("input of a block")]
            else:
                tensors = block(step, layer, cross, only if index == len(blocks) - 1 else None)
            found.append(_without_masks(job, tensors))
    return found


def of_ends(described: Described, job: Job) -> list[Tensor]:
    """What is kept outside of blocks: by embeddings, final norms, the head and the loss."""
    step, backbone = Step(described, job), described.backbone
    found: list[Tensor] = []
    for prefix, _ in zip(("", "decoder_"), stacks(described), strict=False):
        if getattr(backbone, f"{prefix}embedding_norm") is not None:
            found += [*norm(step, "norm of embeddings"), step.stream("embeddings")]
        if described.config.dropout:
            found.append(step.stream("dropout mask of embeddings", "bool"))
        if getattr(backbone, f"{prefix}final_norm") is not None:
            found += norm(step, "final norm", places(described))
    if backbone.patch_embedding is not None:
        height, width, channels = described.config.patch_shape or (0, 0, 0)
        found.append(step.tensor("patches", (("pixels", height * width * channels),)))
    return _without_masks(job, found + _head(step) + casts(step))


def _without_masks(job: Job, tensors: list[Tensor]) -> list[Tensor]:
    """Masks are drawn, or compared, again by a compiled step."""
    return [tensor for tensor in tensors if not (job.jit_compile and tensor.dtype == "bool")]


def recomputed(described: Described, job: Job) -> list[list[Tensor]]:
    """With recomputation, what each block's second pass keeps while its gradients are computed; nothing without."""
    step = Step(described, job)
    return [
        _without_masks(job, block(step, layer, cross)) if job.remat else []
        for blocks, cross in stacks(described)
        for layer in blocks
    ]


def slopes(described: Described, job: Job) -> list[list[Tensor]]:
    """Of each block, the largest gradients by activations that are there together: of the feed-forward, or of attention."""
    step, only = Step(described, job), places(described)
    found = []
    for blocks, _ in stacks(described):
        for index, layer in enumerate(blocks):
            queries = only if index == len(blocks) - 1 else None
            scores = (("heads", layer.attention.num_heads), ("keys", step.length))
            attends = [step.stream("gradient of attention's input")]
            if job.kernel == "dense":
                attends.append(step.tensor("gradient of scores", scores, "float32", length=queries))
            found.append(max(attends, _feed_forward_slopes(step, layer.feed_forward, queries), key=total))
    return found


def _feed_forward_slopes(step: Step, layer: Any, queries: int | None) -> list[Tensor]:
    if isinstance(layer, MixtureOfExperts):
        chosen = step.length * layer.top_k
        return [
            step.tensor(
                "gradient of experts, inner", (("inner", layer.intermediate_dim),), None, 1 + layer.gated, chosen
            ),
            step.stream("gradients by expert", count=2, length=chosen),
        ]
    inner = (("mlp", layer.intermediate_dim),)
    return [
        step.tensor("gradient of the second product's input", inner, count=1 + layer.gated, length=queries),
        step.stream("gradient of the feed-forward's input", length=queries),
    ]


def casts(step: Step) -> list[Tensor]:
    """Under mixed precision, the weights as products read them: kept, for the gradients read them too."""
    if step.dtype == step.variable_dtype:
        return []
    reads_table = isinstance(step.described.model, LanguageModel) and step.job.loss == "dense"
    looked_up = ("positions",) if reads_table else ("positions", "vocab")
    matrices = [
        v for v in step.described.weights if v.trainable and len(v.shape) > 1 and not set(looked_up) & set(v.axes or ())
    ]
    return [
        Tensor(
            "weights in the compute dtype",
            tuple((axis or "", size) for axis, size in zip(v.axes or [""] * len(v.shape), v.shape, strict=True)),
            step.dtype,
        )
        for v in matrices
    ]


def _head(step: Step) -> list[Tensor]:
    """Of the head and the loss."""
    model, config = step.described.model, step.described.config
    if not isinstance(model, LanguageModel):
        return []
    found: list[Tensor] = []
    width = config.embedding_dim or step.width
    if getattr(model, "head", None) is not None:  # of masked tokens: a layer, a norm
        hidden = (("mlp", width),)  # as its weights are split
        kept, mask = _kept(step, model.head.activation)
        found += [
            step.stream("head: input"),
            step.tensor("head: activation", hidden, count=kept),
            *norm(step, "head's norm"),
        ]
        found += [step.tensor("head: activation's mask", hidden, "bool")] if mask else []
    found.append(step.tensor("states that the vocabulary's product reads", (("embed", width),)))
    vocabulary = ("vocab", config.vocabulary_size or 0)
    if step.job.loss == "dense":
        found.append(step.tensor("exponentials of logits", (vocabulary,), "float32"))
    else:  # the loss computes its gradients at once
        found.append(step.tensor("gradient of the states", (("embed", width),)))
        found.append(Tensor("gradient of the table", (vocabulary, ("embed", width)), step.dtype))
        found.append(Tensor("gradient of the logits' bias", (vocabulary,), "float32"))
    return found


def passing(described: Described, job: Job, devices: int = 1) -> list[Tensor]:
    """What is held for a moment, where a step takes most: the loss's own arrays, where so many devices share a batch."""
    step, config = Step(described, job), described.config
    if not isinstance(described.model, LanguageModel):
        return []
    vocabulary = ("vocab", config.vocabulary_size or 0)
    arrays = 1 if job.jit_compile else 2  # XLA puts one of the two in the other's place
    if job.loss == "dense":
        logits = step.tensor("logits", (vocabulary,))
        return [replace(logits, name="gradient of the logits", dtype="float32"), logits][:arrays]
    width = config.embedding_dim or step.width
    return [
        Tensor("a chunk's logits and their gradient", (("tokens", step.chunk(devices)), vocabulary), "float32", arrays),
        Tensor("sum of the table's gradients", (vocabulary, ("embed", width)), "float32"),
        step.tensor("states in order", (("embed", width),)),
    ]
