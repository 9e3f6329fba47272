"""Recipes: named preprocessing, each a frozen config, and ``apply``, which preprocesses a scan by a recipe."""

from data.recipes.apply import apply
from data.recipes.named import RECIPES
from data.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "apply"]
