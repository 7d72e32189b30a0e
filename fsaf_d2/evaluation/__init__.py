"""How good is a detector, and where does it fail?"""

from .evaluator import BoxEvaluator
from .files import evaluate_predictions
from .report import keep_report, write_report
from .tables import evaluation_text, overall_table

__all__ = [
    "BoxEvaluator",
    "evaluate_predictions",
    "evaluation_text",
    "keep_report",
    "overall_table",
    "write_report",
]
