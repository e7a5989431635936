from __future__ import annotations

from pathlib import Path

import pytest

from c2c_lightning.cli import main
from tests.training.runs import BASE, SMALL, Run, newest


@pytest.fixture(scope="session")
def fit(tmp_path_factory):
    """Runs `fit` on the built-in pair in a working folder of its own; returns its `Run`."""

    def run(*args: str, workspace: Path | None = None, tracking_uri: str | None = None) -> Run:
        workspace = workspace or tmp_path_factory.mktemp("workspace")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(workspace)
            patch.setattr("sys.argv", ["c2c_lightning"])
            # MLflow remembers a run's store in the environment of the process.
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            if tracking_uri is not None:
                patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
            main(["fit", "--config", BASE, *SMALL, *args])
        return newest(workspace)

    return run
