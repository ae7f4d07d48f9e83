from .checker import check as check
from .tutorials import copy_tutorials as copy_tutorials

__all__ = [
    "check",
    "copy_tutorials",
]
