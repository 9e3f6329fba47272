"""Everything that runs experiments: the only package that imports Ray and MLflow."""
