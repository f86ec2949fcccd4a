"""Tiny models with known answers, drafters with known behaviour, the laws, and wrong pieces that the laws must catch.

Public, so that a method or a model of your own can be put through the same laws as ours:

    testing.check_method(MyDrafter())
    testing.check_model(model, params)
"""

from paradec.models.tabular import ConditionalTable
from paradec.testing import drafters, laws, model_laws, mutants
from paradec.testing.check import check_method, check_model
from paradec.testing.tiny import ragged_prompts, tiny_recurrence, tiny_recurrent, tiny_table, tiny_transformer

__all__ = [
    "ConditionalTable",
    "check_method",
    "check_model",
    "drafters",
    "laws",
    "model_laws",
    "mutants",
    "ragged_prompts",
    "tiny_recurrence",
    "tiny_recurrent",
    "tiny_table",
    "tiny_transformer",
]
