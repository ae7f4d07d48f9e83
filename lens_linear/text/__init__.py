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

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
