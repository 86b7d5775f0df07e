"""One training step of a BERT-like classifier and of a GPT-like model, as each library would have it.

The models of keras_tfm, KerasHub and Hugging Face start from the same weights; those of Keras's own layers and of
x-transformers, which has no biases in attention, from their own. All have the same sizes, data and loss, and Adam as each
library has it by default, but for Hugging Face's compiled model: it gets torch's fused one, as its trainer takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import gradient_step

SIZES = dict(
    vocabulary=8192, width=256, layers=4, heads=4, intermediate=1024, length=128, batch=16, dropout=0.1, classes=2
)
KINDS = ("bert", "gpt")
Step = Callable[[], object]
Sizes = dict[str, Any]


def flops(kind: str, sizes: Sizes = SIZES) -> float:
    """Matrix-product operations of one training step: forward, and twice that backward."""
    s = sizes
    tokens, width = s["batch"] * s["length"], s["width"]
    block = 2 * tokens * (4 * width**2 + 2 * width * s["intermediate"]) + 4 * tokens * s["length"] * width
    head = 2 * tokens * width * s["vocabulary"] if kind == "gpt" else 2 * s["batch"] * (width**2 + width * s["classes"])
    return 3 * (s["layers"] * block + head)


def data(kind: str, sizes: Sizes = SIZES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids and their mask, (batch, length), and labels: a class a row, or the token that follows."""
    random = np.random.default_rng(0)
    ids = random.integers(1, sizes["vocabulary"], (sizes["batch"], sizes["length"] + 1)).astype("int32")
    mask = np.ones((sizes["batch"], sizes["length"]), bool)
    if kind == "gpt":
        return ids[:, :-1], mask, ids[:, 1:]
    return ids[:, :-1], mask, random.integers(0, sizes["classes"], sizes["batch"]).astype("int32")


def products(kind: str, sizes: Sizes = SIZES) -> Step:
    """The step's products of matrices by this backend, forward and backward, and next to nothing else."""
    from keras import ops

    s = sizes
    rows, width, wide = s["batch"] * s["length"], s["width"], s["intermediate"]
    shapes = [(width, width)] * 4 + [(width, wide), (wide, width)]
    head = (width, s["vocabulary"]) if kind == "gpt" else (width, width)
    random = np.random.default_rng(0)
    weights = [random.normal(size=shape).astype("float32") / 16 for shape in [*shapes * s["layers"], head]]
    states = random.normal(size=(rows, width)).astype("float32") / 16

    def heads(x):
        x = ops.reshape(x, (s["batch"], s["length"], s["heads"], width // s["heads"]))
        return ops.transpose(x, (0, 2, 1, 3))

    def function(x, *weights):
        for first in range(0, len(weights) - 1, len(shapes)):
            query, key, value, out, up, down = weights[first : first + len(shapes)]
            scores = ops.matmul(heads(ops.matmul(x, query)), ops.swapaxes(heads(ops.matmul(x, key)), 2, 3))
            attended = ops.transpose(ops.matmul(scores, heads(ops.matmul(x, value))), (0, 2, 1, 3))
            x = ops.matmul(ops.matmul(ops.matmul(ops.reshape(attended, (rows, width)), out), up), down)
        # Squares, for a compiler knows that a sum of a product is a product of sums.
        return ops.sum(ops.square(ops.matmul(x if kind == "gpt" else x[:: s["length"]], weights[-1])))

    return gradient_step(function, (states, *weights))


# Models ----------------------------------------------------------------------------------------------------------------


OPTIONS = {  # what this library calls a size; KerasHub has the same names
    "vocabulary_size": "vocabulary",
    "hidden_dim": "width",
    "num_layers": "layers",
    "num_heads": "heads",
    "intermediate_dim": "intermediate",
    "max_sequence_length": "length",
    "dropout": "dropout",
}


def options_of(sizes: Sizes) -> dict[str, Any]:
    """Sizes as keywords of this library's models and of KerasHub's."""
    return {option: sizes[name] for option, name in OPTIONS.items()}


def ours(kind: str, sizes: Sizes = SIZES) -> Any:
    """This library's model, with new weights."""
    import keras_tfm as tfm

    options = options_of(sizes)
    if kind == "bert":
        return tfm.TextClassifier(tfm.models.bert(**options), num_classes=sizes["classes"])
    return tfm.CausalLM(tfm.models.gpt(**options))


def keras_hub(kind: str, sizes: Sizes = SIZES) -> Any:
    """KerasHub's model."""
    import keras_hub

    options = options_of(sizes)
    if kind == "bert":
        backbone = keras_hub.models.BertBackbone(num_segments=2, **options)
        return keras_hub.models.BertTextClassifier(
            backbone, num_classes=sizes["classes"], dropout=sizes["dropout"], preprocessor=None
        )
    return keras_hub.models.GPT2CausalLM(keras_hub.models.GPT2Backbone(**options), preprocessor=None)


def keras_layers(kind: str, sizes: Sizes = SIZES) -> Any:
    """The same model of Keras's own layers, as its guides put them together."""
    import keras
    from keras import layers

    width, dropout = sizes["width"], sizes["dropout"]
    ids = keras.Input((sizes["length"],), dtype="int32", name="token_ids")
    mask = keras.Input((sizes["length"],), dtype="bool", name="padding_mask")
    table = layers.ReversibleEmbedding(sizes["vocabulary"], width)
    positions = keras.ops.cumsum(keras.ops.ones_like(ids), axis=1) - 1
    x = table(ids) + layers.Embedding(sizes["length"], width)(positions)
    if kind == "bert":
        types = keras.Input((sizes["length"],), dtype="int32", name="token_type_ids")
        x = layers.LayerNormalization(epsilon=1e-12)(x + layers.Embedding(2, width)(types))
    x = layers.Dropout(dropout)(x)
    for _ in range(sizes["layers"]):
        attention = layers.MultiHeadAttention(sizes["heads"], width // sizes["heads"], dropout=dropout)
        norms = [layers.LayerNormalization(epsilon=1e-5) for _ in range(2)]
        up, down = layers.Dense(sizes["intermediate"], layers.Activation("gelu")), layers.Dense(width)
        if kind == "bert":
            attended = attention(x, x, attention_mask=mask[:, None, :])
            x = norms[0](x + layers.Dropout(dropout)(attended))
            x = norms[1](x + layers.Dropout(dropout)(down(up(x))))
        else:
            y = norms[0](x)
            x = x + layers.Dropout(dropout)(attention(y, y, attention_mask=mask[:, None, :], use_causal_mask=True))
            x = x + layers.Dropout(dropout)(down(up(norms[1](x))))
    if kind == "gpt":
        x = layers.LayerNormalization(epsilon=1e-5)(x)
        return keras.Model([ids, mask], table(x, reverse=True))
    x = layers.Dropout(dropout)(layers.Dense(width, "tanh")(x[:, 0]))
    return keras.Model([ids, mask, types], layers.Dense(sizes["classes"])(x))


def hugging_face(kind: str, folder: str, sizes: Sizes = SIZES) -> Any:
    """Hugging Face's model, of what this library's has written to a folder."""
    import transformers

    dropout = sizes["dropout"]
    if kind == "bert":
        options = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        return transformers.BertForSequenceClassification.from_pretrained(folder, **options)
    options = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return transformers.GPT2LMHeadModel.from_pretrained(folder, **options)


def x_transformers(kind: str, sizes: Sizes = SIZES) -> Any:
    """x-transformers' model."""
    import torch
    from x_transformers import Decoder, Encoder, TransformerWrapper

    s = sizes
    parts = dict(dim=s["width"], depth=s["layers"], heads=s["heads"], attn_dim_head=s["width"] // s["heads"])
    dropouts = dict(attn_dropout=s["dropout"], ff_dropout=s["dropout"], attn_sublayer_dropout=s["dropout"])
    options = dict(num_tokens=s["vocabulary"], max_seq_len=s["length"], emb_dropout=s["dropout"])
    ratio = s["intermediate"] // s["width"]
    if kind == "gpt":
        stack = Decoder(**parts, **dropouts, ff_mult=ratio, attn_flash=True)
        return TransformerWrapper(**options, tie_embedding=True, attn_layers=stack)
    stack = Encoder(**parts, **dropouts, ff_mult=ratio, attn_flash=True, pre_norm=False)
    body = TransformerWrapper(**options, return_only_embed=True, attn_layers=stack)

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.pooled = body, torch.nn.Linear(s["width"], s["width"])
            self.dropout, self.head = torch.nn.Dropout(s["dropout"]), torch.nn.Linear(s["width"], s["classes"])

        def forward(self, ids, mask):
            first = self.body(ids, mask=mask)[:, 0]
            return self.head(self.dropout(torch.tanh(self.pooled(first))))

    return Classifier()


# Steps -----------------------------------------------------------------------------------------------------------------


def inputs(kind: str, types: str, sizes: Sizes = SIZES) -> dict[str, np.ndarray]:
    """A Keras model's inputs; `types` is what it calls BERT's token types."""
    ids, mask, _ = data(kind, sizes)
    return {"token_ids": ids, "padding_mask": mask, **({types: 0 * ids} if kind == "bert" else {})}


def keras_step(model: Any, kind: str, types: str = "token_type_ids", sizes: Sizes = SIZES, **options: Any) -> Step:
    """A step of a Keras model, data transfer included; `train_on_batch` reads the loss back, which waits for it."""
    import keras

    if not hasattr(model, "backbone") or type(model).__module__.startswith(
        "keras_hub"
    ):  # who choose no loss themselves
        options |= {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "weighted_metrics": None}
    model.compile(optimizer=keras.optimizers.Adam(1e-4), metrics=None, **options)
    x, labels = inputs(kind, types, sizes), data(kind, sizes)[2]
    return lambda: model.train_on_batch(x, labels)


def torch_step(
    model: Any, kind: str, forward: Callable, fused: bool = False, sizes: Sizes = SIZES, bfloat16: bool = False
) -> Step:
    """A step of a torch model as its users write it, perhaps under autocast; `forward`: (model, ids, mask) to logits."""
    import torch

    device = next(model.parameters()).device
    ids, mask, labels = (torch.from_numpy(array).to(device) for array in data(kind, sizes))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=fused or None)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = forward(model, ids.long(), mask)
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def steps(kind: str, backend: str) -> dict[str, Step]:
    """Library to its step; those that share weights are seen to compute the same first.

    Raises:
        SystemExit: where they do not, for then their times say nothing.
    """
    import keras

    import keras_tfm as tfm

    hub = keras_hub(kind)
    mine = tfm.from_keras_hub(hub)
    outputs = {
        "KerasHub": hub(inputs(kind, "segment_ids"), training=False),
        "keras_tfm": mine(inputs(kind, "token_type_ids"), training=False),
    }
    found = {
        "keras_tfm": keras_step(mine, kind),
        "KerasHub": keras_step(hub, kind, "segment_ids"),
        "Keras's layers": keras_step(keras_layers(kind), kind),
    }
    if backend == "torch":
        import torch

        def logits(model, ids, mask):
            return model(input_ids=ids, attention_mask=mask.long()).logits

        with tempfile.TemporaryDirectory() as folder:
            mine.save_pretrained(folder)
            faces = [hugging_face(kind, folder) for _ in range(2)]
            compiled = keras_step(tfm.from_keras_hub(hub), kind, jit_compile=True)
        ids, mask, _ = map(torch.from_numpy, data(kind))
        with torch.no_grad():
            outputs["Hugging Face"] = logits(faces[0].eval(), ids.long(), mask)
        found["keras_tfm, jit_compile=True"] = compiled
        found["Hugging Face"] = torch_step(faces[0], kind, logits)
        found["Hugging Face, compiled"] = torch_step(torch.compile(faces[1]), kind, logits, fused=True)
        found["x-transformers"] = torch_step(x_transformers(kind), kind, lambda model, ids, mask: model(ids, mask=mask))
    wanted = keras.ops.convert_to_numpy(outputs["keras_tfm"])
    for name, output in outputs.items():
        apart = float(np.abs(keras.ops.convert_to_numpy(output) - wanted).max())
        if not apart < 1e-3 * np.abs(wanted).max():
            raise SystemExit(f"{name}'s {kind} computes something else than keras_tfm's: {apart} apart.")
    return found
