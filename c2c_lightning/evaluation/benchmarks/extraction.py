"""Reads the letter that a response chooses; prose is never taken for a letter.

A response is read in tiers, and the first tier that says anything decides:
1. statements ("The answer is B", "答案是C", a box);
2. verdicts ("B is correct"): below the statements, since an explanation may well go through the choices;
3. lines with a letter and nothing else;
4. lines that begin as a choice does ("B. Paris");
5. letters named in passing ("(C)", "option C").
Of statements and verdicts the last one counts, and one that names several letters leaves the response unread; so
do tiers 3 to 5 where they name several.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# What may follow a bare letter after a space: any other word makes "A" an article and "C" a key, "E" a bacterium.
CONNECTIVES = (
    "because|since|as|due|based|given|which|where|while|for|so|and|or|but|not|from|with|in|if|when|whereas|rather"
    "|is|are|was|were|would|must|seems|therefore|thus|then"
)
HEDGE = r"(?:therefore|thus|then|clearly|definitely|indeed|probably|most likely|likely|simply|just|still|now|that)"
# Whole words of Latin script end where Chinese begins: 答案是C因为 names C.
LATIN = r"[^\W\u3400-\u9fff]"
LIST = r"(?:,|/|&|、|或|和|与|\bor\b|\band\b)"


def extract_letter(response: str, letters: str) -> str | None:
    """The letter that a response chooses, of those that there are, such as "ABCD".

    None if it names none, or several without saying which it means. Thinking between <think> tags is passed over.
    """
    if not letters:
        return None
    text = _plain(without_thinking(response))
    patterns = _patterns(letters)
    for kind in ("statements", "verdicts"):
        stated = [match for pattern in patterns[kind] for match in pattern.finditer(text)]
        if stated:
            last = max(stated, key=lambda match: match.start(match.lastindex))
            return _only(_named(last, patterns["listed"]))
    for pattern in patterns["lines"]:
        named = set().union(*(_named(match, patterns["listed"]) for match in pattern.finditer(text)))
        if named:
            return _only(named)
    return None


def without_thinking(response: str) -> str:
    """What a response says after its thinking, which it may have been cut off in."""
    return response.rpartition("</think>")[2].partition("<think>")[0].strip()


def _plain(text: str) -> str:
    """Full-width forms, Markdown and LaTeX as plain text; boxes and answer tags as statements."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"\*\*\s*\(?([A-Za-z])\)?\s*[.:]?\s*\*\*", r"(\1)", text)
    text = re.sub(r"\\[()\[\]]|[*`$]|</answer>", "", text)
    text = re.sub(r"(?<!\w)_+|_+(?!\w)", "", text)
    text = re.sub(r"<answer>", "\nAnswer: ", text)
    text = re.sub(r"\\(?:text|math|operatorname)\w*\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}", r"\nAnswer: \1\n", text)


def _only(named: set[str]) -> str | None:
    return named.pop() if len(named) == 1 else None


def _named(match: re.Match[str] | None, listed: re.Pattern[str]) -> set[str]:
    """The letter of a match, and those that go on the list which it begins: the B of "A or B"."""
    named = set()
    while match:
        named.add(match[match.lastindex].upper())
        match = listed.match(match.string, match.end(match.lastindex))
    return named


@lru_cache
def _patterns(letters: str) -> dict:
    upper, lower = f"[{letters}]", f"[{letters.lower()}]"
    start = rf"(?<!{LATIN})(?<!{LATIN}[-'’&.])"
    # No part of a word, a contraction, a name such as C++ or D-day, or an abbreviation such as D.C.
    ends = rf"(?!{LATIN}|['’][A-Za-z]|[-–&][^\W\d]|[+#^=]|[ \t]*[=+^]|\.{LATIN}(?:\b|\.))"
    no_word = rf"(?![ \t]+(?!(?:{CONNECTIVES})\b)[a-z0-9])"
    # A and I begin titles and sentences too; "B Paris" is a letter with its choice.
    no_title = r"(?:(?<![AI])|(?![ \t]+[A-Z0-9]))(?:(?<!I)|(?!,|[ \t]+(?:would|was)\b))"
    bracketed = rf"[(\[{{【「]\s*({upper}|{lower})\s*[)\]}}】」]"
    closed = rf"{start}({upper}|{lower})\)"
    bare = rf"{start}[\"“‘']?({upper}){ends}{no_word}{no_title}"
    # In lower case only where a sentence ends, and there is no telling an article from a lone a.
    small = rf"{start}[\"“‘']?((?![ai]){lower})[\"”’']?(?=[.!;]?\s*$|[.!;]\s*\n)"
    letter = rf"(?:{bracketed}|{closed}|{bare}|{small})"
    return {
        "statements": [re.compile(pattern) for pattern in _statements(letter)],
        "verdicts": [re.compile(pattern) for pattern in _verdicts(letter)],
        "listed": re.compile(
            rf"[)\]}}\"”’']*\s*{LIST}+\s*(?i:options?|choices?)?\s*[(\[]?({upper})(?!{LATIN}|['’])"
            rf"(?![)\]]?\s+(?:is|was|are|were|a|the|an)\b)"
        ),
        "lines": [re.compile(pattern, re.MULTILINE) for pattern in _lines(letter, upper, lower)],
    }


def _statements(letter: str) -> list[str]:
    """What says that a letter is the answer; the letter is the last group that matched."""
    noun = r"(?:options?|choices?|letter|answer|statement)"
    whose = r"(?:choice|option|letter|key|here|to|for|of|from|in|that|you|we|i|i'd|would|should)\b[^.:;,\n]{0,60}?"
    link = r"(?:\b(?:is|are|be|was|as)\b|['’]s\b|would be|should be|must be|[:=→>\-–—])"
    rest = rf"(?:{HEDGE}\b,?\s*){{0,3}}(?:the\s+)?(?:(?:correct|right|best|final)\s+)?(?:{noun}\b\s*[:#]?\s*)?"
    answer = r"\b(?:answers?|ans)\b[\]\"”]*"
    subject = (
        r"\b(?:options?|choices?|letter|solution|response|conclusion|correct|(?:correct|right|best)\s+(?:one|statement))"
        r"\b[\]\"”]*"
    )
    chosen = (
        r"\b(?:choose|chose|pick|select|go(?:ing)? with|opt for|it['’]?s|it is|it must be|it should be|think|believe"
        r"|say|guess|therefore|thus|hence)\b"
    )
    refused = r"(?<!不)(?<!没)"
    return [
        rf"(?i:{answer}(?:\s+{whose})??\s*(?:{link}\s*)+{rest}){letter}",
        rf"(?i:{answer}\s+){letter}",
        rf"(?i:{subject}(?:\s+answer)?\s*(?:{link}\s*)+{rest}){letter}",
        rf"(?i:(?<!not )(?<!n't )(?<!never ){chosen}[\s:,]*{rest}){letter}(?!\)?\s+(?:is|was|are|were)\b)",
        rf"(?:答案|选项|{refused}选|答|{refused}正确的)\s*(?:应该|应|就|可能)?\s*(?:是|为|:)+\s*(?:选项|选择|选)?\s*{letter}",
        rf"(?:答案|{refused}选择?)\s*(?:选项|选)?\s*{letter}",
    ]


def _verdicts(letter: str) -> list[str]:
    """What calls a letter right."""
    best = r"(?:(?:most|more)\s+)?(?:correct|right|best|accurate|appropriate|(?:the\s+)?answer)\b"
    link = r"(?:is|was|would be|must be|should be|seems)"
    return [
        rf"(?<!nor )(?<!or )(?<!and )(?<!of ){letter}(?i:\s+{link}\s+(?:{HEDGE}\s+){{0,3}}(?:the\s+)?{best})",
        rf"{letter}\s*(?:选项|项)?\s*(?:是|为)?\s*最?(?:正确|对的)",
    ]


def _lines(letter: str, upper: str, lower: str) -> list[str]:
    begin, option = r"^[ \t>#\-]*", r"(?:(?i:(?:options?|choices?)\s+)|选项\s*)"
    judged = r"(?!\)?\s+(?:is|was|are|were|can|cannot|can't|does)\b|\s*(?:是|不|错|也))"
    return [
        rf"{begin}{option}?[(\[{{\"“‘']*({upper}|{lower})[)\]}}\"”’'.:,;!]*\s*$",
        rf"{begin}(?:{option}?[(\[]?(?:({upper})(?:[)\]]+[.:,]?|[。、]|[.:](?=\s|[^\W\d_]{{2}})(?!\s[A-Z]\.)|\s+[-–—](?=\s)|,(?<!I,))"
        rf"|({lower})(?:[)\]]|\.(?=\s)))|({upper})\s+(?=(?:because|since|as|due)\b))",
        rf"(?<!not )(?:{option}{letter}|[(\[]({upper}|{lower})[)\]]){judged}",
    ]
