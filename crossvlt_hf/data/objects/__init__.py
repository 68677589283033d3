"""From labelled objects to referring expressions: readers of labels, the engine, and composed pictures."""
