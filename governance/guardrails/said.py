"""What words say of what follows them: passwords and keys without a form, national ids, passports, dates of birth.

`assigned` looks where something is given a value (`password: x`, `pwd=x`), `named` at the beginning of a word that holds a digit
after a letter or of a long run of digits (`passport no. C01X00T47`), `born` at dates with the name of a month.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from governance.guardrails import checksums

Found = tuple[int, int, str]

_SECRETS = (  # how names end whose values are passwords
    "password", "passwd", "passwort", "kennwort", "passphrase", "passcode", "pwd", "contraseña", "contrasena", "senha",
    "mot de passe", "wachtwoord", "lösenord", "adgangskode", "hasło", "пароль", "密码", "密碼", "パスワード", "비밀번호",
)  # fmt: skip
_TOKENS = (  # and those whose values are keys
    "secret", "secretkey", "secretaccesskey", "accesskey", "apikey", "accountkey", "privatekey", "masterkey", "authtoken",
    "encryptionkey", "signingkey", "accesstoken", "refreshtoken", "bearertoken", "apitoken", "token", "sharedaccesssignature",
)  # fmt: skip
_PAIRS = sorted({word[-2:] for word in (*_SECRETS, *_TOKENS, "authorization")})
_ENDINGS = "|".join(_PAIRS)
_FIRST, _LAST = ("".join({case for pair in _PAIRS for case in (pair[place], pair[place].upper())}) for place in (0, 1))
_GIVEN = {  # a colon or an equals sign after what may be such a name, or after what may close it
    sign: re.compile(
        rf"{sign}(?:(?<=[{_FIRST}][{_LAST}]{sign})(?i:(?<=(?:{_ENDINGS}){sign}))"
        rf"|(?<=[\"'\\ \])]{sign})(?i:(?<=(?:{_ENDINGS})[\"'\\ ]{sign})|(?<=(?:{_ENDINGS})[\"'\])][ \]]{sign})))"
    )
    for sign in ":="
}
_APART = re.compile(r"[ _.\-]")
_QUOTED = re.compile(r"[=>]{0,2}[ \t]{0,3}\\?([\"'`])([^\s\u2e80-\U0010ffff\"'`\\]{3,200})\\?\1")
_PLAIN = re.compile(r"[=>]{0,2}[ \t]{0,3}([^\s\u2e80-\U0010ffff\"'`\\;&,<>]{3,200})")
_SCHEME = re.compile(r"[ \t]{0,3}[\"']?(?:bearer|basic|token|apikey|digest) {1,2}([A-Za-z0-9+/=_.~-]{12,4000})", re.IGNORECASE)
_KEY = re.compile(r"[=>]{0,2}[ \t]{0,3}\\?[\"'`]?([A-Za-z0-9+/=_.~-]{8,4000})")
_CODE = re.compile(r"(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*$|[\w.]+[(\[]|[$%{\[(<*/~]|\.{1,2}/|(.)\1+$|[a-z]+://|-", re.ASCII)
_PLACEHOLDERS = (
    "string str text none null nil undefined true false required optional password passwd passwort pwd secret changeit hidden "
    "redacted masked empty missing unknown invalid wrong incorrect correct expired reset type bool boolean int integer number "
    "bytes char varchar field value example placeholder your-password yourpassword mypassword self this env must min max the a "
    "an is are was not yes no and or bcrypt scrypt hash hashed encrypted plain plaintext forgotten forgot login username user "
    "click here see strength weak medium default any input prompt var let const new old current confirm"
)
_NO_PASSWORD = frozenset(_PLACEHOLDERS.split())
_ALGORITHM = re.compile(r"(?:sha|md|base|utf|argon|bcrypt|aes|rsa|oauth|v|py|python|pbkdf|rot|crc|ed|hs|rs|es)-?\d", re.I)


ENDS = ("", "\n", "\r", "\t", ";", "&", ",", ".", '"', "'", "<", ")", "]", "}")
"""What may follow a password of letters alone, which might as well be a word of a sentence."""


def assigned(text: str) -> Iterator[Found]:
    """Passwords and keys that are given to a name that says so."""
    for sign, pattern in _GIVEN.items():
        if sign in text:
            for m in pattern.finditer(text):
                name = text[max(0, m.start() - 28) : m.start()].rstrip("\"'\\ ])").casefold()
                if name.endswith(_SECRETS):
                    found = _password(text, m.end())
                elif name.endswith("authorization"):
                    given = _SCHEME.match(text, m.end())
                    found = given and (*given.span(1), "API_KEY")
                elif (joined := _APART.sub("", name)).endswith(_TOKENS):
                    found = _key(text, m.end(), 8 if joined.endswith(("secret", "key")) else 16)
                else:
                    continue
                if found:
                    yield found


def _password(text: str, at: int) -> Found | None:
    quoted = _QUOTED.match(text, at)
    if m := quoted:
        value, (start, end) = m[2], m.span(2)
    elif m := _PLAIN.match(text, at):
        value = m[1].rstrip(".)]}:")
        start, end = m.start(1), m.start(1) + len(value)
    else:
        return None
    if len(value) < 3 or _CODE.match(value) or value.casefold() in _NO_PASSWORD or _ALGORITHM.match(value):
        return None
    if not quoted and text[end : end + 1] in ("(", "[", "{"):
        return None
    if value.isalpha() and not quoted and text[end : end + 1] not in ENDS:
        return None  # a sentence goes on
    if value.isdigit() and len(value) < 4:
        return None
    return start, end, "PASSWORD"


def _key(text: str, at: int, least: int) -> Found | None:
    m = _KEY.match(text, at)
    if not m or len(value := m[1].rstrip(".")) < least or not _random(value) or _CODE.match(value):
        return None
    return m.start(1), m.start(1) + len(value), "API_KEY"


def _random(value: str) -> bool:
    """Whether letters and digits are mixed as they are in what was drawn at random."""
    return sum(map(str.isdigit, value)) >= 2 and _DIGIT_IN.search(value) is not None and value[0] not in "/-."


_DIGIT_IN = re.compile(r"\d[A-Za-z+/]")
_NO = r"(?:[ _-]?(?:no|nr|num|number|nummer|numero|número|numéro|id|card|code|is|was|ist|est|es|n°|nº|#)\b\.?|[ _-]?n[°º]){0,3}"
_TO = rf"{_NO}[\"']?[ .:=#(]{{0,3}}[\"']?\Z"
_DATE = r"(?:\d{1,2}([./-])\d{1,2}\1(?:\d{4}|\d{2})|\d{4}([./-])\d{1,2}\2\d{1,2})(?!\d)"
_BIRTH = (
    r"(?:born|birth|birthday|birthdate|dob|d\.o\.b|geb|geboren|geburtsdatum|geburtstag|née?|naissance|nacimiento|nacid[oa]|nascita"
    r"|nat[oa]|nascimento|nascid[oa]|geboortedatum|urodzon[ya]|urodzenia|рождения|родил(?:ся|ась))"
)
_SINCE = r"(?:[_ ](?:on|am|le|el|il|em|the|date|at|date of|is|was)){0,2}[\"']?[ .:=(]{0,3}[\"']?\Z"
_DIGITS = re.compile(r"\D")


def _plain(check: Callable[[str], bool]) -> Callable[[str], bool]:
    """The check of what is written, given its digits alone."""
    return lambda written: check(_DIGITS.sub("", written))


def _bare(check: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda written: check(re.sub(r"[ .-]", "", written).upper())


def _itin(digits: str) -> bool:
    return digits[0] == "9" and digits[3] in "5678" + "9"


def _day(digits: str) -> bool:
    return 1 <= int(digits[:2]) <= 31 and 1 <= int(digits[2:4]) <= 12


def _enough(least: int) -> Callable[[str], bool]:
    return lambda written: sum(map(str.isdigit, written)) >= least


def _swedish(digits: str) -> bool:
    return checksums.luhn(digits[-10:])


def _secret_key(written: str) -> bool:
    return _random(written) and written.count("-") < 3


def _secret_password(written: str) -> bool:
    return not _ALGORITHM.match(written) and not _CODE.match(written) and any(map(str.isalpha, written))


_NINE, _ELEVEN = r"\d{3}[ .-]?\d{3}[ .-]?\d{3}(?!\d)", r"\d{11}(?!\d)"
_KINDS: tuple[tuple[str, str, str, str, Callable[[str], bool]], ...] = (
    # kind, words that lead to it, what is said before it, how it is written, whether it may be so
    ("US_SSN", "ssn security", rf"(?:ssn|social security){_TO}", r"\d{3}[ .-]?\d{2}[ .-]?\d{4}(?!\d)", _plain(checksums.ssn)),
    ("US_ITIN", "itin", rf"itin{_TO}", r"9\d{2}[ -]?\d{2}[ -]?\d{4}(?!\d)", _plain(_itin)),
    ("DE_TAX_ID", "steuer idnr identifikationsnummer tin steueridnr steuerid",
     rf"(?:steuer[- ]?(?:id|identifikationsnummer)|idnr|tin){_TO}",
     r"\d{2}[ /.-]?\d{3}[ /.-]?\d{3}[ /.-]?\d{3}(?!\d)", _plain(checksums.steuer_id)),
    ("NL_BSN", "bsn burgerservicenummer sofinummer", rf"(?:bsn|burgerservicenummer|sofinummer){_TO}",
     r"(?:\d{9}|\d{4}[ .-]\d{2}[ .-]\d{3}|\d{3}[ .-]\d{3}[ .-]\d{3})(?!\d)", _plain(checksums.bsn)),
    ("PL_PESEL", "pesel", rf"pesel{_TO}", _ELEVEN, checksums.pesel),
    ("CA_SIN", "sin insurance", rf"(?:sin|social insurance){_TO}", _NINE, _plain(checksums.luhn)),
    ("AU_TFN", "tfn file", rf"(?:tfn|tax file){_TO}", _NINE, _plain(checksums.tfn)),
    ("UK_NHS", "nhs", rf"nhs{_TO}", r"\d{3}[ -]?\d{3}[ -]?\d{4}(?!\d)", _plain(checksums.nhs)),
    ("UK_NINO", "nino insurance ni", rf"(?:nino|national insurance|\bni){_NO}[ .:=#(]{{0,3}}[a-z]{{2}} ?\Z",
     r"\d{2} ?\d{2} ?\d{2} ?[a-dA-D](?!\w)", lambda _: True),
    ("IN_PAN", "pan account", rf"(?:pan|permanent account){_TO}", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z](?!\w)", lambda _: True),
    ("SE_PIN", "personnummer samordningsnummer", rf"(?:personnummer|samordningsnummer){_TO}", r"(?:\d{2})?\d{6}[-+]?\d{4}(?!\d)",
     _plain(_swedish)),
    ("DK_CPR", "cpr", rf"cpr{_TO}", r"\d{6}[- ]?\d{4}(?!\d)", _plain(_day)),
    ("NO_FNR", "fødselsnummer fodselsnummer personnummer", rf"(?:f[øo]dselsnummer|personnummer){_TO}", r"\d{6} ?\d{5}(?!\d)",
     _plain(checksums.fnr)),
    ("FI_HETU", "henkilötunnus hetu", rf"(?:henkilötunnus|hetu){_TO}", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y](?!\w)", checksums.hetu),
    ("PT_NIF", "nif contribuinte fiscal", rf"(?:nif|contribuinte|identificação fiscal){_TO}", _NINE, _plain(checksums.nif)),
    ("TR_TCKN", "kimlik tckn tc", rf"(?:kimlik|tckn){_TO}", _ELEVEN, checksums.tckn),
    ("ZA_ID", "id rsa", rf"(?:south african|\brsa|\bsa) id{_TO}", r"\d{13}(?!\d)", checksums.luhn),
    ("MX_CURP", "curp", rf"curp{_TO}", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[0-9A-Z]\d(?!\w)", lambda _: True),
    ("CL_RUT", "rut run", rf"\b(?:rut|run){_TO}", r"\d{1,2}\.?\d{3}\.?\d{3}-?[\dkK](?!\w)", _bare(checksums.rut)),
    ("PASSPORT", "passport passports reisepass reisepassnummer passnummer passeport pasaporte passaporto paspoort паспорт",
     rf"(?:passport|reisepass(?:nummer)?|passnummer|passeport|pasaporte|passaporto|paspoort|паспорт){_TO}",
     r"[A-Za-z0-9]{6,9}(?![\w-])", _enough(3)),
    ("DRIVER_LICENSE", "license licence dl führerschein führerscheinnummer permis conduire conducir guida rijbewijs",
     rf"(?:driv(?:er[’']?s?|ing)[ _]licen[cs]e|\bdl|führerschein(?:nummer)?|permis de conduire|licencia de conducir"
     rf"|patente di guida|rijbewijs){_TO}", r"[A-Za-z0-9]{3,18}(?:[ -]\d{1,6}){0,4}(?![\w-])", _enough(5)),
    ("DATE_OF_BIRTH", "born birth birthday birthdate dob b geb geboren geburtsdatum geburtstag né née naissance nacimiento "
     "nacido nacida nascita nato nata nascimento "
     "nascido nascida geboortedatum urodzony urodzona urodzenia рождения родился родилась",
     rf"(?<!\w){_BIRTH}{_SINCE}", _DATE, lambda _: True),
    ("PASSWORD", "password passwort kennwort passphrase passcode pwd contraseña senha passe пароль",
     r"(?:password|passwort|kennwort|passphrase|passcode|pwd|contraseña|senha|mot de passe) (?:is|was|ist|lautet|est|es|é)"
     r"[ :]{1,2}[\"'`]?\Z", r"[^\s\u2e80-\U0010ffff\"'`,;]{4,64}(?<![.!?)])", _secret_password),
    ("API_KEY", "key secret token bearer basic",
     r"(?:(?:secret|access|api|account|private|master|signing)[ _-]key|secret|token|bearer|basic)"
     r"(?: is| was|:| =)?[ :=]{1,2}[\"'`]?\Z", r"[A-Za-z0-9+/=_.~-]{16,4000}(?<!\.)", _secret_key),
)  # fmt: skip
_NAMED: dict[str, list[tuple[str, re.Pattern[str], re.Pattern[str], Callable[[str], bool]]]] = {}
for _kind, _leads, _before, _form, _check in _KINDS:
    for _lead in _leads.split():
        _NAMED.setdefault(_lead, []).append((_kind, re.compile(_before), re.compile(_form, re.ASCII), _check))
_WORDS = re.compile(r"[^\W\d_]+")
_CHINESE = re.compile(r"(?:身份证|身分證)\w{0,4}[:： ]{0,2}\Z")
_CHINESE_ID = re.compile(r"\d{17}[\dXx](?!\w)", re.ASCII)
_BACK = 48


def named(text: str, at: int) -> Iterator[Found]:
    """What begins at a word and is what the words before it say."""
    before = text[max(0, at - _BACK) : at]
    if not before or before.isspace():
        return
    before = before.lower()
    if not before.isascii() and _CHINESE.search(before):
        m = _CHINESE_ID.match(text, at)
        if m and checksums.chinese(m[0].upper()):
            yield at, m.end(), "CN_RIC"
    for word in _WORDS.findall(before)[-6:]:
        for kind, said, form, check in _NAMED.get(word, ()):
            if (m := form.match(text, at)) and check(m[0]) and said.search(before):
                yield at, m.end(), kind


_MONTH = (
    r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mär|mai|okt|dez|jän|janv|févr|mars|avr|juin|juil|août|ene|abr|ago|dic|gen|mag|giu"
    r"|lug|set|ott|fev|out)[a-zéûä]{0,7}\.?"
)
_NAMED_DATE = (
    rf"((?:\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of |de )?{_MONTH},? (?:de )?|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? )\d{{4}})(?!\d)"
)
BORN = re.compile(rf"or(?:n|en) (?:(?:on|am|the) ){{0,2}}(?i:{_NAMED_DATE})")
_BORN_BEFORE = re.compile(r"(?<!\w)(?:[Bb]|[Gg]eb)\Z")
_SINCE_THEN = r"(?<!\w)(?:[Bb]orn|[Gg]eboren)(?: (?:on|am|the)){0,2} "
_BIRTHDAY = re.compile(rf":(?=[ \"']{{0,3}}[0-9ADFGJLMNOSadfgjlmnos])[ \"']{{0,3}}(?i:{_NAMED_DATE})")
_OF_BIRTH = re.compile(rf"(?<!\w){_BIRTH}(?:[_ ](?:date|day))?[\"'. ]{{0,2}}\Z")
_UNFINISHED = re.compile(
    rf"(?:{_SINCE_THEN}|(?<!\w){_BIRTH}(?:[_ ](?:date|day))?[\"'. ]{{0,2}}:[ \"']{{0,3}})[\w.,]*(?: [\w.,]*){{0,5}}\Z",
    re.IGNORECASE,
)


def born(text: str) -> Iterator[Found]:
    """Dates with the name of a month on which somebody is said to be born."""
    for m in BORN.finditer(text):
        if _BORN_BEFORE.search(text[max(0, m.start() - 4) : m.start()]):
            yield *m.span(1), "DATE_OF_BIRTH"


def birthday(text: str) -> Iterator[Found]:
    """Such dates after a colon."""
    for m in _BIRTHDAY.finditer(text):
        if _OF_BIRTH.search(text[max(0, m.start() - 28) : m.start()].lower()):
            yield *m.span(1), "DATE_OF_BIRTH"


def born_from(text: str, start: int) -> int:
    """Where a date may have begun that more text could complete; `start`, where the unfinished word begins, if none has."""
    tail = text[max(0, len(text) - 80) :]
    if (":" in tail or "bor" in tail) and (m := _UNFINISHED.search(tail)):
        return min(start, len(text) - len(tail) + m.start())
    return start
