"""Questions and answers as padded arrays: what was put in, and what is refused."""

import numpy as np
import pytest

from lab.text.sequences import pad


def test_pad_gives_what_was_put_in():
    questions, answers = [[3, 4], [5], [6, 7, 8]], [[9], [1, 2], [4, 4]]
    sequence_NxM, is_answer_NxM = pad(questions, answers, 4)
    assert sequence_NxM.tolist() == [[3, 4, 9, 0, 0], [5, 1, 2, 0, 0], [6, 7, 8, 4, 4]]
    assert is_answer_NxM.astype(int).tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert (sequence_NxM.dtype, is_answer_NxM.dtype) == (np.int32, bool)


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ([1, 2, 3], [4, 5, 6], r"sequence 1 has 6 tokens: at most task\.length \+ 1 = 5"),
        ([], [4], "sequence 1 has 0 tokens of question and 1 of answer: at least 1"),
        ([4], [], "sequence 1 has 1 tokens of question and 0 of answer: at least 1"),
        ([4, 0], [1], "sequence 1 holds token 0, which is padding"),
    ],
)
def test_pad_refuses_what_cannot_be_told_apart_later(question, answer, message):
    with pytest.raises(ValueError, match=message):
        pad([[1], question], [[1], answer], 4)
