from .data import repeated_rows as repeated_rows
from .data import step_generator as step_generator
from .loop import BOS as BOS
from .loop import TrainingRun as TrainingRun
from .loop import train as train
from .loop import validation_loss as validation_loss
from .recipes import RECIPES as RECIPES
from .recipes import ModelSpec as ModelSpec
from .recipes import Phase as Phase
from .recipes import Recipe as Recipe

__all__ = [
    "BOS",
    "RECIPES",
    "ModelSpec",
    "Phase",
    "Recipe",
    "TrainingRun",
    "repeated_rows",
    "step_generator",
    "train",
    "validation_loss",
]
