"""Text to tokens and back, and training rows in tokens."""

from mixtune.tokens.chat import Tokens
from mixtune.tokens.rows import Encoded, Row, encode_rows, refuse_answers, too_long
from mixtune.tokens.templates import TODAY

__all__ = ["TODAY", "Encoded", "Row", "Tokens", "encode_rows", "refuse_answers", "too_long"]
