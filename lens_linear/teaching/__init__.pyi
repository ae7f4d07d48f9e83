from .checker import Checker as Checker
from .checker import CheckFailed as CheckFailed
from .checker import CheckResult as CheckResult
from .checker import check as check
from .grading import Grades as Grades
from .grading import grade as grade
from .tutorials import copy_tutorials as copy_tutorials

__all__ = [
    "CheckFailed",
    "CheckResult",
    "Checker",
    "Grades",
    "check",
    "copy_tutorials",
    "grade",
]
