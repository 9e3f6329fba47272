"""Recipes: named preprocessing, each a frozen config. ``apply`` is imported from its file, because it needs torch."""

from data.recipes.named import RECIPES
from data.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe"]
