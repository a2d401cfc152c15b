"""Recipes: a YAML file that names what is trained, and which methods work on it from which epoch to which.

``marks`` reads YAML and remembers where everything stands, ``schema`` says what a recipe may hold, ``read`` checks one,
and ``timeline`` checks which strategies may meet.
"""

from sparsecore.train.recipe.read import CheckedRecipe, read_recipe

__all__ = ["CheckedRecipe", "read_recipe"]
