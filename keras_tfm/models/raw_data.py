"""Raw rows, strings and words and examples, as what task models batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_tfm.data import Examples, MappedExamples, pack
from keras_tfm.data.tokenizer import BaseTokenizer
from keras_tfm.models.named_inputs import STRINGS, holds_strings


def is_text(x: Any) -> bool:
    """Whether x is a list of strings, or of pairs of strings, rather than arrays or a dataset."""
    if isinstance(x, str):
        return True
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "UO" and x.size > 0 and isinstance(x.flat[0], str)
    if not isinstance(x, (list, tuple)) or len(x) == 0:
        return hasattr(x, "to_numpy") and is_text(x.to_numpy())
    first = x[0]
    return isinstance(first, str) or (
        isinstance(first, (tuple, list)) and len(first) == 2 and all(isinstance(part, str) for part in first)
    )


def is_examples(x: Any) -> bool:
    """Whether x are rows that have been made into examples."""
    return isinstance(x, (Examples, MappedExamples))


def is_words(x: Any) -> bool:
    """Whether x is a list of lists of strings: texts as words."""
    if isinstance(x, np.ndarray) or not isinstance(x, (list, tuple)) or not x:
        return False
    rows = (row for row in x if len(row)) if all(isinstance(row, (list, tuple)) for row in x) else ()
    first = next(iter(rows), None)
    return first is not None and isinstance(first[0], str)


def check_data(x: Any) -> None:
    """Raise ValueError for no rows, and for a `tf.data.Dataset` of strings, of which Keras says something else."""
    if isinstance(x, (list, tuple, np.ndarray)) and len(x) == 0:
        raise ValueError("x is empty: at least one row is needed.")
    spec = getattr(x, "element_spec", None)
    if spec is not None and any(map(holds_strings, keras.tree.flatten(spec))):
        raise ValueError(f"This dataset holds strings, which are not tokenized inside TensorFlow. {STRINGS}")


def split_rows(share: float, rows: Any, *others: Any) -> tuple[tuple, tuple]:
    """Rows and what goes with them (labels, weights, or None) without the last `share` of them, and these."""
    cut = int(len(rows) * (1 - share))
    parts = [part if part is None or is_examples(part) else list(part) for part in (rows, *others)]
    return tuple(part and part[:cut] for part in parts), tuple(part and part[cut:] for part in parts)


def text_examples(
    tokenizer: BaseTokenizer, texts: Sequence[Any], labels: Sequence[int] | None, max_length: int | None
) -> Examples:
    """Texts, or pairs of them, as examples of {"token_ids", "token_type_ids"}, with labels also "label"."""
    if labels is not None and len(labels) != len(texts):
        raise ValueError(f"y has {len(labels)} rows, x has {len(texts)} texts.")
    encodings = tokenizer.encode([tuple(text) if isinstance(text, list) else text for text in texts], max_length)
    found = Examples()
    for row, encoding in enumerate(encodings):
        example: dict[str, Any] = {
            "token_ids": np.array(encoding.ids, np.int32),
            "token_type_ids": np.array(encoding.type_ids, np.int32),
        }
        if labels is not None:
            example["label"] = int(labels[row])
        found.append(example)
    return found


def packed_examples(examples: Examples | MappedExamples, length: int, pad_id: int) -> Examples:
    """Examples packed into rows of `length`, each row an example of its own, as `pack` fills them."""
    arrays = pack(examples, length, pad_id=pad_id)
    if "starts" in arrays:
        arrays["segment_starts"] = arrays.pop("starts")
        arrays["labels"] = arrays.pop("label")
    del arrays["examples"]
    return Examples(
        ({name: array[row] for name, array in arrays.items()} for row in range(len(arrays["token_ids"]))),
        examples.labels,
    )
