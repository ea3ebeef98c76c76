"""Keys and tokens that have a form of their own, and addresses of wallets, which have checksums as well.

`marked` and `RARE` are for those that begin in a way that few words do. All others hold a digit after a letter, as few
words do: `keyed` is asked at the beginning of each such word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256

_KEYS = {  # what it begins with, and all of it
    "smk_": r"smk_[\w-]{20,200}",
    "smo_": r"smo_[\w-]{20,200}",
    "sk-": r"sk-(?![a-z]{1,20}(?:-[a-z]{1,20}){1,10}(?![\w-]))[\w-]{20,200}",  # words with hyphens between them are none
    **{f"{kind}k_{use}_": rf"{kind}k_{use}_\w{{16,200}}" for kind in "sr" for use in ("live", "test")},
    "whsec_": r"whsec_[\w+/=]{20,200}",
    "github_pat_": r"github_pat_\w{22,200}",
    "glpat-": r"glpat-[\w-]{16,200}",
    **{f"xox{kind}-": rf"xox{kind}-[\w-]{{10,200}}" for kind in "abeprs"},
    "xapp-": r"xapp-\d-[\w-]{20,200}",
    "AKIA": r"AKIA[0-9A-Z]{16}",
    "ASIA": r"ASIA[0-9A-Z]{16}",
    "AIza": r"AIza[\w-]{35}",
    "ya29.": r"ya29\.[\w-]{20,400}",
    "SG.": r"SG\.[\w-]{16,64}\.[\w-]{16,100}",
    "hf_": r"hf_[A-Za-z0-9]{30,200}",
    "npm_": r"npm_[A-Za-z0-9]{30,200}",
    "gsk_": r"gsk_[A-Za-z0-9]{30,200}",
    "dop_v1_": r"dop_v1_[0-9a-f]{40,200}",
    "pypi-": r"pypi-[\w-]{40,400}",
    "xai-": r"xai-\w{40,200}",
    "pplx-": r"pplx-\w{40,200}",
    "nvapi-": r"nvapi-[\w-]{40,200}",
    **{f"shp{kind}_": rf"shp{kind}_[0-9a-f]{{32}}" for kind in ("at", "ca", "pa", "ss")},
    "lin_api_": r"lin_api_\w{32,100}",
    "AGE-": r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    "eyJ": r"eyJ[\w-]{8,2000}\.(?:eyJ[\w-]{4,4000}\.[\w-]{0,1000}"  # signed; or encrypted
    r"|[\w-]{0,1000}\.[\w-]{8,100}\.[\w-]{1,4000}\.[\w-]{16,100})",
}
_KEYS |= {f"gh{kind}_": rf"gh{kind}_\w{{30,200}}" for kind in "pousr"}
TOKENS = {prefix: re.compile(rf"(?<![A-Za-z0-9]){pattern}", re.ASCII) for prefix, pattern in _KEYS.items()}
RARE = tuple(  # what begins otherwise, and of each first a character that few texts hold
    (mark, prefix, TOKENS[prefix])
    for prefix, mark in {"AKIA": "K", "ASIA": "S", "AIza": "z", "eyJ": "J", "ya29.": "9", "SG.": "G"}.items()
)


def _beginnings(mark: str) -> tuple[str, re.Pattern[str], dict[str, list[tuple[str, re.Pattern[str]]]]]:
    """A mark, where it ends what a key may begin with, and the keys by the two characters before it."""
    keys: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for prefix, pattern in TOKENS.items():
        if prefix.endswith(mark):
            keys.setdefault(prefix[-3:-1], []).append((prefix, pattern))
    first, second = ("".join({pair[place] for pair in keys}) for place in (0, 1))  # most words fail these already
    return mark, re.compile(f"{mark}(?<=[{first}][{second}]{mark})(?<=(?:{'|'.join(keys)}){mark})"), keys


_MARKED = [_beginnings(mark) for mark in "_-"]
_KEYED = re.compile(
    "(?:"
    + "|".join(
        (
            r"d(?:api|ose|kea)[0-9a-f]{32}(?:-\d)?(?![0-9a-z])",  # Databricks
            r"[\w-]{3}\dQ~[\w.~-]{31,34}",  # Azure, an application's secret
            r"T[A-Z0-9]{8,11}/B[A-Z0-9]{8,11}/[A-Za-z0-9]{20,28}",  # Slack, the end of a webhook's address
            r"\d{17,20}/[\w-]{60,80}",  # Discord, the same
            r"\d{8,10}:AA[\w-]{33}",  # Telegram
            r"GOCSPX-[\w-]{28}",
            r"ATATT3[\w=-]{60,400}",
            r"lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}",
            r"dckr_[po]at_[\w-]{27}",
            r"glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}|glc_[\w+/=]{40,400}|gl(?:ptt|dt|rt|cbt|soat)-[\w-]{20,200}",
            r"r8_[A-Za-z0-9]{37}",
            r"tvly-(?:dev-|prod-)?[A-Za-z0-9]{20,60}",
            r"pcsk_\w{20,100}",
            r"sq0(?:atp|csp)-[\w-]{22,43}",
            r"key-[0-9a-f]{32}(?![0-9a-z])",
            r"SK[0-9a-f]{32}(?![0-9a-z])",
            r"(?:sbp|ntn|figd|nfp|fw|jina|phx|sntrys|rubygems|pscale_tkn|pscale_pw|pul|secret)[_-][\w+/=-]{36,400}",
            r"do[or]_v1_[0-9a-f]{40,200}",
            r"(?:HRKU|NRAK)-[\w-]{27,80}",
            r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}",
            r"EAA[A-Za-z0-9]{80,400}",
        )
    )
    + ")",
    re.ASCII,
)
_VAULT = re.compile(r"[\w-]{24,200}", re.ASCII)
_BASE58 = re.compile(r"[1-9A-HJ-NP-Za-km-z]{26,52}(?!\w)", re.ASCII)
_DIGITS58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = re.compile(r"(bc|tb|ltc)1([ac-hj-np-z02-9]{11,90})(?!\w)", re.ASCII | re.IGNORECASE)
_DIGITS32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_HEX40 = re.compile(r"0x[0-9a-fA-F]{40}(?!\w)", re.ASCII)


def marked(text: str) -> Iterator[tuple[int, int]]:
    """Where keys lie by what they begin with: something before a hyphen or an underscore."""
    for mark, beginning, keys in _MARKED:
        if mark in text:
            for m in beginning.finditer(text):
                for prefix, pattern in keys[text[m.end() - 3 : m.end() - 1]]:
                    if text.endswith(prefix, 0, m.end()) and (key := pattern.match(text, m.end() - len(prefix))):
                        yield key.span()


def keyed(text: str, at: int) -> tuple[int, int, str] | None:
    """Where a key or an address of a wallet lies that is the word beginning there, and its kind."""
    if m := _KEYED.match(text, at):
        return at, m.end(), "API_KEY"
    if text[at - 4 : at] in ("hvs.", "hvb.") and (m := _VAULT.match(text, at)):
        return at - 4, m.end(), "API_KEY"
    if text[at] == "0":
        return (at, m.end(), "CRYPTO_WALLET") if (m := _HEX40.match(text, at)) else None
    if (m := _BASE58.match(text, at)) and base58check(m[0]):
        return at, m.end(), "CRYPTO_WALLET" if len(m[0]) < 40 else "PRIVATE_KEY"
    if (m := _BECH32.match(text, at)) and bech32(m[1].lower(), m[2].lower()):
        return at, m.end(), "CRYPTO_WALLET"
    return None


def base58check(word: str) -> bool:
    """Whether the last four bytes are those of the twofold SHA-256 of the others (Bitcoin's Base58Check)."""
    number = 0
    for char in word:
        number = number * 58 + _DIGITS58.index(char)
    whole = number.to_bytes(40, "big").lstrip(b"\0")
    whole = bytes(len(word) - len(word.lstrip("1"))) + whole
    return len(whole) >= 25 and sha256(sha256(whole[:-4]).digest()).digest()[:4] == whole[-4:]


def bech32(human: str, data: str) -> bool:
    """The checksum of BIP-173, or that of BIP-350."""
    check = 1
    for value in [*(ord(char) >> 5 for char in human), 0, *(ord(char) & 31 for char in human), *map(_DIGITS32.index, data)]:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    return check in (1, 0x2BC830A3)
