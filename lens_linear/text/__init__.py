"""Text in, tokens out: a language with known answers, corpora, labelled concepts, token labels.

Nothing here knows a model or a tokenizer.

* :class:`SyntheticLanguage`: a generator whose bigrams, skip-trigrams, name copying, mood and
  entropies are known exactly; :class:`EntropyFloors`, :class:`MoodSentences`.
* :func:`repeated_tokens`, :func:`random_tokens`: the induction workload and its control.
* :func:`default_text`, :func:`default_stories`, :func:`read_text`, :func:`read_documents`,
  :func:`huggingface_text`, :func:`stream_huggingface_text`: where text comes from.
* :func:`pack`, :func:`batches`, :class:`TokenStream`: ids into rows, in memory or on disk.
* :func:`load_concept`, :class:`Concept`, :data:`PRESETS`: labelled texts in three disjoint parts.
* :func:`token_label`, :func:`token_labels`, :func:`unique_labels`, :func:`html_label`: tokens that
  can be read, told apart, and never executed.
"""

from lens_linear.text._floors import EntropyFloors
from lens_linear.text._mood import MoodSentences
from lens_linear.text.concepts import Concept, ConceptSplit, load_concept
from lens_linear.text.corpora import (
    batches,
    default_stories,
    default_text,
    pack,
    read_documents,
    read_text,
)
from lens_linear.text.huggingface import huggingface_text, stream_huggingface_text
from lens_linear.text.labels import html_label, token_label, token_labels, unique_labels
from lens_linear.text.presets import PRESETS, Preset
from lens_linear.text.random_tokens import RepeatedTokens, random_tokens, repeated_tokens
from lens_linear.text.synthetic import SyntheticLanguage
from lens_linear.text.token_stream import TokenStream

__all__ = [
    "PRESETS",
    "Concept",
    "ConceptSplit",
    "EntropyFloors",
    "MoodSentences",
    "Preset",
    "RepeatedTokens",
    "SyntheticLanguage",
    "TokenStream",
    "batches",
    "default_stories",
    "default_text",
    "html_label",
    "huggingface_text",
    "load_concept",
    "pack",
    "random_tokens",
    "read_documents",
    "read_text",
    "repeated_tokens",
    "stream_huggingface_text",
    "token_label",
    "token_labels",
    "unique_labels",
]
