"""Text from language models: choosing tokens, the decode loop, streams."""

from keras_tfm.generation import surface
from keras_tfm.generation.batch import Prefix
from keras_tfm.generation.few_shot import FewShot
from keras_tfm.generation.settings import Choosing
from keras_tfm.models.generative import Generated, Generative

Generative.functions.update(generate=surface.generate, stream=surface.stream, score=surface.score, prefix=surface.read)

__all__ = ["Choosing", "FewShot", "Generated", "Prefix"]
