"""Text and its caches: corpora, tokenizers, files of questions and of pairs; everything of a task that reads files."""
