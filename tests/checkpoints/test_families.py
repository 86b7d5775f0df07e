"""Every family's outputs, gradients and files against `transformers` on torch, run beside us."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import BACKEND, numpy, weight_gradients
from keras import ops

import keras_tfm as tfm
from checkpoints.families import FAMILIES, Case
from keras_tfm import architectures
from keras_tfm.checkpoints.matching import Member, pairs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
LENGTH = 11
TOLERANCE = 1e-5
RUNS = [
    *((family, None, task) for family, case in FAMILIES.items() for task in case.models),
    *((family, variant, case.task(variant)) for family, case in FAMILIES.items() for variant in case.variants),
]


def reference(case: Case, variant: str | None, task: str):
    """Theirs, with every tensor perturbed, so that no start value hides a mistake."""
    torch.manual_seed(0)
    options = case.options | case.variants.get(variant, {}) | {"pad_token_id": case.pad}
    if task in ("TextClassifier", "TokenClassifier", "ImageClassifier"):
        options |= {"num_labels": 5}
    config = getattr(transformers, case.config)(**options, attn_implementation="eager")
    model = getattr(transformers, case.models[task])(config).eval()
    if (
        getattr(config, "tie_word_embeddings", False)
        and options.get("tie_word_embeddings") is False
        and hasattr(model, "lm_head")
    ):
        # T5's configuration says that all is tied; published checkpoints have a head of their own all the same.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    with torch.no_grad():
        for tensor in [p for p in model.parameters() if p.requires_grad] + biases(model):
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model


def biases(model):
    """What files hold beside parameters: BART's bias of the logits."""
    return [buffer for name, buffer in model.named_buffers() if name == "final_logits_bias"]


def batch_for(case: Case, config) -> dict[str, np.ndarray]:
    """For a model of their config: images, or rows unpadded, right-padded and, where theirs can take it, left-padded."""
    rng = np.random.default_rng(0)
    if hasattr(config, "image_size"):
        sides = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
        return {"images": rng.normal(size=(3, *sides, config.num_channels)).astype("float32")}
    mask = np.ones((3, LENGTH), bool)
    mask[1, 7:] = False
    mask[2, :4] = not case.left
    ids = np.where(mask, rng.integers(3, case.options["vocab_size"], mask.shape), case.pad).astype("int32")
    inputs = {"token_ids": ids, "padding_mask": mask}
    types = case.options.get("type_vocab_size", 0)
    if types > 1:
        inputs["token_type_ids"] = rng.integers(0, types, mask.shape).astype("int32")
    if config.is_encoder_decoder:
        inputs["decoder_token_ids"] = rng.integers(3, case.options["vocab_size"], (3, 6)).astype("int32")
    return inputs


def mask_of(inputs):
    """What of the outputs counts, where these have a row for each token."""
    return inputs.get("padding_mask", np.ones((), bool))


def outputs_of(model, inputs):
    """Theirs, positions counted over real tokens where they can be told."""
    if "images" in inputs:
        return dict(model(pixel_values=torch.from_numpy(inputs["images"].transpose(0, 3, 1, 2))))
    mask = inputs["padding_mask"]
    tensors = {"input_ids": inputs["token_ids"], "attention_mask": mask}
    if "token_type_ids" in inputs:
        tensors["token_type_ids"] = inputs["token_type_ids"]
    if "decoder_token_ids" in inputs:
        tensors["decoder_input_ids"] = inputs["decoder_token_ids"]
    if "position_ids" in inspect.signature(model.forward).parameters and not mask[:, 0].all():
        tensors["position_ids"] = np.maximum(np.cumsum(mask, -1) - 1, 0)
    result = model(**{name: torch.from_numpy(x.astype("int64")) for name, x in tensors.items()})
    return {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}


def agreeing(task, ours, theirs):
    """Ours beside theirs, as a list of arrays or tensors that should agree."""
    if task == "Backbone":
        found = [(ours["sequence_output"] if isinstance(ours, dict) else ours, theirs["last_hidden_state"])]
        if isinstance(ours, dict) and "pooled_output" in ours:
            found.append((ours["pooled_output"], theirs["pooler_output"]))
        if isinstance(ours, dict) and "encoder_sequence_output" in ours:
            found.append((ours["encoder_sequence_output"], theirs["encoder_last_hidden_state"]))
        return found
    if task == "QuestionAnswerer":
        return [(ours[name], theirs[name]) for name in ("start_logits", "end_logits")]
    return [(ours, theirs["logits"])]


@pytest.fixture(scope="module", autouse=True)
def differences():
    """The largest relative difference by family and task; `benchmarks/families.py` says where to keep them."""
    found: dict[str, dict[str, float]] = {}
    yield found
    if os.environ.get("KERAS_TFM_FAMILIES"):
        Path(os.environ["KERAS_TFM_FAMILIES"].format(backend=BACKEND)).write_text(json.dumps(found), "utf-8")


def compare(task, ours, theirs, mask):
    """The largest difference, relative to the largest value; it must be small."""
    largest = 0.0
    for a, b in agreeing(task, numpy(ours), theirs):
        b = b.detach().numpy()
        if a.shape[:2] == mask.shape:
            a, b = a[mask], b[mask]
        difference = np.abs(a - b).max() / np.abs(b).max()
        assert difference <= TOLERANCE, f"{difference:.1e}"
        largest = max(largest, float(difference))
    return largest


@pytest.mark.parametrize(("family", "variant", "task"), RUNS, ids=[" ".join(filter(None, run)) for run in RUNS])
def test_outputs_are_the_references_and_files_go_back(family, variant, task, tmp_path, differences):
    from safetensors.numpy import load_file

    case = FAMILIES[family]
    theirs = reference(case, variant, task)
    theirs.save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*nothing is known of.*")
        ours = getattr(tfm, task).from_pretrained(tmp_path / "theirs")
    inputs = batch_for(case, theirs.config)
    with torch.no_grad():
        expected = outputs_of(theirs, inputs)
    difference = compare(task, ours(inputs), expected, mask_of(inputs))

    ours.save_pretrained(tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True, attn_implementation="eager")
    assert not any(info.values()), info
    held, back = theirs.state_dict(), again.state_dict()
    assert held.keys() == back.keys()
    for name, value in held.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    with torch.no_grad():  # torch's sums depend on where in memory a file's tensors lie
        for name, value in outputs_of(again.eval(), inputs).items():
            np.testing.assert_allclose(
                value, expected[name], rtol=0, atol=TOLERANCE * float(expected[name].abs().max())
            )
    before, after = (load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours"))
    architecture = architectures.find(family)
    only_one = set(before) ^ set(after)  # Marian writes its fixed table of positions for the bare model alone
    assert all(architecture.ignores(name) for name in only_one), only_one
    for name in set(before) & set(after):
        np.testing.assert_array_equal(before[name], after[name])
    of_family = differences.setdefault(family, {})
    of_family[task] = max(of_family.get(task, 0.0), difference)


def gradients_of(model, directory) -> dict[str, np.ndarray]:
    """Theirs under the names that tensors have in files, where there is one: written as if they were the weights."""
    from safetensors.numpy import load_file

    with torch.no_grad():
        for variable in filter(torch.is_floating_point, (*model.parameters(), *model.buffers())):
            variable.copy_(torch.full_like(variable, torch.nan) if variable.grad is None else variable.grad)
    model.save_pretrained(directory)
    found = load_file(directory / "model.safetensors")
    return {name: gradient for name, gradient in found.items() if not np.isnan(gradient).any()}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_references(family, tmp_path):
    case = FAMILIES[family]
    task = next(iter(case.models))
    theirs = reference(case, None, task)
    theirs.save_pretrained(tmp_path)
    ours = getattr(tfm, task).from_pretrained(tmp_path)
    inputs = batch_for(case, theirs.config)

    expected = outputs_of(theirs, inputs)["logits"]
    shape = tuple(expected.shape)
    weights = np.cos(np.arange(np.prod(shape))).reshape(shape).astype("float32") / np.prod(shape) ** 0.5
    if shape[:2] == mask_of(inputs).shape:
        weights = weights * mask_of(inputs)[..., None]
    (expected * torch.from_numpy(weights)).sum().backward()
    by_name = gradients_of(theirs, tmp_path / "gradients")

    gradients = weight_gradients(ours, lambda: ops.sum(ours(inputs) * ops.convert_to_tensor(weights, dtype="float32")))
    architecture = architectures.find(family)
    compared = 0
    largest = max(float(np.abs(gradient).max()) for gradient in by_name.values())
    for pair in pairs(ours, architecture):
        name = pair.theirs if pair.in_head else architecture.prefix + pair.theirs
        if name not in by_name:
            continue
        mine = pair.tensor.join([gradient_of(variable, gradients) for variable in pair.variables])
        their = by_name[name]
        assert np.abs(mine - their).max() <= 1e-4 * max(np.abs(their).max(), 1e-2 * largest), name
        compared += 1
    assert compared >= 0.9 * len(by_name)


def gradient_of(variable, gradients):
    if isinstance(variable, Member):
        return gradients[variable.stack.variable.path][variable.index]
    return gradients[variable.path]


def test_every_family_is_compared():
    assert set(architectures.FAMILIES) - {"bert"} <= set(FAMILIES)
    for name, case in FAMILIES.items():
        assert {"Backbone", *architectures.find(name).heads} == set(case.models), name
