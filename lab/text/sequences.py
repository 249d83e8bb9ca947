"""Questions and answers as padded arrays of tokens."""

from collections.abc import Sequence

import numpy as np

from lab.objective import PAD


def pad(questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int):
    """Questions each followed by its answer as arrays, on the host.

    Returns:
      sequences (int32) and which of their tokens answer (bool), both (N, length + 1).

    Raises:
      ValueError: one that is longer, an empty question or answer, or a `PAD` among the tokens.
    """
    sequence_NxM = np.full((len(questions), length + 1), PAD, np.int32)
    is_answer_NxM = np.zeros(sequence_NxM.shape, bool)
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        first, end = len(question), len(question) + len(answer)
        if end > length + 1:
            raise ValueError(f"sequence {i} has {end} tokens: at most task.length + 1 = {length + 1}")
        if not first or first == end:
            raise ValueError(f"sequence {i} has {first} tokens of question and {end - first} of answer: at least 1")
        sequence_NxM[i, :end] = [*question, *answer]
        if (sequence_NxM[i, :end] == PAD).any():
            raise ValueError(f"sequence {i} holds token {PAD}, which is padding: use other tokens")
        is_answer_NxM[i, first:end] = True
    return sequence_NxM, is_answer_NxM
