"""A figure and its numbers as files to keep: standalone SVG, links that hold a file's content.

Knows: data: links, the figures' stylesheet. Does not know: what a figure shows.
"""

import re
from functools import lru_cache
from importlib import resources
from urllib.parse import quote

NAMESPACE = "http://www.w3.org/2000/svg"
_SAFE = " !$()*+,-./:;=?@[]_{|}~'"


def standalone(svg: str) -> str:
    """An SVG of the page as a file of its own: in light colours, on white, its style inside.

    Colours are written out, because drawing programs do not know variables of stylesheets.
    """
    head, rest = svg.split(">", 1)
    head = re.sub(r' style="[^"]*"', "", head).replace("<svg", f'<svg xmlns="{NAMESPACE}"', 1)
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}>\n<style>\n{_light()}</style>\n{background}{rest}\n"


def data_link(text: str, kind: str) -> str:
    """A data: link that holds a text; safe inside double quotes of an attribute."""
    return f"data:{kind};charset=utf-8,{quote(text, safe=_SAFE)}"


def svg_link(svg: str) -> str:
    """A data: link that holds a standalone SVG."""
    # Every quote inside a text is an entity already, so these are the attributes' own.
    return data_link(standalone(svg).replace('"', "'"), "image/svg+xml")


def file(name: str) -> str:
    """One of the page's own parts."""
    return resources.files("mixtune.report").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _light() -> str:
    """The figures' rules with every colour written out as in light mode."""
    css = re.sub(r"light-dark\((#\w+), #\w+\)", r"\1", file("figure.css"))
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", css))
    rules = css[css.index("}") + 1 :].strip() + "\n"
    return re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], rules)
