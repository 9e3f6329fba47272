"""Recipes: named preprocessing, each a frozen config, and ``apply``, which takes a scan through one."""

from data.recipes.apply import apply
from data.recipes.named import RECIPES
from data.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "apply"]
