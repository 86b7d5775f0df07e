"""The two files of an adapter."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Keys of adapter_config.json that change what is computed, with the values that mean they do not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # others change the base's weights
}


def write(directory: Path, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Put both files in place, made whole before."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
        contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        save_file(contiguous, Path(scratch, WEIGHTS), {"format": "pt"})
        Path(scratch, CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        os.chmod(
            Path(scratch, WEIGHTS), Path(scratch, CONFIG).stat().st_mode
        )  # `save_file` leaves it to its owner alone
        for file in (WEIGHTS, CONFIG):
            os.replace(Path(scratch, file), directory / file)


def read_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json, checked.

    Raises:
        FileNotFoundError: without it, or without the weights.
        ValueError: for another kind of adapter, and for what is not implemented.
    """
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            pickle = file == WEIGHTS and (directory / "adapter_model.bin").is_file()
            hint = (
                " adapter_model.bin is a pickle, which can run code when opened and is not read here." if pickle else ""
            )
            raise FileNotFoundError(f"{directory / file} is missing.{hint}")
    try:
        config = json.loads((directory / CONFIG).read_text("utf-8"))
        kind = config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{directory / CONFIG} is damaged: {error!r}.") from error
    if kind != "LORA":
        raise ValueError(f"{directory} has an adapter of type {kind!r}; only 'LORA' is implemented.")
    for key, values in PLAIN.items():
        if key in config and config[key] not in values:
            raise ValueError(f"{directory / CONFIG} says {key}={config[key]!r}, which is not implemented.")
    return config
