"""Everything that runs experiments: the only package that imports Ray and MLflow."""

import gc

# What is imported stays. With Python's own 700 new objects between two collections, a fifth of the time in which
# PyTorch and Ray are imported goes into looking for garbage among their modules.
gc.set_threshold(10_000)
