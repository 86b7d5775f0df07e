"""Writes golden/: a small model of each family as `transformers` saves it, inputs, and the logits that it gives.

    cd tests && python -m checkpoints.make_golden [FAMILY ...]

What is there for other families stays. `test_golden.py` holds us to it where torch is not installed.
"""

from __future__ import annotations

import shutil
import sys

import numpy as np
import torch
import transformers

from checkpoints.families import FAMILIES, GOLDEN
from checkpoints.test_families import batch_for, outputs_of, reference


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    for family in sys.argv[1:] or FAMILIES:
        case = FAMILIES[family]
        task = next(iter(case.models))
        model = reference(case, None, task)
        directory = GOLDEN / family
        shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        inputs = batch_for(case, model.config)
        with torch.no_grad():
            logits = outputs_of(model, inputs)["logits"].numpy()
        np.savez_compressed(directory / "golden.npz", task=task, logits=logits, **inputs)
        print(family, task, logits.shape)


if __name__ == "__main__":
    main()
