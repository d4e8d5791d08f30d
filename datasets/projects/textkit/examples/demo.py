"""Print the words of a sentence by length."""

words = "a small kit for text".split()
for word in sorted(words, key=len):
    print(len(word), word)
