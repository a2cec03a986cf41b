"""The miniature world: generated problems, the base's corpus and its tokenizer. Everything here is exact, tiny and bilingual."""
