"""What the tests of this folder share."""

from tests.pipelines.mlflow_server import mlflow_server

__all__ = ["mlflow_server"]
