"""The reviewer's pack: a study without its datasets' texts, from which it is analysed again."""
