"""Words that a classroom need not see: a lens's early layers bring up whatever the web says."""

from __future__ import annotations

import codecs
import re

# stems, their letters turned by thirteen, so that nobody has to read them here
_TURNED = (
    "fuvg shpx phag ovgpu nffubyr onfgneq qvpxurnq cvff juber fyhg avttre avttn snttbg snt "
    "pbpx chffl obare cbea encr encvfg gvg gvgg obbo qvyqb znfgheong betnfz intvan rwnphyng "
    "jnax phz erpghz nany onyyfnpx ubeal xvax xvxr fcvp puvax ergneq genaal unaqwbo oybjwbo "
    "avccyr cravf qvpx nff nefr rebgvp ahqr frk frzra fcrez pyvg"
)
HIDDEN = frozenset(codecs.decode(_TURNED, "rot13").split())
_WORD = re.compile(rf"({'|'.join(sorted(HIDDEN, key=len, reverse=True))})(s|es|ed|e|er|ers|ing|ion|ions|y|ies)?")


def is_vulgar(word: str) -> bool:
    """Whether a token is one of these words, or a form of one; letters around it make it another.

    It hides English words of one token and nothing else: a room that must be safe needs a person.
    """
    return _WORD.fullmatch(word.strip().lower()) is not None
