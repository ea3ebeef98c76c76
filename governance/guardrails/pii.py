"""Personal data and credentials in a text, found in linear time: patterns first, then the checksum each kind has.

Kinds: EMAIL, PHONE, CREDIT_CARD (Luhn), IBAN (ISO 7064 mod 97-10), IP_ADDRESS, MAC_ADDRESS, API_KEY, PRIVATE_KEY, PASSWORD,
CRYPTO_WALLET, national ids with a form of their own (US_SSN, UK_NINO, DE_TAX_ID, FR_NIR, ES_DNI, IT_FISCAL_CODE, CH_AHV, BE_NRN,
BR_CPF, IN_AADHAAR, CA_SIN), and what `said` finds by the words before it. Names, addresses and other things without a form are
not found here.

Cheap looks for what every finding of a kind must hold come first, so prose costs a few microseconds a page; every numbered kind
is tried at the edges of a run of digits only. No pattern has an unbounded repeat inside another.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from governance.guardrails.checksums import belgian, cpf, dni, ean, fiscal, luhn, nir, ssn, steuer_id, verhoeff
from governance.guardrails.keys import RARE, keyed, marked
from governance.guardrails.phones import phone
from governance.guardrails.said import BORN, assigned, birthday, born, named
from governance.guardrails.spelled import spelled

MAX_SPAN = 64
"""Characters of the longest finding that has spaces in it; one without spaces ends where its word does."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """`text[start:end]` is forbidden, and of which kind."""

    start: int
    end: int
    kind: str


_RUN = re.compile(r"\d+(?:(?:[ .\-/()_\u00a0]{1,2}| [-/] )\d+)*")
_GROUP = re.compile(r"\d+")
_BETWEEN, _CLOSE = frozenset(" -./_\u00a0"), frozenset(" -\u00a0")
_CARDS = ("4-4-4-4", "4-6-5")
_KINDS = bytes(  # digits are 0, letters a, what may stand between digits -
    ord("0" if chr(code) in "0123456789" else "a" if chr(code).isalpha() else "-" if chr(code) in " .-/()_" else " ")
    for code in range(128)
).ljust(256)
_SPOT = re.compile(rb"0(?:(?<=a0)|[0-]{6})")  # in those kinds, where a run begins that is looked at
_OF_WORDS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_SIGNS = frozenset("@!#$%&*+.~^?/")
_WORD = re.compile(r"[\w-]*", re.ASCII)
_LOCAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!#$%&'*+/=?^_`{|}~-")
_LETTERS = "A-Za-z\u00c0-\u1fff\u2c00-\u2dff"  # of scripts that put spaces between words
_LETTER = re.compile(f"[{_LETTERS}]")
_DOMAIN = re.compile(
    rf"(?:[{_LETTERS}0-9](?:[{_LETTERS}0-9-]{{0,61}}[{_LETTERS}0-9])?\.){{1,8}}[{_LETTERS}]{{2,24}}(?![{_LETTERS}0-9-])"
)
_BEGIN = re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----")
_LOGIN = re.compile(
    r"://[^\s/@:]{0,64}:(?!(?:secret|passw(?:or)?d|pass|pwd|x+|\*+)@)([^\s/@<{\[$][^\s/@]{0,200})@"
)  # no placeholder
_NETWORK = re.compile(r"0/(?:[89]|1\d|2[0-4])(?!\d)")
_VERSION = re.compile(r"(?:version|release|build|sections?|chapter|clause|§)[ =:]{1,2}\Z", re.IGNORECASE)
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_MAC = re.compile(r"(?<![\w:.-])[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}(?![\w:-])", re.ASCII)
_UUID = re.compile(r"(?<![\w-])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![\w-])", re.ASCII | re.IGNORECASE)
_HYPHENS = re.compile(r"-[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)
_NINO = re.compile(
    r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][ -]?\d{2}[ -]?\d{2}[ -]?\d{2}[ -]?[A-D](?![A-Za-z0-9])",
    re.ASCII,
)
_LOWER_NINO = re.compile(r"(?!bg|gb|kn|nk|nt|tn|zz)[a-ceghj-pr-tw-z][a-ceghj-npr-tw-z]\d{6}[a-d](?![A-Za-z0-9])", re.ASCII)
_DNI = re.compile(r"([XYZ]?\d{7,8}|[XYZ][ -]\d{7}|\d{1,2}\.\d{3}\.\d{3})[ -]?([A-Z])(?![A-Za-z0-9])", re.ASCII | re.IGNORECASE)
_FISCAL = re.compile(
    r"[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPR-T][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z](?![A-Za-z0-9])", re.ASCII | re.IGNORECASE
)
_NIR = re.compile(
    r"([1-478])[ .-]?(\d{2})[ .-]?(\d{2})[ .-]?(\d{2}|2[AB])[ .-]?(\d{3})[ .-]?(\d{3})[ .-]?(\d{2})(?!\d)", re.ASCII
)
_IBANS = (  # how long each country's is
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 "
    "FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 "
    "MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 "
    "SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
)
_FOURS = re.compile(r"[a-z]{2}\d{2}(?:([ \u00a0-])[a-z0-9]{4})(?:\1[a-z0-9]{4}){2}", re.ASCII)
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBANS.split()}


def find(text: str) -> list[Finding]:
    """Everything found, in order and without overlaps: of two that overlap the one that begins first, then the longer, stays."""
    found: list[Finding] = []
    if "@" in text:
        found += _emails(text)
        if "://" in text:
            logins = {m.start(1): m.end(1) for m in _LOGIN.finditer(text)}
            found = [each for each in found if each.start not in logins]  # the password and the host's name
            found += [Finding(start, end, "PASSWORD") for start, end in logins.items()]
    if " dot " in text or "(" in text or "[" in text or "{" in text or "<" in text or "@" in text:
        found += [Finding(start, end, "EMAIL") for start, end in spelled(text)]
    for mark, prefix, pattern in RARE:
        if mark in text and prefix in text:
            found += [Finding(m.start(), m.end(), "API_KEY") for m in pattern.finditer(text)]
    if "-" in text or "_" in text:
        found += [Finding(start, end, "API_KEY") for start, end in marked(text)]
    if "-" in text:
        if "-----BEGIN" in text:
            for begin in _BEGIN.finditer(text):
                end = _END.search(text, begin.end())
                found.append(Finding(begin.start(), end.end() if end else len(text), "PRIVATE_KEY"))
        if _HYPHENS.search(text):
            found += _macs(text)
    if ":" in text or "=" in text:
        found += [Finding(*each) for each in assigned(text)]
    if ":" in text:
        found += [Finding(*each) for each in birthday(text)]
        if _COLONS.search(text):
            found += _macs(text)
            for m in _IPV6.finditer(text):
                found += _ip(m.start(), m.end(), m[0])
    if not has_digit(text) and text.isascii():
        return distinct(found) if found else found
    if BORN.search(text):
        found += [Finding(*each) for each in born(text)]
    done = 0
    for start, end in _runs(text):
        if start >= done:
            done, said = _word(text, start, done)
            found += said
        found += _numbers(text, start, end)
    if found and "-" in text and (ids := [m.start() for m in _UUID.finditer(text)]):
        found = [each for each in found if (at := bisect_right(ids, each.start)) == 0 or each.end > ids[at - 1] + 36]
    return distinct(found) if found else found


def _word(text: str, at: int, floor: int) -> tuple[int, list[Finding]]:
    """The end of the word in which a run of digits begins, and what that word is by its form or by what is said before it."""
    begin = at
    while begin > floor and text[begin - 1] in _OF_WORDS:
        begin -= 1
    found = [Finding(*each) for each in named(text, begin)]
    if key := keyed(text, begin):
        found.append(Finding(*key))
    if begin and text[begin - 1] in _SIGNS:
        while begin > max(floor, at - 64) and not text[begin - 1].isspace():
            begin -= 1
        found += [Finding(*each) for each in named(text, begin)]
    return _WORD.match(text, at).end(), found  # type: ignore[union-attr] # it matches any


def _macs(text: str) -> Iterator[Finding]:
    for m in _MAC.finditer(text):
        if len(set(m[0])) > 2:  # neither none nor all
            yield Finding(m.start(), m.end(), "MAC_ADDRESS")


def _runs(text: str) -> Iterable[tuple[int, int]]:
    """Runs of digits that are longer than six characters or stand at a letter; all else is too short for any kind."""
    if text.isascii():
        kinds = text.encode().translate(_KINDS)
        spot = _SPOT.search(kinds)
        return _runs_from(text, kinds, spot) if spot else ()
    runs = (run.span() for run in _RUN.finditer(text))
    return ((start, end) for start, end in runs if end - start > 6 or (start and text[start - 1].isalpha()))


def _runs_from(text: str, kinds: bytes, spot: re.Match[bytes] | None) -> Iterator[tuple[int, int]]:
    while spot:
        run = _RUN.match(text, spot.start())
        assert run is not None
        start, end = run.span()
        if end - start > 6 or (start and text[start - 1].isalpha()):
            yield start, end
        spot = _SPOT.search(kinds, end)


def has_digit(text: str) -> bool:
    """Whether an ASCII text has one; written out, because it is asked for every chunk."""
    return (
        "0" in text
        or "1" in text
        or "2" in text
        or "3" in text
        or "4" in text
        or "5" in text
        or "6" in text
        or "7" in text
        or "8" in text
        or "9" in text
    )


def without_credentials(text: str) -> str:
    """A text with three stars for each key and password in it."""
    for each in reversed(find(text)):
        if each.kind in ("API_KEY", "PASSWORD", "PRIVATE_KEY"):
            text = f"{text[: each.start]}***{text[each.end :]}"
    return text


def distinct(found: list[Finding]) -> list[Finding]:
    """Without overlaps, in order."""
    if len(found) < 2:
        return found
    kept: list[Finding] = []
    for each in sorted(found, key=lambda finding: (finding.start, -finding.end)):
        if kept and each.start < kept[-1].end:
            if each.end > kept[-1].end:  # what hangs over is forbidden too
                kept[-1] = Finding(kept[-1].start, each.end, kept[-1].kind)
        else:
            kept.append(each)
    return kept


def _emails(text: str) -> Iterator[Finding]:
    position, floor = text.find("@"), 0
    while position >= 0:
        start = position
        while start > max(floor, position - 64) and (text[start - 1] in _LOCAL or _LETTER.match(text[start - 1])):
            start -= 1
        while start < position and text[start] in ".'`":
            start += 1
        domain = _DOMAIN.match(text, position + 1) if start < position else None
        if domain and not (text[start:position] == "git" and text[domain.end() : domain.end() + 1] in (":", "/")):
            yield Finding(start, domain.end(), "EMAIL")
            floor = domain.end()
        position = text.find("@", position + 1)


def _ip(start: int, end: int, text: str) -> Iterator[Finding]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return
    if not (address.is_loopback or address.is_unspecified or address.is_multicast or text.startswith("255.")):
        yield Finding(start, end, "IP_ADDRESS")  # those say nothing about anyone


def _numbers(text: str, start: int, end: int) -> Iterator[Finding]:
    """What a run of digits with separators holds, and what letters before or after it make of it."""
    groups = [(m.start(), m.end()) for m in _GROUP.finditer(text, start, end)]
    yield from _lettered(text, groups)
    if end - start < 7:
        return
    before = text[start - 1] if start else " "
    if before.isalnum() and before.isascii():
        groups = groups[1:]  # digits stuck to a word are part of it
    for number, (at, stop) in enumerate(groups):
        digits, last = text[at:stop], stop
        if number == 0 or text[at - 1] != ".":
            yield from _ipv4(text, groups, number)
        if number_of := phone(text, groups, number):
            yield Finding(*number_of, "PHONE")
        seps: set[str] = set()
        shape = str(stop - at)
        yield from _checked(text, at, last, digits, shape, seps)
        for left, right in groups[number + 1 : number + 8]:
            seps.add(text[last:left])
            digits, last, shape = digits + text[left:right], right, f"{shape}-{right - left}"
            if len(digits) > 19:
                break
            yield from _checked(text, at, last, digits, shape, seps)


def _checked(text: str, start: int, end: int, digits: str, shape: str, seps: set[str]) -> Iterator[Finding]:
    """Kinds that are digits in groups; each has a checksum or, failing that, must be written in its own grouping."""
    count = len(digits)
    if count < 9 or (not digits.isascii() and not digits.isdecimal()):
        return
    if any(set(sep) - _BETWEEN for sep in seps):
        return
    plain = not any(set(sep) - _CLOSE for sep in seps)
    written = plain or (shape in _CARDS and seps in ({"."}, {"/"}, {"_"}))
    if written and 13 <= count <= 19 and digits[0] in "23456" and luhn(digits) and len(set(digits)) > 1 and _card_shape(shape):
        yield Finding(start, end, "CREDIT_CARD")
    if count == 9 and (plain or seps == {"."}) and shape == "3-2-4" and ssn(digits):
        yield Finding(start, end, "US_SSN")
    if count == 9 and plain and shape == "3-3-3" and digits[0] not in "08" and luhn(digits):
        yield Finding(start, end, "CA_SIN")
    if count == 11 and shape in ("11", "2-3-3-3") and steuer_id(digits):
        yield Finding(start, end, "DE_TAX_ID")
    if count == 11 and shape in ("2-2-2-3-2", "11", "6-3-2") and belgian(digits):
        yield Finding(start, end, "BE_NRN")
    if count == 11 and shape in ("11", "3-3-3-2") and cpf(digits):
        yield Finding(start, end, "BR_CPF")
    if count == 12 and shape in ("12", "4-4-4") and digits[0] not in "01" and verhoeff(digits):
        yield Finding(start, end, "IN_AADHAAR")
    if count == 13 and digits.startswith("756") and shape in ("13", "3-4-4-2") and ean(digits):
        yield Finding(start, end, "CH_AHV")


def _lettered(text: str, groups: list[tuple[int, int]]) -> Iterator[Finding]:
    """Kinds with letters beside the digits: tried once for each group, where their digits must begin."""
    for at, _ in groups:
        back = at
        while back > 0 and at - back < 7 and text[back - 1].isalpha() and text[back - 1].isascii():
            back -= 1
        letters, free = at - back, back == 0 or not _stuck(text[back - 1])
        if letters == 2 and free:
            yield from _iban(text, back)
            yield from _pattern(_NINO, text, back, "UK_NINO")
            if text[back:at].islower() and (m := _LOWER_NINO.match(text, back)):
                yield Finding(m.start(), m.end(), "UK_NINO")
        elif letters == 0 and at >= 3 and text[at - 1] in " -" and text[at - 3 : at - 1].isalpha():
            if at == 3 or not _stuck(text[at - 4]):
                yield from _pattern(_NINO, text, at - 3, "UK_NINO")
        elif letters == 6 and free:
            for m in _pattern(_FISCAL, text, back, "IT_FISCAL_CODE"):
                if fiscal(text[m.start : m.end].upper()):
                    yield m
        if letters < 2 and free:
            if (
                letters == 0
                and at >= 2
                and text[at - 1] in " -"
                and text[at - 2] in "XYZxyz"
                and not (at > 2 and _stuck(text[at - 3]))
            ):
                back = at - 2
            if (m := _DNI.match(text, back)) and dni(m[1].upper(), m[2].upper()):
                yield Finding(m.start(), m.end(), "ES_DNI")
            if letters == 0 and (m := _NIR.match(text, at)) and nir("".join(m.groups())):
                yield Finding(m.start(), m.end(), "FR_NIR")


def _stuck(char: str) -> bool:
    """Whether a word goes on after this character, as it does after letters of scripts that put spaces between words."""
    return char.isalnum() and char < "\u2e80"


def _pattern(pattern: re.Pattern[str], text: str, at: int, kind: str) -> Iterator[Finding]:
    if m := pattern.match(text, at):
        yield Finding(m.start(), m.end(), kind)


def _iban(text: str, at: int) -> Iterator[Finding]:
    wanted = _IBAN_LENGTHS.get(text[at : at + 2].upper(), 0)
    taken, position = [], at
    while wanted and len(taken) < wanted and position < len(text):
        char = text[position]
        if char.isalnum() and char.isascii():
            taken.append(char)
        elif char not in " -.\u00a0" or not (text[position - 1].isalnum() or text[position - 2].isalnum()):
            return
        position += 1
    if not wanted or len(taken) < wanted or (position < len(text) and text[position].isalnum() and text[position].isascii()):
        return
    whole = "".join(taken)
    if position - at > wanted and not whole.isupper() and not _FOURS.match(text, at):
        return  # in groups it is written in capitals, or by four
    moved = whole[4:] + whole[:4]
    if int("".join(str(int(char, 36)) for char in moved)) % 97 == 1:
        yield Finding(at, position, "IBAN")


def _ipv4(text: str, groups: list[tuple[int, int]], number: int) -> Iterator[Finding]:
    four = groups[number : number + 4]
    if len(four) < 4 or any(text[a[1] : b[0]] != "." for a, b in pairwise(four)):
        return
    if number + 4 < len(groups) and text[four[3][1] : groups[number + 4][0]] == ".":
        return  # a version or another dotted number
    if _NETWORK.match(text, four[3][0]) or _VERSION.search(text, max(0, four[0][0] - 12), four[0][0]):
        return
    yield from _ip(four[0][0], four[3][1], text[four[0][0] : four[3][1]])


def _card_shape(shape: str) -> bool:
    """Written in one, in groups of 3 to 7 with a shorter last one, as cards print it."""
    parts = shape.split("-")
    return len(parts) == 1 or (all(3 <= int(part) <= 7 for part in parts[:-1]) and 1 <= int(parts[-1]) <= 7)
