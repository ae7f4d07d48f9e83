from .build import report as report
from .build import report_steps as report_steps
from .page import Attention as Attention
from .page import Figure as Figure
from .page import Section as Section
from .page import Table as Table
from .tour_page import tour as tour

__all__ = [
    "Attention",
    "Figure",
    "Section",
    "Table",
    "report",
    "report_steps",
    "tour",
]
