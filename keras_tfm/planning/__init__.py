"""What a model will take on many devices, before there are any: memory, collectives, time."""

from keras_tfm import distribution
from keras_tfm.planning.plan import MeshPlan, Plan, plan

# The name by which users know it; `distribution` lies below and knows nothing of models.
distribution.plan = plan  # type: ignore[attr-defined]

__all__ = ["MeshPlan", "Plan", "plan"]
