"""The rules: pure functions of a log's curves, each with its source; a threshold says where it is from."""
