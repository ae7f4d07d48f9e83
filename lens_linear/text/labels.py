"""Labels of tokens, as figures, pages and terminals write them: public here, kept where tables need them."""

from lens_linear.token_labels import (
    html_label,
    text_label,
    token_label,
    token_labels,
    unique_labels,
)

__all__ = ["html_label", "text_label", "token_label", "token_labels", "unique_labels"]
