"""A made-up API model and questions for it.

Knows: the shape of a system. Does not know: servers.
"""

from mixtune.api.entries import OPENAI_KEY, ApiSystem, Price
from mixtune.records import Message, Query

KEY = "sk-test-0123456789-not-a-real-key"
LABELS = ("dry", "wet")


def query(text, choices=LABELS):
    """A question whose text and id are the same."""
    return Query(text, "", (Message("user", text),), choices)


def system(url="http://127.0.0.1:9/v1", **changes):
    """A model at an endpoint where nobody is, with a price."""
    price = Price.per_million(2.5, 10, "test")
    given = {"name": "mine", "model": "m", "base_url": url, "key_env": OPENAI_KEY, "price": price}
    return ApiSystem(**(given | changes))


def alone(tmp_path, patch):
    """A cache of its own, a key that can be looked for, and no proxy between test and server."""
    patch.setenv("MIXTUNE_CACHE", str(tmp_path / "cache"))
    patch.setenv(OPENAI_KEY, KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        patch.delenv(name, raising=False)
        patch.delenv(name.lower(), raising=False)
