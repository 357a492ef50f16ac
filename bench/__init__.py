"""A benchmark of mixtune's engine against what people use otherwise; see METHOD.md."""
