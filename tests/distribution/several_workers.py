"""A plain Keras model under the strategies of several machines, as JSON: what came of `fit`, and what `check_strategy` says.

python several_workers.py mirrored INDEX PORT PORT, twice; python several_workers.py parameters PORT PORT. Run by
`test_strategies`, with KERAS_BACKEND=tensorflow.
"""

from __future__ import annotations

import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_tfm.distribution import check_strategy


def mirrored(index: str, *ports: str):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": int(index)}})
    return tf.distribute.MultiWorkerMirroredStrategy()


def parameters(*ports: str):
    """All of the cluster in this process."""
    worker, ps = (f"127.0.0.1:{port}" for port in ports)
    cluster = tf.train.ClusterSpec({"worker": [worker], "ps": [ps]})
    servers = [tf.distribute.Server(cluster, job_name=job, protocol="grpc", start=True) for job in ("worker", "ps")]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    strategy.servers = servers
    return strategy


def main() -> None:
    strategy = {"mirrored": mirrored, "parameters": parameters}[sys.argv[1]](*sys.argv[2:])
    with strategy.scope():
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
    found = {"replicas": strategy.num_replicas_in_sync, "fit": "works", "refused": ""}
    try:
        check_strategy(model, strategy)
    except ValueError as error:
        found["refused"] = str(error)
    data = tf.data.Dataset.from_tensor_slices((np.ones((8, 8), "float32"), np.ones((8, 3), "float32"))).batch(4)
    try:
        model.fit(data, verbose=0)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        found["fit"] = type(error).__name__
    print("RESULT " + json.dumps(found), flush=True)
    os._exit(0)  # the others' servers are not waited for


if __name__ == "__main__":
    main()
