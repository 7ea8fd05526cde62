"""The book of items, attempts and money: the one truth every other part derives from."""
