"""TensorBoard's event files, written without TensorFlow."""

from __future__ import annotations

import io
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

BUCKETS = 40  # of a histogram


class EventFile:
    """One run's event file: scalars, texts, images and histograms by tag and step.

    tensorboard's own writer would import TensorFlow wherever it is installed, to make a directory; records and summaries
    are tensorboard's.

    Args:
        directory: Of the run; made if need be.
        writes: Whether it is written at all: what other hosts have measured too, one of them writes.

    Raises:
        ImportError: without tensorboard.
    """

    def __init__(self, directory: str | Path, writes: bool = True):
        check_installed()
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.directory, self.writes = Path(directory), writes
        file = Path(os.devnull)
        if writes:
            self.directory.mkdir(parents=True, exist_ok=True)
            file = self.directory / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(open(file, "wb"))  # noqa: SIM115 - closed by `close`
        self._event = event_pb2.Event
        self._records.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers by tag."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for tag, value in values.items():
            self._write(scalar_pb(tag, np.float32(value)), step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A text in Markdown."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(text_pb(tag, markdown), step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """The distribution of the finite values of an array."""
        from tensorboard.plugins.histogram import metadata

        counts, edges = np.histogram(values[np.isfinite(values)], BUCKETS)
        buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)  # (buckets, left, right and count)
        self._write(_summary(tag, buckets, np.float64, metadata.create_summary_metadata(None, None)), step)

    def image(self, tag: str, figure: Any, step: int) -> None:
        """A figure of matplotlib."""
        from tensorboard.plugins.image import metadata

        file = io.BytesIO()
        figure.savefig(file, format="png")
        width, height = (round(size) for size in figure.get_size_inches() * figure.dpi)
        content = np.array([str(width).encode(), str(height).encode(), file.getvalue()], object)
        self._write(_summary(tag, content, np.object_, metadata.create_summary_metadata(None, None)), step)

    def flush(self) -> None:
        """Let readers see what has been written."""
        self._records.flush()

    def close(self) -> None:
        """Write no more."""
        self._records.close()

    def _write(self, summary: Any, step: int) -> None:
        self._records.write(self._event(wall_time=time.time(), step=step, summary=summary).SerializeToString())


def check_installed() -> None:
    """Raise ImportError, naming the extra, without tensorboard."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError('Event files need tensorboard: pip install "keras_tfm[tensorboard]".') from error


def _summary(tag: str, values: np.ndarray, dtype: Any, metadata: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.util.tensor_util import make_tensor_proto

    summary = Summary()
    summary.value.add(tag=tag, metadata=metadata, tensor=make_tensor_proto(values, dtype=dtype))
    return summary


def write_projector(directory: str | Path, vectors: np.ndarray, names: list[str], title: str) -> None:
    """Vectors for TensorBoard's projector: projector_config.pbtxt, tensors.tsv, metadata.tsv.

    Args:
        directory: Of a run.
        vectors: (rows, width) float.
        names: Of each row.
        title: Of the tensor.
    """
    directory = Path(directory)
    np.savetxt(directory / "tensors.tsv", vectors, delimiter="\t", fmt="%.6g")
    # A file of one column has no header. A name must not be empty, nor have a tab or a line's end.
    escaped = (
        name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r") for name in names
    )
    lines = [name if name.strip() else repr(name) for name in escaped]
    (directory / "metadata.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    (directory / "projector_config.pbtxt").write_text(
        f'embeddings {{\n  tensor_name: "{title}"\n  tensor_path: "tensors.tsv"\n  metadata_path: "metadata.tsv"\n}}\n',
        "utf-8",
    )


def attention_figure(weights: np.ndarray, tokens: list[str], title: str) -> Any:
    """Attention maps of one layer, a picture a head, as a figure of matplotlib.

    Args:
        weights: (heads, queries, keys).
        tokens: Of queries and keys, for the axes; none are written where there are many.
        title: Of the figure.

    Raises:
        ImportError: without matplotlib.
    """
    figure_class = check_matplotlib()
    heads = len(weights)
    columns = math.ceil(math.sqrt(heads))
    rows = -(-heads // columns)
    figure = figure_class(figsize=(3.2 * columns, 3.2 * rows + 0.4), dpi=90, layout="constrained")
    figure.suptitle(title)
    for head in range(heads):
        axes = figure.add_subplot(rows, columns, head + 1)
        axes.imshow(weights[head], vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        axes.set_title(f"head {head}", fontsize=9)
        for ticks, count in ((axes.set_xticks, weights.shape[2]), (axes.set_yticks, weights.shape[1])):
            if len(tokens) == count and count <= 32:
                labels = [token.replace("$", r"\$") for token in tokens]  # a dollar begins a formula
                ticks(range(count), labels, fontsize=6, rotation=90 if ticks == axes.set_xticks else 0)
    return figure


def check_matplotlib() -> Any:
    """matplotlib's Figure, which needs no display; ImportError, naming the extra, without it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'Pictures need matplotlib: pip install "keras_tfm[visualize]"; images=False does without.'
        ) from error
    return Figure
