"""Telephone numbers, by the ways in which they are written, or by what is said before them."""

from __future__ import annotations

import re

SAID = r"(?:[ _-]?(?:no|nr|num|number|is|me at|at)\b\.?){0,2}[\"']?[ .:=#(]{0,3}[\"']?\Z"
"""What may stand between what a number is said to be and the number."""
_NAMED = re.compile(  # what stands before a number that is written like any other
    r"(?<![a-z])(?:(?:call|text|ring|reach) (?:me|us|him|her|them)"
    r"|tel|telef[oó]no?|t[eé]l[eé]phone|phone|mobile?|handy|fax|cell|whatsapp|celular|m[oó]vil|portable|тел|телефон)"
    rf"{SAID}|(?:電話|电话|手机|전화)[：: ]{{0,2}}\Z"
)
_WORDS = (
    "call ", "text ", "ring ", "reach ",
    "tel", "tél", "phone", "mob", "fax", "handy", "cel", "whatsapp", "móvil", "movil", "portable", "тел", "话", "話", "手机",
    "전화",
)  # fmt: skip
_MOBILE = re.compile(r"(?:0[67]\d{8}|07\d{9}|01[567]\d{8,9})\Z")  # France; United Kingdom; Germany
_CHINA, _RUSSIA = re.compile(r"1[3-9]\d-"), re.compile(r"8(?: ?\(| |-)[489]")
_AFTER_AREA = ((")-", "-"), (").", "."), (") ", " "), (") ", "."))
_ISBN = re.compile(r"ISBN(?:-1[03])?:? {0,2}\Z")
_DATES = ([4, 2, 2], [2, 2, 4])


def phone(text: str, groups: list[tuple[int, int]], number: int) -> tuple[int, int] | None:
    """Where a telephone number lies that begins with that group of digits, if one does.

    International with + or 00; national with a leading 0 in groups, or as mobile numbers are; North American in groups of 3, 3
    and 4; a code in parentheses before 8 or 9 digits in two groups; Chinese mobile ones and Russian ones, in their groups;
    anything that is said to be one.
    """
    at, stop = groups[number]
    start = at
    plus = at > 0 and text[at - 1] == "+"
    abroad = number == 0 and text[at:stop] == "011"  # how North America dials it
    if plus:
        start = at - 1 - (text[at - 2 : at - 1] == "(" and text[stop : stop + 1] == ")")
    elif at and text[at - 1] == "(" and text[stop : stop + 1] == ")":
        start = at - 1 - (text[at - 2 : at - 1] == "+")
        plus = text[start] == "+"
    elif number and not plus and text[groups[number - 1][1] : at] != " ":
        return None  # in the middle of another number
    national = text[at] == "0" and not plus and not abroad and text[at : at + 2] != "00"
    count, last, best, lengths, seps = stop - at, stop, 0, [stop - at], []
    for left, right in [(at, at), *groups[number + 1 : number + 7]]:
        if right > left:
            if right - left > 12 or (plus and count + right - left > 15):
                break
            if "_" in text[last:left] or (len(text[last:left]) > 2 and not (start < at and text[last:left] in (" - ", " / "))):
                break
            seps.append(text[last:left])
            count, last = count + right - left, right
            lengths.append(right - left)
        if plus or (number == 0 and text[at : at + 2] == "00"):
            ok = 8 <= count - (0 if plus else 2) <= 15
        elif abroad:
            ok = 8 <= count - 3 <= 15
        elif national:
            regular = len({*seps[1:]}) <= 1
            ok = 9 <= count <= 12 and seps != [] and 2 <= lengths[0] <= 6 and regular and lengths[:3] != [2, 2, 4]
            ok = ok and "." not in set(seps) - ({"."} if set(seps) == {"."} and len(lengths) == 5 else set())
            ok = ok or (not seps and bool(_MOBILE.match(text[at:stop])) and not _ISBN.search(text, max(0, at - 12), at))
        elif start < at:
            ok = lengths in ([3, 3, 4], [2, 4, 4], [2, 5, 4]) and seps[0] in (")", ") ") and seps[1] in ("-", " - ")
            ok = ok or (lengths == [3, 3, 4] and (seps[0], seps[1]) in _AFTER_AREA)
        else:
            ok = (
                lengths in ([3, 3, 4], [1, 3, 3, 4])
                and len({*seps[-1:], *seps[-2:-1]} - {") ", ")"}) == 1
                and text[at] in "123456789"
            )
            ok = ok or (lengths == [3, 4, 4] and len({*seps}) == 1 and _CHINA.match(text, at) is not None)
            ok = ok or (lengths == [1, 3, 3, 2, 2] and _RUSSIA.match(text, at) is not None)
        if ok or (number == 0 and 7 <= count <= 13 and start and lengths not in _DATES and _said(text, start)):
            best = last
    return (start if plus or best > stop else at, best) if best else None


def _said(text: str, at: int) -> bool:
    """Whether a number is said to be a telephone's."""
    before = text[max(0, at - 32) : at].casefold()
    return _NAMED.search(before) is not None if any(word in before for word in _WORDS) else False
