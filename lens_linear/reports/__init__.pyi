from .build import report as report
from .build import report_steps as report_steps
from .tour_page import tour as tour

__all__ = [
    "report",
    "report_steps",
    "tour",
]
