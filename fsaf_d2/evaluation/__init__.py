"""How good is a detector, and where does it fail?"""

from .evaluator import BoxEvaluator
from .figure_tables import evaluation_text, overall_table
from .prediction_files import evaluate_predictions
from .run_report import keep_report, write_report

__all__ = [
    "BoxEvaluator",
    "evaluate_predictions",
    "evaluation_text",
    "keep_report",
    "overall_table",
    "write_report",
]
