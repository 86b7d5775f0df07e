"""XLM-RoBERTa (Conneau et al. 2020), as `transformers` stores it: RoBERTa under another name."""

from dataclasses import replace

from keras_tfm.architectures.roberta import ROBERTA, heads

XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta", base="XLMRobertaModel", heads=heads("XLMRoberta"))
