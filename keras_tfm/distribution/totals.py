"""Metrics of torch's processes as those of the whole: sums over processes of what each has counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_tfm.ops import processes


class Rows:
    """How many rows each process's share of the batch counts for in means over batches."""

    now: float = 0.0

    @staticmethod
    @contextlib.contextmanager
    def counted(model: Any, data: Any, batch: Any) -> Iterator[None]:
        """Within: losses that Keras keeps as means over batches weigh this one by its rows in all processes.

        Keras would weigh each process's share by its own rows, of which one may have more than another.

        Args:
            model: Its losses.
            data: What the batch is of; a `SharedDataset` knows how many rows the last batch has that it gave.
            batch: (inputs, labels, ...), of this process's rows.
        """
        for metric in (model._loss_tracker, *getattr(model._compile_loss, "metrics", ())):
            if type(metric) is keras.metrics.Mean:
                metric.__class__ = _MeanOverRows
        rows = getattr(data, "rows", None)
        if rows is None:
            import torch

            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            first = next(part for part in keras.tree.flatten(inputs) if part is not None)
            rows = float(processes.summed(torch.tensor(float(first.shape[0]))))
        Rows.now = rows / processes.count()
        yield


class _MeanOverRows(keras.metrics.Mean):
    def update_state(self, values, sample_weight=None):
        rows = Rows.now if processes.is_in_step() and sample_weight is not None else sample_weight
        return super().update_state(values, sample_weight=rows)


def of_all_processes(variables: Sequence[Any]) -> list[Any]:
    """What metrics' variables would be had one process counted everything: tensors, the same in all processes.

    By each variable's `aggregation`: "sum", "mean", or else the first process's value.
    """
    import torch

    shares = [_share(variable) for variable in variables]
    found: list[Any] = [None] * len(shares)
    for dtype in dict.fromkeys(share.dtype for share in shares):
        places = [place for place, share in enumerate(shares) if share.dtype == dtype]
        total = processes.summed(torch.cat([shares[place].reshape(-1) for place in places]))
        for place, part in zip(places, total.split([shares[place].numel() for place in places]), strict=True):
            found[place] = part.view(shares[place].shape)
    return found


def _share(variable: Any) -> Any:
    """What the processes' sum is of."""
    import torch

    value = variable.value.detach()
    value = value.to(torch.int32) if value.dtype == torch.bool else value
    if variable.aggregation == "sum":
        return value
    if variable.aggregation == "mean":
        return value / processes.count()
    return value * int(processes.index() == 0)


def own_part(variable: Any, value: Any) -> Any:
    """What a process of torch keeps of a metric's variable, whose value of all is given: of sums the first all of it."""
    if not processes.is_connected() or processes.index() == 0 or getattr(variable, "aggregation", None) != "sum":
        return value
    return value * 0


def whole_logs(model: Any, logs: Any) -> Any:
    """A step's logs, of the rows of all processes.

    Metrics are computed from the sums of what the processes have counted. Logs that are not those of the metrics, which a
    `train_step` of one's own may give, are averaged.
    """
    variables = [variable for metric in model.metrics for variable in metric.variables]
    own = [variable.value.detach().clone() for variable in variables]
    for variable, value in zip(variables, of_all_processes(variables), strict=True):
        variable.assign(value)
    whole = model.get_metrics_result()
    for variable, value in zip(variables, own, strict=True):
        variable.assign(value)
    if not isinstance(logs, dict) or logs.keys() == whole.keys():
        return whole
    import torch

    mean = processes.summed(torch.tensor([float(value) for value in logs.values()])) / processes.count()
    return dict(zip(logs, mean.tolist(), strict=True))
