"""Questions like the published ones, made up, and files of them."""

import gzip
import json
import lzma

PRONTOQA = {
    "id": "ProntoQA_1",
    "context": "Each yumpus is shy. Yumpuses are impuses. Impuses are not sour. Numpuses are sour. Max is a yumpus.",
    "question": "Is the following statement true or false? Max is sour.",
    "options": ["A) True", "B) False"],
    "answer": "B",
    "explanation": ["Max is a yumpus.", "Yumpuses are impuses.", "Max is an impus.", "Impuses are not sour."],
}
PROSQA = {
    "question": "Every yumpus is a impus. Sally is a yumpus. Bob is a rompus. Is Sally a rompus or impus?",
    "answer": "Sally is a impus.",
    "steps": ["Sally is a yumpus.", "Every yumpus is a impus."],
    "idx_to_symbol": ["Bob", "Sally", "yumpus", "impus", "rompus"],
    "edges": [[2, 3], [1, 2], [0, 4]],
    "root": 1,
    "target": 3,
    "neg_target": 4,
}


def prontoqa(n):
    names = ("Max", "Fae", "Rex", "Sam", "Wren", "Polly", "Alex", "Stella", "Tom", "Eva")
    return [json.loads(json.dumps(PRONTOQA).replace("Max", name)) for name in names[:n]]


def prosqa(n):
    names = ("Tom", "Eva", "Jack", "Davis", "Carol", "Oliver")
    return [json.loads(json.dumps(PROSQA).replace("Sally", name)) for name in names[:n]]


def written(folder, items, suffix=""):
    path = folder / f"items{len(list(folder.iterdir()))}.json{suffix}"
    opened = {"": open, ".gz": gzip.open, ".xz": lzma.open}[suffix]
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(items if isinstance(items, str) else json.dumps(items))
    return str(path)
