"""What a word is: what stands between white space, as Unicode defines it.

So do Hugging Face `tokenizers`. Python's `str.split` would split at U+001C to U+001F, too, and count other words than
are encoded.
"""

import re

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(f"[^{WHITE_SPACE}]+")


def split(text: str) -> list[str]:
    return _WORD.findall(text)


def strip(text: str) -> str:
    return text.strip(WHITE_SPACE)
