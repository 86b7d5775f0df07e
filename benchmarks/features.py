"""Which of Keras's ways to train, save and shrink a model work with this library's, on one device and on several.

    python -m benchmarks.features                 every backend, each in its own process
    python -m benchmarks.features --backend jax   this backend alone, printed and not kept

Each cell is tried: a small GPT is trained for two epochs with the feature and without it, or on several devices and on one,
and the largest difference of two weights is what the cell says. Several devices are logical ones of one CPU: 4 replicas of
TensorFlow's MirroredStrategy, 8 devices of JAX; torch has one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import BACKENDS, save

SIZES = dict(num_layers=1, hidden_dim=32, num_heads=8, vocabulary_size=64, max_sequence_length=16, dropout=0.0)
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(1, 64, (32, 12)).astype("int32")
LENGTHS = np.tile([12, 11, 3, 2, 7, 6, 2, 4, 12, 9, 2, 5, 8, 3, 10, 6], 2)[:, None]
X = {"token_ids": IDS, "padding_mask": np.arange(12) < LENGTHS}
Y = np.where(np.arange(12) < LENGTHS, np.roll(IDS, -1, 1), -100)
ROWS = 16  # a batch
SAME, ROUNDED = 2e-5, 2e-2  # what counts as the same: in float32, and where numbers have fewer bits
COLUMNS = {"tensorflow": ("TensorFlow", "4 replicas"), "jax": ("JAX", "8 devices"), "torch": ("torch", None)}


class Trial:
    """One backend's devices, and what was trained on them already."""

    def __init__(self, backend: str):
        import keras

        self.backend = backend
        self.keras = keras
        self._kept: dict[str, list[np.ndarray]] = {}
        if backend == "tensorflow":
            import tensorflow as tf

            if not tf.config.list_physical_devices("GPU"):
                cpu, four = tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
                with contextlib.suppress(RuntimeError):  # TensorFlow has begun: there is one device
                    tf.config.set_logical_device_configuration(cpu, four)
            names = [f"CPU:{n}" for n in range(len(tf.config.list_logical_devices("CPU")))]
            self.strategy = tf.distribute.MirroredStrategy(names)

    def devices(self, kind: str) -> Any:
        """The scope of one device, or of several: "many", "tensor", "fsdp"."""
        if kind == "one":
            return contextlib.nullcontext()
        if self.backend == "tensorflow":
            return self.strategy.scope()
        from keras_tfm import distribution

        ways = {"many": distribution.data_parallel, "tensor": distribution.tensor_parallel, "fsdp": distribution.fsdp}
        return ways[kind]().scope()

    def model(self, policy: str = "float32", **options: Any) -> Any:
        """The small GPT, untrained, the same each time."""
        import keras_tfm as tfm

        self.keras.utils.set_random_seed(0)
        before = self.keras.config.dtype_policy()
        self.keras.config.set_dtype_policy(policy)
        try:
            return tfm.CausalLM(tfm.models.gpt(**{**SIZES, **options}))
        finally:
            self.keras.config.set_dtype_policy(before)

    def trained(self, kind: str = "one", *, prepare: Callable | None = None, policy: str = "float32", **options: Any):
        """The model after two epochs of two batches on these devices."""
        fitting = {"batch_size": options.pop("batch_size", ROWS)}
        optimizer = options.pop("optimizer", {})
        x, y = options.pop("data", (X, Y))
        with self.devices(kind):
            model = self.model(policy)
            if prepare is not None:
                prepare(model)
            model.compile(self.keras.optimizers.AdamW(1e-2, epsilon=1e-5, **optimizer), **options)
            model.fit(x, y, epochs=2, shuffle=False, verbose=0, **fitting)
        return model

    def weights(self, kind: str = "one", **options: Any) -> list[np.ndarray]:
        """Of `trained`; those of one device are trained once."""
        key = f"{kind} {options}"
        if key not in self._kept:
            self._kept[key] = _values(self.trained(kind, **options))
        return self._kept[key]


def _values(model: Any) -> list[np.ndarray]:
    import keras

    return [keras.ops.convert_to_numpy(v).astype("float32") for v in model.trainable_variables]


def apart(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference of two weights; infinite where one is no number."""
    found = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    return found if np.isfinite(found) else float("inf")


def compared(difference: float, limit: float = SAME) -> dict[str, Any]:
    """A cell that says how far apart two trainings are."""
    return {"kind": "same" if difference <= limit else "differs", "difference": float(f"{difference:.1e}")}


WORKS = {"kind": "works"}
NONE = {"kind": "-"}


def on_many(limit: float = SAME, **options: Any) -> dict[str, Callable]:
    """A feature that several devices are compared with one by, and that one device has or has not."""

    def one(t: Trial) -> dict[str, Any]:
        return WORKS if np.isfinite(np.concatenate([w.ravel() for w in t.weights(**options)])).all() else compared(1e9)

    return {"one": one, "many": lambda t: compared(apart(t.weights("many", **options), t.weights(**options)), limit)}


def against_plain(plain: dict[str, Any], **options: Any) -> dict[str, Callable]:
    """A feature that must train the same weights as training without it does, on one device and on several."""

    def cell(kind: str) -> Callable:
        return lambda t: compared(apart(t.weights(kind, **options), t.weights(**plain)))

    return {"one": cell("one"), "many": cell("many")}


def only_jax(kind: str) -> dict[str, Callable]:
    def many(t: Trial) -> dict[str, Any]:
        return compared(apart(t.weights(kind), t.weights())) if t.backend == "jax" else NONE

    return {"one": lambda t: NONE, "many": many}


def recompute(model: Any) -> None:
    model.backbone.recompute_blocks()


def low_rank(model: Any) -> None:
    import keras_tfm as tfm

    tfm.training.add_lora(model, rank=2)


def masked(t: Trial, kind: str) -> dict[str, Any]:
    """The mean over the tokens of a batch, whatever rows they are in: written out here in NumPy."""
    with t.devices(kind):
        model = t.model()
        model.compile(t.keras.optimizers.SGD(0.0), metrics=None)
        logs = model.fit(X, Y, batch_size=len(Y), shuffle=False, verbose=0).history["loss"][0]
    logits = t.keras.ops.convert_to_numpy(t.model()(X)).astype("float64")
    logits -= logits.max(-1, keepdims=True)
    logarithms = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(logarithms, np.maximum(Y, 0)[..., None], -1)[..., 0]
    return compared(abs(float(losses[Y >= 0].mean()) - logs))


def uneven(t: Trial, kind: str) -> dict[str, Any]:
    """Rows that several devices cannot share: raw ones, of which the last batch is filled up."""
    from keras_tfm.data import Examples

    lengths = LENGTHS[:27, 0]
    rows = Examples(
        [{"token_ids": ids[:n], "padding_mask": np.ones(n, bool)} for ids, n in zip(IDS, lengths, strict=False)]
    )
    options = {"data": (rows, None)}
    if kind == "one":
        t.trained(**options)
        return WORKS
    return compared(apart(_values(t.trained(kind, **options)), _values(t.trained("one", **options))))


def saved(t: Trial, kind: str) -> dict[str, Any]:
    """A file of one is loaded by the other, there and back."""
    model, worst = t.trained(kind), 0.0
    expected = _values(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        for after in ("one", kind):
            model.save(path)
            with t.devices(after):
                model = t.keras.saving.load_model(path)
            worst = max(worst, apart(_values(model), expected))
    return compared(worst, 0.0)


def exported(t: Trial, kind: str) -> dict[str, Any]:
    """A SavedModel's outputs."""
    if t.backend == "torch" or kind != "one":
        return NONE
    import tensorflow as tf

    model = t.model()
    with tempfile.TemporaryDirectory() as folder:
        specs = {name: t.keras.InputSpec(shape=(None, 12), dtype=str(value.dtype)) for name, value in X.items()}
        model.export(folder, verbose=False, input_signature=[specs])
        signature = tf.saved_model.load(folder)
        ours = t.keras.ops.convert_to_numpy(model(X))
        theirs = np.asarray(signature.serve(dict(X)))
    return compared(float(np.abs(ours - theirs).max()))


def quantized(t: Trial, kind: str) -> dict[str, Any]:
    """Logits of int8 weights, written to a file and read again."""
    with t.devices(kind):
        model = t.model()
        model.quantize("int8")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            again = t.keras.saving.load_model(path)
        ours, theirs = (t.keras.ops.convert_to_numpy(one(X)) for one in (model, again))
    return compared(float(np.abs(ours - theirs).max()))


def packed(t: Trial, kind: str) -> dict[str, Any]:
    """Two texts in a row as segments train what they do in a row each."""
    first, second = IDS[:, :5], IDS[:, 5:11]
    pair = np.concatenate([first, second], 1)
    segments = np.tile([1] * 5 + [2] * 6, (len(IDS), 1)).astype("int32")
    labels = np.concatenate([_shifted(first), _shifted(second)], 1)
    wide = np.zeros((len(IDS), 6), "int32")
    wide[:, :5] = first
    apiece = np.stack([wide, second], 1).reshape(-1, 6)
    mask = np.stack([np.arange(6) < 5, np.arange(6) < 6])[None].repeat(len(IDS), 0).reshape(-1, 6)
    wide_labels = np.full((len(IDS), 6), -100)
    wide_labels[:, :5] = _shifted(first)
    each = np.stack([wide_labels, _shifted(second)], 1).reshape(-1, 6)
    together = t.weights(kind, data=({"token_ids": pair, "segment_ids": segments}, labels))
    separate = t.weights(data=({"token_ids": apiece, "padding_mask": mask}, each), batch_size=2 * ROWS)
    return compared(apart(together, separate))


def _shifted(ids: np.ndarray) -> np.ndarray:
    return np.concatenate([ids[:, 1:], np.full((len(ids), 1), -100)], 1)


def by_kind(function: Callable) -> dict[str, Callable]:
    return {kind: lambda t, kind=kind: function(t, kind) for kind in ("one", "many")}


FEATURES: dict[str, dict[str, Callable]] = {
    "data parallel, float32": on_many(),
    "`mixed_bfloat16`": on_many(ROUNDED, policy="mixed_bfloat16"),
    "`mixed_float16`": on_many(ROUNDED, policy="mixed_float16"),
    "`jit_compile=True`": against_plain({}, jit_compile=True),
    "`gradient_accumulation_steps=2`": against_plain(
        {}, batch_size=ROWS // 2, optimizer={"gradient_accumulation_steps": 2}
    ),
    "`steps_per_execution=2`": against_plain({}, steps_per_execution=2),
    "`global_clipnorm`": on_many(optimizer={"global_clipnorm": 0.1}),
    "last batch uneven": by_kind(uneven),
    "loss over masked tokens": by_kind(masked),
    "tensor parallel": only_jax("tensor"),
    "FSDP": only_jax("fsdp"),
    "recomputed blocks": against_plain({}, prepare=recompute),
    "LoRA": on_many(prepare=low_rank),
    "packed rows": by_kind(packed),
    "saved, loaded on one device, and back": by_kind(saved),
    "export to SavedModel": by_kind(exported),
    '`quantize("int8")`, saved and loaded': by_kind(quantized),
}


def tried(trial: Trial, feature: str, kind: str) -> dict[str, Any]:
    """One cell: {"kind": "same" | "differs" | "works" | "refused" | "fails" | "-", "difference" or "reason"}."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return FEATURES[feature][kind](trial)
    except ValueError as error:
        ours = _raised_here(error) and not str(error).startswith("Exception encountered when calling")
        return {"kind": "refused" if ours else "fails", "reason": _first(str(error))}
    except Exception as error:  # what a backend cannot do is what is looked for
        return {"kind": "fails", "reason": f"{type(error).__name__}: {_first(str(error))}"}


def _raised_here(error: BaseException) -> bool:
    """Whether it is this library that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "keras_tfm" in trace.tb_frame.f_code.co_filename


def _first(text: str) -> str:
    """The first sentence, on one line."""
    if text.startswith("Exception encountered when calling"):  # Keras's words around those of the error
        text = text.partition("\n\n")[2]
    text = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    line = " ".join(text.split())
    return line.split(". ")[0].split(": ")[0][:140].replace("|", "/").replace("raised", "").strip()


def cells(backend: str, features: list[str] | None = None, kinds: tuple[str, ...] = ("one", "many")) -> dict[str, dict]:
    """All cells of this process's backend."""
    trial = Trial(backend)
    found: dict[str, dict] = {}
    for feature in features or FEATURES:
        found[feature] = {}
        for kind in kinds:
            start = time.perf_counter()
            none = kind == "many" and COLUMNS[backend][1] is None
            found[feature][kind] = NONE if none else tried(trial, feature, kind)
            print(f"{feature:40} {kind:5} {found[feature][kind]} {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return found


def worker(backend: str, features: list[str] | None = None, timeout: float = 1200) -> dict[str, dict]:
    """`cells` in a process of its own."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if backend == "jax":
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "benchmarks.features", "--json", "--backend", backend, *(features or [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=timeout, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stdout)
    return json.loads(lines[0].removeprefix("RESULT "))


def said(cell: dict[str, Any]) -> str:
    """A cell as the page has it."""
    kind = cell["kind"]
    if "reason" in cell:
        return f"{kind}: {cell['reason']}"
    if kind == "same" and cell["difference"] > SAME:
        kind = "same to its rounding"
    return f"{kind}, {cell['difference']:.0e}" if cell.get("difference") else kind if kind != "-" else "–"


def table(results: dict[str, dict]) -> str:
    """The results as Markdown; reasons stand below the table, by number."""
    shown = [
        (backend, kind) for backend in BACKENDS for kind in ("one", "many") if kind == "one" or COLUMNS[backend][1]
    ]
    names = [
        COLUMNS[backend][0] if kind == "one" else f"{COLUMNS[backend][0]}, {COLUMNS[backend][1]}"
        for backend, kind in shown
    ]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(shown) + 1) + "|"]
    notes: list[str] = []
    for feature in FEATURES:
        row = []
        for backend, kind in shown:
            cell = results[backend][feature][kind]
            text = said(cell)
            if "reason" in cell:
                if text not in notes:
                    notes.append(text)
                text = f"{cell['kind']} ({notes.index(text) + 1})"
            row.append(text)
        lines.append(f"| {feature} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def main() -> None:
    """Try, print the table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("features", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.json:
        print("RESULT " + json.dumps(cells(args.backend, args.features)))
    elif args.backend:
        for feature, found in worker(args.backend).items():
            print(feature, {kind: said(cell) for kind, cell in found.items()})
    else:
        results = {backend: worker(backend) for backend in BACKENDS}
        print(table(results))
        print("\nkept as", save("features", {"results": results}))


if __name__ == "__main__":
    main()
