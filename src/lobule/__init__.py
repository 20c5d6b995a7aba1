"""Lobule: breast-histology classifiers that hold on patients they have never seen.

The public functions are the verbs of the command line; each takes the result of the one before:

    scan -> audit -> split -> train -> (export, predict -> evaluate) -> report

Names are imported on first use, so that `import lobule` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Audit": "lobule.data.findings",
    "Evaluation": "lobule.evaluation.evaluate",
    "External": "lobule.inference.external",
    "Interval": "lobule.evaluation.intervals",
    "Leakage": "lobule.evaluation.leakage",
    "LobuleError": "lobule.errors",
    "Manifest": "lobule.data.manifest",
    "Model": "lobule.models.bundle",
    "Plan": "lobule.studies",
    "Predictions": "lobule.evaluation.predictions",
    "Recipe": "lobule.training.recipe",
    "Run": "lobule.run",
    "Running": "lobule.inference.choice",
    "Study": "lobule.evaluation.study",
    "audit": "lobule.data.audit",
    "compare": "lobule.evaluation.compare",
    "demo": "lobule.workflow",
    "doctor": "lobule.checkup",
    "evaluate": "lobule.evaluation.evaluate",
    "export": "lobule.inference.export",
    "external": "lobule.inference.external",
    "leakage": "lobule.workflow",
    "load_model": "lobule.models.bundle",
    "predict": "lobule.inference.predictor",
    "read_manifest": "lobule.data.manifest",
    "read_predictions": "lobule.evaluation.predictions",
    "report": "lobule.reporting.report",
    "save_model": "lobule.models.bundle",
    "scan": "lobule.data.scan",
    "split": "lobule.workflow",
    "stress": "lobule.inference.stress",
    "study": "lobule.studies",
    "train": "lobule.workflow",
    "write_manifest": "lobule.data.manifest",
    "write_predictions": "lobule.evaluation.predictions",
}

__all__ = [
    "Audit",
    "Evaluation",
    "External",
    "Interval",
    "Leakage",
    "LobuleError",
    "Manifest",
    "Model",
    "Plan",
    "Predictions",
    "Recipe",
    "Run",
    "Running",
    "Study",
    "__version__",
    "audit",
    "compare",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "external",
    "leakage",
    "load_model",
    "predict",
    "read_manifest",
    "read_predictions",
    "report",
    "save_model",
    "scan",
    "split",
    "stress",
    "study",
    "train",
    "write_manifest",
    "write_predictions",
]

if TYPE_CHECKING:
    from lobule.checkup import doctor
    from lobule.data.audit import audit
    from lobule.data.findings import Audit
    from lobule.data.manifest import Manifest, read_manifest, write_manifest
    from lobule.data.scan import scan
    from lobule.errors import LobuleError
    from lobule.evaluation.compare import compare
    from lobule.evaluation.evaluate import Evaluation, evaluate
    from lobule.evaluation.intervals import Interval
    from lobule.evaluation.leakage import Leakage
    from lobule.evaluation.predictions import Predictions, read_predictions, write_predictions
    from lobule.evaluation.study import Study
    from lobule.inference.choice import Running
    from lobule.inference.export import export
    from lobule.inference.external import External, external
    from lobule.inference.predictor import predict
    from lobule.inference.stress import stress
    from lobule.models.bundle import Model, load_model, save_model
    from lobule.reporting.report import report
    from lobule.run import Run
    from lobule.studies import Plan, study
    from lobule.training.recipe import Recipe
    from lobule.workflow import demo, leakage, split, train


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lobule' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
