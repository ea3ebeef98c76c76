"""The options of an HTTP connection: its address, and how its credential is come by. One is a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from governance.call import bad_request
from serving.engines.oauth import EXCHANGES

SECRETS = ("bearer_token", "client_secret")
SIGN_IN = ("client_id", "client_secret", "token_endpoint", "oauth_scope", "oauth_credential_exchange_method")
"""Those of OAuth's client credentials; the first three are needed."""
OPTIONS = ("host", "port", "base_path", "bearer_token", *SIGN_IN, "private_network")
TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")


def secret_of(options: Mapping[str, str]) -> str:
    """Which of `SECRETS` these options need."""
    return "client_secret" if any(options.get(name) for name in SIGN_IN) else "bearer_token"


def check_address(options: Mapping[str, str]) -> None:
    """Raises `CallError` (400) for what is no address of an HTTP service, or none to sign in at."""
    host, port, path = options.get("host", ""), options.get("port"), options.get("base_path", "")
    if not _is_address(host) or (urlsplit(_whole(host)).path.strip("/")):
        raise bad_request("The option 'host' is an address like https://api.example.com; its path is 'base_path'.", "options")
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise bad_request("The option 'port' is a number up to 65535, as text.", "options")
    segments = path.split("/")
    if not re.fullmatch(r"[A-Za-z0-9/._~%@:+,;=&$!()*-]*", path) or ".." in segments or "." in segments:
        raise bad_request("The option 'base_path' is a path like /v1, without '..', query and fragment.", "options")
    if secret_of(options) == "client_secret":
        _check_sign_in(options)


def _check_sign_in(options: Mapping[str, str]) -> None:
    if "bearer_token" in options:
        raise bad_request("A connection has a 'bearer_token' or signs in with 'client_id'; send one of them empty.", "options")
    if missing := [name for name in ("client_id", "token_endpoint") if not options.get(name)]:
        raise bad_request(
            f"The option {missing[0]!r} is missing: a connection that signs in has {', '.join(SIGN_IN[:3])}.", "options"
        )
    if not re.fullmatch(r"[\x20-\x7e]{1,1024}", options["client_id"]):
        raise bad_request("The option 'client_id' is printable text.", "options")
    if not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e ]{0,4096}", options.get("oauth_scope", "")):
        raise bad_request("The option 'oauth_scope' is names with spaces between them.", "options")
    if options.get("oauth_credential_exchange_method", EXCHANGES[0]) not in EXCHANGES:
        raise bad_request(f"The option 'oauth_credential_exchange_method' is one of {', '.join(EXCHANGES)}.", "options")
    endpoint = options["token_endpoint"]
    if "://" not in endpoint or not _is_address(endpoint) or not re.fullmatch(r"[\x21-\x7e]{1,2048}", endpoint):
        raise bad_request("The option 'token_endpoint' is a URL like https://login.example.com/oauth/token.", "options")


def _whole(given: str) -> str:
    return given if "://" in given else f"https://{given}"


def _is_address(given: str) -> bool:
    try:
        parts = urlsplit(_whole(given))
        return (
            bool(_HOST.fullmatch(parts.hostname or ""))
            and parts.scheme in ("http", "https")
            and parts.port != 0
            and parts.username is None
            and not (parts.query or parts.fragment)
        )
    except ValueError:
        return False
