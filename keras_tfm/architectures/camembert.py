"""CamemBERT (Martin et al. 2020), as `transformers` stores it: RoBERTa under another name."""

from dataclasses import replace

from keras_tfm.architectures.roberta import ROBERTA, heads

CAMEMBERT = replace(ROBERTA, model_type="camembert", base="CamembertModel", heads=heads("Camembert"))
