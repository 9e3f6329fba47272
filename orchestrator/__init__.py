"""Everything that runs: the only package that imports Ray and MLflow."""
